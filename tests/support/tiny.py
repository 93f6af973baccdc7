"""Tiny random checkpoints of every causal-LM family, and a tiny real tokenizer: the fixtures all tests share.

`make_tiny` shrinks the family's own config class field by field: a size that the class does not declare is not set, so
that nothing is misspelt in silence, and every checkpoint asserts its own parameter count.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VOCAB_SIZE = 256
MAX_PARAMETERS = 1_000_000
NUM_LAYERS = 4

_LINEAR_FULL = ["linear_attention", "full_attention"] * 2
_SLIDING_FULL = ["sliding_attention", "full_attention"] * 2
_CONV_FULL = ["conv", "full_attention"] * 2
_MROPE = {
    "rope_type": "default",
    "rope_theta": 10000.0,
    "mrope_section": [1, 1, 0],
    "partial_rotary_factor": 0.25,
    "mrope_interleaved": True,
}
_PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_DOTS3_SLIDING = {
    "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 16, "head_dim": 32,
    "qk_nope_head_dim": 16, "v_head_dim": 16, "qk_rope_head_dim": 16,
}  # fmt: skip

# Fields are set only where the family's config class declares them.
SIZES: Mapping[str, Any] = {
    # every transformer
    "vocab_size": VOCAB_SIZE, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "sliding_window": 12, "attention_chunk_size": 8,
    # the GPT-2 generation and others with names of their own
    "n_embd": 64, "n_layer": NUM_LAYERS, "n_head": 4, "n_positions": 512, "n_inner": 96, "rotary_dim": 8,
    "d_model": 64, "n_heads": 4, "n_layers": NUM_LAYERS, "num_layers": NUM_LAYERS, "num_heads": 4, "max_seq_len": 512,
    "ffn_dim": 96, "ffn_hidden_size": 96, "word_embed_proj_dim": 64, "kv_channels": 16, "attention_window_size": 12,
    "lru_width": 64, "attention_head_dim": 16, "attention_hidden_size": 64, "block_size": 4, "window_size": 8,
    "decoder_layers": NUM_LAYERS, "decoder_attention_heads": 4, "decoder_ffn_dim": 96,
    "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 96,
    # mixture of experts
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
    "moe_num_experts": 4, "moe_topk": 2, "moe_k": 2, "moe_top_k": 2, "n_group": 1, "topk_group": 1,
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "shared_intermediate_size": 96,
    "moe_latent_size": 32, "moe_shared_expert_intermediate_size": 32, "intermediate_size_mlp": 96,
    "shared_expert_size": 32, "router_hidden_size": 32, "expert_ffn_hidden_size": 32, "expert_hidden_size": 32,
    "zero_expert_num": 1, "first_k_dense_replace": 1,
    # latent and sparse attention
    "q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16,
    "qk_head_dim": 32, "index_n_heads": 2, "index_head_dim": 16, "index_topk": 8,
    # state spaces, linear attention, convolutions
    "mamba_n_heads": 8, "mamba_num_heads": 8, "mamba_head_dim": 16, "mamba_d_state": 16, "mamba_d_head": 16,
    "mamba_expand": 2, "mamba_chunk_size": 16, "mamba_d_ssm": 128, "mamba_d_conv": 4, "mamba_dt_rank": 8,
    "ssm_state_size": 16, "state_size": 16, "n_groups": 1, "n_mamba_heads": 2, "chunk_size": 16,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "d_rel": 8, "rel_extent": 16, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 16,
    "linear_head_dim": 16, "linear_num_heads": 4, "conv_L_cache": 3, "use_mem_rank": 8,
    "adapter_rank": 8, "dim_model_base": 64, "block_auto_adjust_ff_dim": False,
}  # fmt: skip

# What a family needs beyond its sizes, chosen so that every kind of layer occurs and neighbours differ.
SPECIAL: Mapping[str, Mapping[str, Any]] = {
    "afmoe": {"global_attn_every_n_layers": 2},
    "bailing_hybrid": {"layer_types": _LINEAR_FULL},
    "bamba": {"attn_layer_indices": [1, 3]},
    "cohere2": {"layer_types": _SLIDING_FULL},
    "cohere2_moe": {"layer_types": _SLIDING_FULL, "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]},
    "cohere_compass_text": {
        "layer_types": _SLIDING_FULL,
        "rope_parameters": {"full_attention": _PLAIN_ROPE, "sliding_attention": _PLAIN_ROPE},
    },
    "ctrl": {"dff": 96},
    "dbrx": {
        "attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {
            "ffn_hidden_size": 96,
            "moe_num_experts": 4,
            "moe_top_k": 2,
            "ffn_act_fn": {"name": "silu"},
        },
    },
    "deepseek_v4": {
        "head_dim": 32,
        "num_key_value_heads": 1,
        "o_groups": 2,
        "o_lora_rank": 16,
        "hc_mult": 2,
        "hc_sinkhorn_iters": 2,
        "layer_types": [
            "sliding_attention",
            "compressed_sparse_attention",
            "heavily_compressed_attention",
            "sliding_attention",
        ],
        "mlp_layer_types": ["hash_moe", "moe", "moe", "moe"],
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
        "partial_rotary_factor": 0.5,
    },
    "dots1": {"max_window_layers": 2},
    "dots3_note_text": {
        "layer_types": ["indexed_attention", "sliding_attention"] * 2,
        "per_layer_config": {1: _DOTS3_SLIDING, 3: _DOTS3_SLIDING},
        "head_dim": 32,
        "shared_experts_intermediate_size": 32,
    },
    "exaone4": {"sliding_window_pattern": 2},
    "exaone_moe": {"sliding_window_pattern": 2},
    "gemma3_text": {"layer_types": _SLIDING_FULL},
    "gemma3n_text": {
        "layer_types": _SLIDING_FULL,
        "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": VOCAB_SIZE,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 8,
        "intermediate_size": [96] * NUM_LAYERS,
    },
    "gemma4_text": {
        "layer_types": _SLIDING_FULL,
        "vocab_size_per_layer_input": VOCAB_SIZE,
        "hidden_size_per_layer_input": 8,
        "per_layer_config": {1: {"head_dim": 32}, 3: {"head_dim": 32}},
    },
    "gemma4_unified_text": {
        "layer_types": _SLIDING_FULL,
        "per_layer_config": {1: {"head_dim": 32}, 3: {"head_dim": 32}},
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granite_swa": {"layer_rope_theta": [10000.0, 20000.0, 30000.0, 40000.0]},
    "granitemoe_swa": {"layer_rope_theta": [10000.0, 20000.0, 30000.0, 40000.0]},
    "granitemoehybrid": {"layer_types": _LINEAR_FULL, "position_embedding_type": "rope"},
    "hunyuan_v1_moe": {"moe_topk": [1, 2, 1, 2]},
    "inkling2_text": {
        "layer_types": ["hybrid_sliding", "hybrid"] * 2,
        "unpadded_vocab_size": VOCAB_SIZE,
        "n_layers_per_attn_res_block": 2,
    },
    "inkling_text": {"local_layer_ids": [0, 2]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "kimi_linear": {"layer_types": _LINEAR_FULL, "q_lora_rank": None},
    "laguna": {"layer_types": _SLIDING_FULL, "num_attention_heads_per_layer": [4, 2, 4, 2]},
    "lfm2": {"layer_types": _CONV_FULL},
    "lfm2_moe": {"layer_types": _CONV_FULL},
    "lfm3": {"layer_types": ["conv", "full_attention", "sliding_attention", "full_attention"]},
    "llama4_text": {"interleave_moe_layer_step": 2},
    "mamba2": {"num_heads": 8, "expand": 2},
    "mellum": {"layer_types": _SLIDING_FULL},
    "mimo_v2_flash": {"layer_types": _SLIDING_FULL},
    "minimax": {"layer_types": _LINEAR_FULL},
    "minimax_m3_vl_text": {
        "layer_types": ["full_attention", "minimax_m3_sparse"] * 2,
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
        "dense_intermediate_size": 96,
        "index_block_size": 4,
        "index_topk_blocks": 2,
    },
    "ministral": {"layer_types": _SLIDING_FULL},
    "nemotron_h": {"layers_block_type": ["linear_attention", "full_attention", "moe", "mlp"]},
    "olmo3": {"layer_types": _SLIDING_FULL},
    "olmo_hybrid": {"layer_types": _LINEAR_FULL},
    "phi3": {"rope_parameters": _PLAIN_ROPE},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 2},
    "qwen2_moe": {"mlp_only_layers": [1]},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 2},
    "qwen3_5_moe_text": {"layer_types": _LINEAR_FULL, "rope_parameters": _MROPE},
    "qwen3_5_text": {"layer_types": _LINEAR_FULL, "rope_parameters": _MROPE},
    "qwen3_moe": {"mlp_only_layers": [1]},
    "qwen3_next": {"layer_types": _LINEAR_FULL, "mlp_only_layers": [0]},
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "indexed_attention"] * 2,
        "hc_count": 2,
        "hc_lowrank": 8,
        "ngram_vocab_size_base": 64,
        "make_ngram_vocab_size_divisible_by": 8,
        "split_ngram_parts": 4,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
    },
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "smollm3": {"no_rope_layers": [1, 1, 1, 0]},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_head_dim": 32,
        "attention_hidden_size": 128,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "num_mem_blocks": 1,
        "mamba_ngroups": 1,
        "n_mamba_heads": 8,
    },
    "zaya": {"num_experts_per_tok": 1},
}

# Causal-LM families of transformers 5.23 that `make_tiny` builds and that are decoders of one list of layers.
_FAMILIES = """
    afmoe apertus arcee aria_text axk1 axk2 bailing_hybrid bamba biogpt bitnet bloom codegen cohere cohere2
    cohere2_moe cohere_compass_text ctrl cwm dbrx deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 diffllama
    doge dots1 dots3_note_text ernie4_5 ernie4_5_moe exaone4 exaone_moe falcon falcon_h1 falcon_mamba
    flex_olmo flint gemma gemma2 gemma3_text gemma3n_text gemma4_text gemma4_unified_text glm glm4 glm4_moe
    glm4_moe_lite glm_moe_dsa gpt-sw3 gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gpt_oss gptj granite
    granite_swa granitemoe granitemoe_swa granitemoehybrid granitemoeshared helium hrm_text hunyuan_v1_dense
    hunyuan_v1_moe hy_v3 hy_v4 hyperclovax inkling2_text inkling_text internlm3 iquestcoder jais2 jamba jetmoe
    kimi_linear kolibri1 laguna lfm2 lfm2_moe lfm3 llama llama4_text longcat_flash mamba mamba2 mellum
    mimo_v2_flash minicpm3 minimax minimax_m2 minimax_m3_vl_text ministral ministral3 mistral mixtral
    modernbert-decoder mpt nanochat nemotron nemotron_h olmo olmo2 olmo3 olmo_hybrid olmoe openai-gpt opt
    persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next
    qwen4_exp_text recurrent_gemma rwkv seed_oss smollm3 solar_open stablelm starcoder2 vaultgemma xglm xlstm
    youtu zamba zamba2 zaya
