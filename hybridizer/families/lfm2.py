"""lfm2 as a target: attention with norms on queries and keys beside gated short convolutions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hybridizer.families.names import Shapes
from hybridizer.families.target import (
    FULL_ATTENTION,
    ONE_ROPE,
    SILU,
    Facts,
    LayerMap,
    Made,
    Served,
    Sizes,
    Target,
    check_conv,
    common_config,
    copied,
    head_size,
    served_by_vllm,
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
        "conv_L_cache": sizes["conv"],
        "conv_bias": False,
        # What vLLM and llama.cpp read in place of `hidden_size` and `intermediate_size`.
        "conv_dim": facts.hidden,
        "conv_dim_out": facts.hidden,
        "block_dim": facts.hidden,
        "block_ff_dim": facts.width,
        "block_auto_adjust_ff_dim": False,
        "block_ffn_dim_multiplier": 1.0,
        "block_multiple_of": 256,
    }


def _check_sizes(facts: Facts, sizes: Sizes) -> Iterator[str]:
    return check_conv(sizes)


def _mixer_shapes(facts: Facts, sizes: Sizes) -> Shapes:
    return {
        "conv.in_proj.weight": (3 * facts.hidden, facts.hidden),
        "conv.conv.weight": (facts.hidden, 1, sizes["conv"]),
        "conv.out_proj.weight": (facts.hidden, facts.hidden),
    }


def _served_by(facts: Facts, layers: Sequence[str]) -> tuple[Served, ...]:
    return (
        Served("transformers", "yes", "5.23, as Lfm2ForCausalLM"),
        served_by_vllm(facts, "Lfm2ForCausalLM"),
        Served("llama.cpp", "untried", "its converter knows Lfm2ForCausalLM"),
    )


LFM2 = Target(
    family="lfm2",
    architecture="Lfm2ForCausalLM",
    donors=("qwen3",),
    mixers={"short_conv": "conv"},
    attention="full_attention",
    conditions=(FULL_ATTENTION, ONE_ROPE, SILU),
    outputs={"short_conv": ("conv.out_proj.weight",), "network": ("feed_forward.w2.weight",)},
    served_by=_served_by,
    map_layer=_map_layer,
    map_norm=lambda name: copied(name)[name],
    write_config=_write_config,
    suggest_sizes=lambda facts: {"conv": 3},
    check_sizes=_check_sizes,
    mixer_shapes=_mixer_shapes,
    derived=("short_conv",),
    final_norm="model.embedding_norm.weight",
)
