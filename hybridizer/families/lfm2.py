"""lfm2 as a target: attention with norms on queries and keys beside gated short convolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hybridizer.families.mixer_shapes import ShortConvShape
from hybridizer.families.names import Shapes
from hybridizer.families.target import (
    Answer,
    Facts,
    LayerMap,
    Made,
    Sizes,
    Target,
    check_conv,
    common_config,
    head_of_width,
    head_size,
)

# Its names and those of Qwen3.
_ATTENTION = {
    **{f"self_attn.{name}_proj.weight": f"self_attn.{name}_proj.weight" for name in "qkv"},
    "self_attn.out_proj.weight": "self_attn.o_proj.weight",
    "self_attn.q_layernorm.weight": "self_attn.q_norm.weight",
    "self_attn.k_layernorm.weight": "self_attn.k_norm.weight",
}
_BLOCK = {
    "operator_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "feed_forward.w1.weight": "mlp.gate_proj.weight",
    "feed_forward.w3.weight": "mlp.up_proj.weight",
    "feed_forward.w2.weight": "mlp.down_proj.weight",
}


def _map_layer(facts: Facts, shapes: Shapes) -> LayerMap:
    attention = {ours: Made("copy", (theirs,)) for ours, theirs in _ATTENTION.items()}
    return LayerMap(attention, {ours: Made("copy", (theirs,)) for ours, theirs in _BLOCK.items()})


def _write_config(facts: Facts, sizes: Sizes) -> dict[str, Any]:
    return {
        **common_config(facts, "lfm2", "Lfm2ForCausalLM"),
        **head_size(facts),
        "norm_eps": facts.settings("rms_norm_eps"),
        **_shape(facts, sizes).config(),
        # What vLLM and llama.cpp read in place of `hidden_size` and `intermediate_size`.
        "conv_dim": facts.hidden,
        "conv_dim_out": facts.hidden,
        "block_dim": facts.hidden,
        "block_ff_dim": facts.width,
        "block_auto_adjust_ff_dim": False,
        "block_ffn_dim_multiplier": 1.0,
        "block_multiple_of": 256,
    }


def _shape(facts: Facts, sizes: Sizes) -> ShortConvShape:
    return ShortConvShape(facts.hidden, sizes["conv"])


def _own_head(facts: Facts) -> str | None:
    tied = facts.structure.tied
    return None if tied else "it takes the embedding as the head, and the donor has a head of its own"


def _by_llama(facts: Facts, layers: Sequence[str], config: Mapping[str, Any]) -> tuple[Answer, str]:
    if problem := head_of_width(facts):
        return "no", problem
    return "yes", "11434 computed the same perplexity"


LFM2 = Target(
    family="lfm2",
    architecture="Lfm2ForCausalLM",
    donors=("qwen3",),
    mixers={"short_conv": "conv"},
    attention="full_attention",
    outputs={"short_conv": ("conv.out_proj.weight",), "network": ("feed_forward.w2.weight",)},
    by_llama=_by_llama,
    map_layer=_map_layer,
    write_config=_write_config,
    suggest_sizes=lambda facts: {"conv": 3},
    check_sizes=check_conv,
    mixer_shapes=lambda facts, sizes: _shape(facts, sizes).tensor_shapes(),
    derived=("short_conv",),
    not_by_vllm=lambda facts: head_of_width(facts) or _own_head(facts),
    ran_vllm=True,
    final_norm="model.embedding_norm.weight",
)
