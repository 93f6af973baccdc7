"""falcon_h1 as a target: every layer has attention, and a Mamba-2 branch beside it whose output is added."""

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
    check_heads,
    common_config,
    copied,
    head_size,
    keep_with_biases,
    served_by_vllm,
    suggest_heads,
)


def _map_layer(facts: Facts, shapes: Shapes) -> LayerMap:
    block = {
        **copied("input_layernorm.weight"),
        "pre_ff_layernorm.weight": Made("copy", ("post_attention_layernorm.weight",)),
    }
    network = keep_with_biases("mlp.", ("gate_proj", "up_proj", "down_proj"), shapes)
    block |= {suffix.replace("mlp.", "feed_forward."): made for suffix, made in network.items()}
    return LayerMap(keep_with_biases("self_attn.", ("q_proj", "k_proj", "v_proj", "o_proj"), shapes), block)


def _write_config(facts: Facts, sizes: Sizes) -> dict[str, Any]:
    layer = facts.structure.layers[0]
    return {
        **common_config(facts, "falcon_h1", "FalconH1ForCausalLM"),
        **head_size(facts),
        "attention_bias": any(suffix.startswith("self_attn.") and suffix.endswith(".bias") for suffix in layer),
        "mlp_bias": any(suffix.startswith("mlp.") and suffix.endswith(".bias") for suffix in layer),
        "projectors_bias": False,
        "mamba_d_ssm": sizes["heads"] * sizes["head_dim"],
        "mamba_n_heads": sizes["heads"],
        "mamba_d_head": sizes["head_dim"],
        "mamba_n_groups": sizes["groups"],
        "mamba_d_state": sizes["state"],
        "mamba_d_conv": sizes["conv"],
        "mamba_chunk_size": sizes["chunk"],
        "mamba_conv_bias": True,
        "mamba_proj_bias": False,
        "mamba_rms_norm": False,
        "mamba_norm_before_gate": False,
        **{f"{name}_multiplier": 1.0 for name in _MULTIPLIERS},
        "mlp_multipliers": [1.0, 1.0],
        "ssm_multipliers": [1.0] * 5,
    }


_MULTIPLIERS = ("lm_head", "embedding", "key", "attention_in", "attention_out", "ssm_in", "ssm_out")


def _check_sizes(facts: Facts, sizes: Sizes) -> Iterator[str]:
    return check_heads(sizes)


def _mixer_shapes(facts: Facts, sizes: Sizes) -> Shapes:
    heads, inner = sizes["heads"], sizes["heads"] * sizes["head_dim"]
    mixed = inner + 2 * sizes["groups"] * sizes["state"]
    return {
        "mamba.in_proj.weight": (inner + mixed + heads, facts.hidden),
        "mamba.conv1d.weight": (mixed, 1, sizes["conv"]),
        "mamba.conv1d.bias": (mixed,),
        "mamba.dt_bias": (heads,),
        "mamba.A_log": (heads,),
        "mamba.D": (heads,),
        "mamba.out_proj.weight": (facts.hidden, inner),
    }


def _served_by(facts: Facts, layers: Sequence[str]) -> tuple[Served, ...]:
    return (
        Served("transformers", "yes", "5.23, as FalconH1ForCausalLM"),
        served_by_vllm(facts, "FalconH1ForCausalLM"),
        Served("llama.cpp", "untried", "its converter knows FalconH1ForCausalLM"),
    )


FALCON_H1 = Target(
    family="falcon_h1",
    architecture="FalconH1ForCausalLM",
    donors=("llama", "mistral", "qwen2"),
    mixers={"parallel mamba2": "hybrid"},
    attention="hybrid",
    conditions=(FULL_ATTENTION, ONE_ROPE, SILU),
    outputs={"parallel mamba2": ("mamba.out_proj.weight",), "network": ("feed_forward.down_proj.weight",)},
    served_by=_served_by,
    map_layer=_map_layer,
    map_norm=lambda name: copied(name)[name],
    write_config=_write_config,
    suggest_sizes=lambda facts: {**suggest_heads(facts), "conv": 4, "chunk": 64},
    check_sizes=_check_sizes,
    mixer_shapes=_mixer_shapes,
    final_norm="model.final_layernorm.weight",
    branch="parallel mamba2",
)
