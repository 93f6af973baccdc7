"""olmo_hybrid as a target: attention as in Olmo 2, norms behind it, beside new layers with gated delta nets.

Its layers with a delta net have their norms before mixer and network, so that no layer of Olmo 2 can become one.
"""

from __future__ import annotations

from typing import Any

from hybridizer.families.names import Shapes
from hybridizer.families.target import (
    Facts,
    LayerMap,
    Sizes,
    Target,
    bias_in_layer,
    check_heads,
    common_config,
    copied,
    delta_net_of,
    head_of_width,
    head_size,
    keep_with_biases,
    suggest_heads,
)

_NORMS = ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")
_NETWORK = ("mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight")


def _map_layer(facts: Facts, shapes: Shapes) -> LayerMap:
    attention = keep_with_biases("self_attn.", ("q_proj", "k_proj", "v_proj", "o_proj"), shapes)
    return LayerMap(
        {**attention, **copied("self_attn.q_norm.weight", "self_attn.k_norm.weight")}, copied(*_NORMS, *_NETWORK)
    )


def _write_config(facts: Facts, sizes: Sizes) -> dict[str, Any]:
    return {
        **common_config(facts, "olmo_hybrid", "OlmoHybridForCausalLM"),
        **head_size(facts),
        "attention_bias": bool(facts.settings("attention_bias")),
        **delta_net_of(facts, sizes).config(),
        "linear_allow_neg_eigval": True,
    }


def _mixer_shapes(facts: Facts, sizes: Sizes) -> Shapes:
    heads, values, keys = sizes["heads"], sizes["heads"] * sizes["head_dim"], sizes["groups"] * sizes["state"]
    rows = {"q": keys, "k": keys, "v": values}
    return {
        **{f"linear_attn.{name}_proj.weight": (count, facts.hidden) for name, count in rows.items()},
        **{f"linear_attn.{name}_conv1d.weight": (count, 1, sizes["conv"]) for name, count in rows.items()},
        "linear_attn.a_proj.weight": (heads, facts.hidden),
        "linear_attn.b_proj.weight": (heads, facts.hidden),
        "linear_attn.g_proj.weight": (values, facts.hidden),
        "linear_attn.A_log": (heads,),
        "linear_attn.dt_bias": (heads,),
        "linear_attn.o_norm.weight": (sizes["head_dim"],),
        "linear_attn.o_proj.weight": (facts.hidden, values),
    }


def _new_block(facts: Facts) -> Shapes:
    return {
        "attention_layer_norm.weight": (facts.hidden,),
        "feedforward_layer_norm.weight": (facts.hidden,),
        "mlp.gate_proj.weight": (facts.width, facts.hidden),
        "mlp.up_proj.weight": (facts.width, facts.hidden),
        "mlp.down_proj.weight": (facts.hidden, facts.width),
    }


OLMO_HYBRID = Target(
    family="olmo_hybrid",
    architecture="OlmoHybridForCausalLM",
    donors=("olmo2", "olmo3"),
    mixers={"gated_delta_net": "linear_attention"},
    attention="full_attention",
    outputs={"gated_delta_net": ("linear_attn.o_proj.weight",), "network": ("mlp.down_proj.weight",)},
    by_llama=lambda facts, layers, config: ("no", "it does not know the family"),
    map_layer=_map_layer,
    write_config=_write_config,
    suggest_sizes=lambda facts: {**suggest_heads(facts), "conv": 4},
    check_sizes=check_heads,
    mixer_shapes=_mixer_shapes,
    renamed=("post_attention_layernorm.weight",),  # of layers with attention: saved as feedforward_layer_norm
    no_swap="its layers with a delta net have norms before mixer and network, the donors' behind them",
    new_block=_new_block,
    not_by_vllm=lambda facts: head_of_width(facts) or bias_in_layer(facts),
)
