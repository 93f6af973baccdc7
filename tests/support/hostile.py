"""Config keys with any values, for tests that must end in a result or in a refusal."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
FAMILIES = (
    *("llama", "qwen2", "qwen2_moe", "gemma3_text", "nemotron_h", "jamba", "kimi_linear", "smollm3", "llama4_text"),
    *("glm_moe_dsa", "deepseek_v4", "olmo3", "modernbert-decoder", "dots3_note_text", "mimo_v2_flash", "longcat_flash"),
    *("gpt_neo", "hunyuan_v1_moe", "minicpm3", "ernie4_5_moe", "exaone4", "recurrent_gemma", "granite_swa", "laguna"),
)
_KEYS = """
    layer_types mlp_layer_types num_hidden_layers n_layer max_window_layers sliding_window sliding_window_pattern
    mlp_only_layers decoder_sparse_step num_experts hybrid_override_pattern layers_block_type attn_layer_period
    attn_layer_offset linear_attn_config no_rope_layers no_rope_layer_interval moe_layers attention_types
    attention_layers moe_topk scale_depth moe_layer_end_index block_types layer_rope_theta per_layer_config
    num_attention_heads_per_layer num_nextn_predict_layers text_config tie_word_embeddings architectures vocab_size
    hidden_size rope_parameters rope_scaling rope_theta partial_rotary_factor index_topk_pattern index_topk_freq
    compress_ratios head_dim num_attention_heads max_position_embeddings quantization_config moe_layer_freq
    first_k_dense_replace use_sliding_window interleave_moe_layer_step
"""


def hostile_changes(max_keys: int) -> st.SearchStrategy[dict[str, Any]]:
    """Up to `max_keys` keys that affect layers, each with any JSON value."""
    return st.dictionaries(st.sampled_from(_KEYS.split()), _JSON, max_size=max_keys)
