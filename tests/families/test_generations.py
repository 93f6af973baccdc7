"""A config written by transformers 4 and the same config saved again by transformers 5 describe the same layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from hybridizer.families.compatibility import check_compatible
from hybridizer.families.reading import read_structure
from hybridizer.families.structure import Source
from support.made_up import llama_shapes

# The keys that well-known checkpoints published before transformers 5 carry, with their own numbers.
PUBLISHED: dict[str, dict[str, Any]] = {
    "smollm2": {
        "model_type": "llama", "attention_bias": False, "attention_dropout": 0.0, "hidden_act": "silu",
        "hidden_size": 576, "initializer_range": 0.041666666666666664, "intermediate_size": 1536, 
        "is_llama_config": True,
        "max_position_embeddings": 8192, "mlp_bias": False, "num_attention_heads": 9, "num_hidden_layers": 30,
        "num_key_value_heads": 3, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": False,
        "rope_scaling": None, "rope_theta": 100000, "tie_word_embeddings": True, "vocab_size": 49152,
    },
    "llama-3.1": {
        "model_type": "llama", "attention_bias": False, "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": False, "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3",
        },
        "rope_theta": 500000.0, "tie_word_embeddings": False, "vocab_size": 128256,
    },
    "qwen2.5": {
        "model_type": "qwen2", "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": 896,
        "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 24,
        "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True, "use_mrope": False,
        "use_sliding_window": False, "vocab_size": 151936,
    },
    "qwen3": {
        "model_type": "qwen3", "attention_bias": False, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024,
        "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28,
        "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
        "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True,
        "use_sliding_window": False, "vocab_size": 151936,
    },
    "qwen3-moe": {
        "model_type": "qwen3_moe", "attention_bias": False, "decoder_sparse_step": 1, "head_dim": 128,
        "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 6144, "max_position_embeddings": 40960,
        "max_window_layers": 48, "mlp_only_layers": [], "moe_intermediate_size": 768, "norm_topk_prob": True,
        "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48,
        "num_key_value_heads": 4, "output_router_logits": False, "rms_norm_eps": 1e-06, "rope_scaling": None,
        "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001, "sliding_window": None, "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "gemma-3": {
        "model_type": "gemma3_text", "attention_bias": False, "attn_logit_softcapping": None,
        "final_logit_softcapping": None, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 1152, "intermediate_size": 6912, "max_position_embeddings": 32768, "num_attention_heads": 4,
        "num_hidden_layers": 26, "num_key_value_heads": 1, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512,
        "sliding_window_pattern": 6, "vocab_size": 262144,
    },
    "gemma-2": {
        "model_type": "gemma2", "attention_bias": False, "attn_logit_softcapping": 50.0,
        "cache_implementation": "hybrid",
        "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "intermediate_size": 9216,
        "max_position_embeddings": 8192, "num_attention_heads": 8, "num_hidden_layers": 26, "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096,
        "vocab_size": 256000,
    },
    "mistral-0.1": {
        "model_type": "mistral", "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
        "max_position_embeddings": 32768, "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False,
        "vocab_size": 32000,
    },
    "phi-3-mini-128k": {
        "model_type": "phi3", "attention_bias": False, "embd_pdrop": 0.0, "hidden_act": "silu", "hidden_size": 128,
        "intermediate_size": 512, "max_position_embeddings": 131072, "num_attention_heads": 8, "num_hidden_layers": 4,
        "num_key_value_heads": 8, "original_max_position_embeddings": 4096, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05,
        "rope_scaling": {"long_factor": [1.0] * 8, "short_factor": [1.5] * 8, "type": "longrope"},
        "rope_theta": 10000.0,
        "sliding_window": 262144, "tie_word_embeddings": False, "vocab_size": 32064,
    },
    "pythia": {
        "model_type": "gpt_neox", "hidden_act": "gelu", "hidden_size": 768, "initializer_range": 0.02,
        "intermediate_size": 3072, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048, "num_attention_heads": 12,
        "num_hidden_layers": 12, "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False,
        "use_parallel_residual": True, "vocab_size": 50304,
    },
    "gpt2": {
        "model_type": "gpt2", "activation_function": "gelu_new", "attn_pdrop": 0.1, "embd_pdrop": 0.1, "n_ctx": 1024,
        "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "layer_norm_epsilon": 1e-05,
        "resid_pdrop": 0.1, "summary_type": "cls_index", "vocab_size": 50257,
    },
    "granite-4-h": {
        "model_type": "granitemoehybrid", "attention_bias": False, "attention_multiplier": 0.015625,
        "embedding_multiplier": 12, "hidden_size": 64, "intermediate_size": 128, "logits_scaling": 3,
        "layer_types": ["mamba", "mamba", "attention", "mamba"], "mamba_chunk_size": 256, "mamba_conv_bias": True,
        "mamba_d_conv": 4, "mamba_d_head": 16, "mamba_d_state": 128, "mamba_expand": 2, "mamba_n_groups": 1,
        "mamba_n_heads": 8, "mamba_proj_bias": False, "num_attention_heads": 4, "num_experts_per_tok": 0,
        "num_hidden_layers": 4, "num_key_value_heads": 4, "num_local_experts": 0, "position_embedding_type": "nope",
        "residual_multiplier": 0.246, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000,
        "shared_intermediate_size": 128, "tie_word_embeddings": True, "vocab_size": 100352,
    },
    "lfm2": {
        "model_type": "lfm2", "block_auto_adjust_ff_dim": True, "block_dim": 64, "block_ff_dim": 192,
        "block_ffn_dim_multiplier": 1.0, "block_mlp_init_scale": 1.0, "block_multiple_of": 256, "block_norm_eps": 1e-05,
        "block_out_init_scale": 1.0, "block_use_swiglu": True, "block_use_xavier_init": True, "conv_L_cache": 3,
        "conv_bias": False, "conv_dim": 64, "conv_dim_out": 64, "conv_use_xavier_init": True,
        "full_attn_idxs": [1, 3], "hidden_size": 64, "max_position_embeddings": 128000, "norm_eps": 1e-05,
        "num_attention_heads": 4, "num_heads": 4, "num_hidden_layers": 4, "num_key_value_heads": 2,
        "rope_theta": 1000000.0, "use_pos_enc": True, "vocab_size": 65536,
    },
    "qwen3-next": {
        "model_type": "qwen3_next", "attention_bias": False, "decoder_sparse_step": 1, "full_attention_interval": 4,
        "head_dim": 256, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 5120,
        "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_num_key_heads": 16,
        "linear_num_value_heads": 32, "linear_value_head_dim": 128, "max_position_embeddings": 262144,
        "mlp_only_layers": [], "moe_intermediate_size": 512, "norm_topk_prob": True, "num_attention_heads": 16,
        "num_experts": 512, "num_experts_per_tok": 10, "num_hidden_layers": 48, "num_key_value_heads": 2,
        "partial_rotary_factor": 0.25, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 10000000,
        "shared_expert_intermediate_size": 512, "vocab_size": 151936,
    },
    "nemotron-h": {
        "model_type": "nemotron_h", "attention_bias": False, "attention_head_dim": 128, "chunk_size": 256,
        "conv_kernel": 4, "expand": 2, "head_dim": 128, "hidden_size": 256, "hybrid_override_pattern": "M-M*",
        "intermediate_size": 512, "layer_norm_epsilon": 1e-05, "mamba_head_dim": 64, "mamba_hidden_act": "silu",
        "mamba_num_heads": 8, "mamba_proj_bias": False, "mlp_bias": False, "mlp_hidden_act": "relu2", "n_groups": 8,
        "num_attention_heads": 4, "num_hidden_layers": 4, "num_key_value_heads": 2, "rescale_prenorm_residual": True,
        "residual_in_fp32": False, "ssm_state_size": 128, "time_step_limit": [0.0, float("inf")], "use_bias": False,
        "use_conv_bias": True, "use_mamba_kernels": True, "vocab_size": 131072,
    },
    "deepseek-v3": {
        "model_type": "deepseek_v3", "attention_bias": False, "ep_size": 1, "first_k_dense_replace": 1,
        "hidden_act": "silu", "hidden_size": 128, "intermediate_size": 256, "kv_lora_rank": 16,
        "max_position_embeddings": 163840, "moe_intermediate_size": 32, "moe_layer_freq": 1, "n_group": 2,
        "n_routed_experts": 8, "n_shared_experts": 1, "norm_topk_prob": True, "num_attention_heads": 8,
        "num_experts_per_tok": 2, "num_hidden_layers": 4, "num_key_value_heads": 8, "num_nextn_predict_layers": 1,
        "q_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "rms_norm_eps": 1e-06,
        "rope_scaling": {
            "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4096, "type": "yarn",
        },
        "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "topk_group": 2,
        "topk_method": "noaux_tc", "v_head_dim": 16, "vocab_size": 129280,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.filterwarnings("ignore")
def test_donors_with_configs_of_both_generations_are_compatible(name: str, tmp_path: Path) -> None:
    old = PUBLISHED[name]
    CONFIG_MAPPING[old["model_type"]].from_dict(dict(old)).save_pretrained(tmp_path)
    new = json.loads((tmp_path / "config.json").read_text())
    assert new["transformers_version"].startswith("5.")
    num_layers = old.get("num_hidden_layers") or old["n_layer"]
    shapes = llama_shapes(num_layers)
    host, donor = read_structure(old, shapes, "old"), read_structure(new, shapes, "new")
    assert host.traits == donor.traits
    assert [str(problem) for problem in check_compatible(host, [Source(donor, 0)])] == []
    assert [str(problem) for problem in check_compatible(donor, [Source(host, 0)])] == []