"""
FAMILIES = tuple(_FAMILIES.split())


def tiny_config(model_type: str, **overrides: Any) -> Any:
    """The family's config object with every size shrunk; `overrides` win and must be fields of the class."""
    from transformers import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[model_type]
    defaults = {field.name: field.default for field in dataclasses.fields(config_class)}
    unknown = set(overrides) - set(defaults) - {"per_layer_config"}
    assert not unknown, f"{model_type} has no config field {sorted(unknown)}"
    optional = {"sliding_window", "q_lora_rank", "attention_chunk_size", "moe_latent_size", "n_inner"}
    sizes = {
        name: size
        for name, size in SIZES.items()
        if name in defaults and not (name in optional and defaults[name] is None)
    }
    if "kv_lora_rank" in defaults:
        sizes["num_key_value_heads"] = SIZES["num_attention_heads"]
    return config_class(**{**sizes, **SPECIAL.get(model_type, {}), **overrides})


def make_tiny(model_type: str, folder: Path, seed: int = 0, **overrides: Any) -> Path:
    """Write a random checkpoint of `model_type` (float32 safetensors, no tokenizer) and return its folder.

    Every one-dimensional tensor (norms, biases, gates) is moved off its initial value, so that a tensor that is lost,
    swapped or left at its initialisation shows in the logits. `overrides` are config fields.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        config = tiny_config(model_type, **overrides)
        with torch.device("meta"):  # counted before a byte of it exists
            skeleton = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        num_parameters = sum(parameter.numel() for parameter in skeleton.parameters())
        assert num_parameters < MAX_PARAMETERS, f"tiny {model_type} has {num_parameters:,} parameters"
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1 and parameter.is_floating_point():
                    parameter.add_(torch.randn_like(parameter) * 0.05)
        model.save_pretrained(folder)
    return Path(folder)


def tiny_tokenizer(folder: Path) -> Path:
    """Write a real fast tokenizer (byte-level BPE, no merges, 256 tokens) beside a checkpoint and return its folder.

    Ids 0..3 are <pad>, <s>, </s> and <unk>; the other 252 are the bytes 0x00 to 0xFB, and no UTF-8 text holds 0xFC to
    0xFF, so that every text survives encode and decode.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set("\xfc\xfd\xfe\xff"))
    vocabulary = {token: index for index, token in enumerate([*special, *alphabet])}
    assert len(vocabulary) == VOCAB_SIZE
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return Path(folder)


def post_process(tokenizer, template: str):
    """A copy of `tokenizer` that puts special tokens around every text, as `template` says: "<s> $A </s>"."""
    from tokenizers.processors import TemplateProcessing

    copied = copy.deepcopy(tokenizer)
    special = [(token, copied.convert_tokens_to_ids(token)) for token in set(template.split()) - {"$A"}]
    copied.backend_tokenizer.post_processor = TemplateProcessing(template, special_tokens=special)
    return copied
