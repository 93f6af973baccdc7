"""Tiny random checkpoints of every causal-LM family, and a tiny real tokenizer: the fixtures all tests share.

`make_tiny` shrinks the family's own config class field by field: a size that the class does not declare is not set, so
that nothing is misspelt in silence, and every checkpoint asserts its own parameter count.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VOCAB_SIZE = 256
MAX_PARAMETERS = 1_000_000
NUM_LAYERS = 4

_LINEAR_FULL = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
_CONV_FULL = ["conv", "full_attention", "conv", "full_attention"]
_MROPE = {
    "rope_type": "default",
    "rope_theta": 10000.0,
    "mrope_section": [1, 1, 0],
    "partial_rotary_factor": 0.25,
    "mrope_interleaved": True,
}

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
    "conv_L_cache": 3, "block_auto_adjust_ff_dim": False, "use_mem_rank": 8, "adapter_rank": 8, "dim_model_base": 64,
}  # fmt: skip

# What a family needs beyond its sizes, chosen so that every kind of layer occurs and neighbours differ.
SPECIAL: Mapping[str, Mapping[str, Any]] = {
    "bailing_hybrid": {"layer_types": _LINEAR_FULL},
    "bamba": {"attn_layer_indices": [1, 3]},
    "granitemoehybrid": {"layer_types": _LINEAR_FULL, "position_embedding_type": "rope"},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "kimi_linear": {"layer_types": _LINEAR_FULL},
    "lfm2": {"layer_types": _CONV_FULL},
    "lfm2_moe": {"layer_types": _CONV_FULL},
    "lfm3": {"layer_types": ["conv", "full_attention", "sliding_attention", "full_attention"]},
    "mamba2": {"num_heads": 8, "expand": 2},
    "minimax": {"layer_types": _LINEAR_FULL},
    "nemotron_h": {"layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp"]},
    "olmo_hybrid": {"layer_types": _LINEAR_FULL},
    "phi3": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "qwen3_5_moe_text": {"layer_types": _LINEAR_FULL, "rope_parameters": _MROPE},
    "qwen3_5_text": {"layer_types": _LINEAR_FULL, "rope_parameters": _MROPE},
    "qwen3_next": {"layer_types": _LINEAR_FULL},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "smollm3": {"no_rope_layers": [1, 1, 1, 0]},
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "num_mem_blocks": 1,
        "mamba_ngroups": 1,
        "n_mamba_heads": 8,
    },
}


def tiny_config(model_type: str, **overrides: Any) -> Any:
    """The family's config object with every size shrunk; `overrides` win and must be fields of the class."""
    from transformers import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[model_type]
    defaults = {field.name: field.default for field in dataclasses.fields(config_class)}
    unknown = set(overrides) - set(defaults)
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
