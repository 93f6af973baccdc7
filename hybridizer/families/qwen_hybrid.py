"""qwen3_5_text and qwen3_next as targets: attention with an output gate beside gated delta nets.

Their attention has what Qwen3's has not, a gate for each value: zero rows in the query matrix make every gate a half,
and twice the output matrix undoes it. Their norms multiply by one plus the weight. Both are exact in float32 for norm
weights from a half to two; below that, and in bfloat16, one less than a weight may be rounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hybridizer.families.names import Shapes
from hybridizer.families.target import (
    Answer,
    Facts,
    LayerMap,
    Made,
    Sizes,
    Target,
    bias_in_layer,
    check_heads,
    common_config,
    copied,
    delta_net_of,
    suggest_heads,
)

_NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight")
_NETWORK = ("mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight")


def _less_one(name: str) -> Made:
    return Made("affine", (name,), shift=-1.0)


def _map_layer(facts: Facts, shapes: Shapes) -> LayerMap:
    biases = [f"self_attn.{name}_proj.bias" for name in "kvo" if f"self_attn.{name}_proj.bias" in shapes]
    attention = {
        "self_attn.q_proj.weight": Made("spread", ("self_attn.q_proj.weight",), rows=facts.head_dim),
        **copied("self_attn.k_proj.weight", "self_attn.v_proj.weight", *biases),
        "self_attn.o_proj.weight": Made("affine", ("self_attn.o_proj.weight",), factor=2.0),
        **{name: _less_one(name) for name in ("self_attn.q_norm.weight", "self_attn.k_norm.weight")},
    }
    if "self_attn.q_proj.bias" in shapes:
        attention["self_attn.q_proj.bias"] = Made("spread", ("self_attn.q_proj.bias",), rows=facts.head_dim)
    return LayerMap(attention, {**{name: _less_one(name) for name in _NORMS}, **copied(*_NETWORK)})


def _write_config(facts: Facts, sizes: Sizes, family: str, architecture: str) -> dict[str, Any]:
    config = common_config(facts, family, architecture)
    return {
        **config,
        "rope_parameters": {**config["rope_parameters"], "partial_rotary_factor": 1.0},
        "partial_rotary_factor": 1.0,
        "attention_bias": bool(facts.settings("attention_bias")),
        "head_dim": facts.head_dim,
        **delta_net_of(facts, sizes).config(),
    }


def _shapes_of_3_5(facts: Facts, sizes: Sizes) -> Shapes:
    return delta_net_of(facts, sizes).tensor_shapes()


def _shapes_of_next(facts: Facts, sizes: Sizes) -> Shapes:
    mixer = delta_net_of(facts, sizes)
    joined = {
        "linear_attn.in_proj_qkvz.weight": (mixer.conv_size + mixer.inner_size, facts.hidden),
        "linear_attn.in_proj_ba.weight": (2 * mixer.num_heads, facts.hidden),
    }
    rest = {name: shape for name, shape in mixer.tensor_shapes().items() if ".in_proj_" not in name}
    return {**joined, **rest}


def _by_llama(facts: Facts, layers: Sequence[str], config: Mapping[str, Any]) -> tuple[Answer, str]:
    if problem := bias_in_layer(facts):
        return "no", problem
    keys, values = config["linear_key_head_dim"], config["linear_value_head_dim"]
    if keys != values:
        return "no", f"it takes values as wide as keys, and these have `head_dim` {values} and `state` {keys}"
    return "with", "`hybridize convert`: without --no-mtp the converter expects another head"


_COMMON = Target(
    family="qwen3_5_text",
    architecture="Qwen3_5ForCausalLM",
    donors=("qwen3",),
    mixers={"gated_delta_net": "linear_attention"},
    attention="full_attention",
    outputs={"gated_delta_net": ("linear_attn.out_proj.weight",), "network": ("mlp.down_proj.weight",)},
    by_llama=_by_llama,
    map_layer=_map_layer,
    map_norm=_less_one,
    write_config=lambda facts, sizes: _write_config(facts, sizes, "qwen3_5_text", "Qwen3_5ForCausalLM"),
    suggest_sizes=lambda facts: {**suggest_heads(facts), "conv": 4},
    check_sizes=check_heads,
    mixer_shapes=_shapes_of_3_5,
    derived=("gated_delta_net",),
    bit_exact=False,
    not_by_vllm=bias_in_layer,
    ran_vllm=True,
)
QWEN3_5 = _COMMON
QWEN3_NEXT = replace(
    _COMMON,
    family="qwen3_next",
    architecture="Qwen3NextForCausalLM",
    by_llama=lambda facts, layers, config: ("no", "it takes a mixture of experts alone in the place of the network"),
    not_by_vllm=lambda facts: "it takes a model with a mixture of experts alone",
    write_config=lambda facts, sizes: {
        **_write_config(facts, sizes, "qwen3_next", "Qwen3NextForCausalLM"),
        "num_experts": 0,
        "num_experts_per_tok": 0,
        "router_aux_loss_coef": 0.0,
    },
    mixer_shapes=_shapes_of_next,
    derived=(),
)
