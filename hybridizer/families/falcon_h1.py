"""falcon_h1 as a target: every layer has attention, and a Mamba-2 branch beside it whose output is added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    head_size,
    keep_with_biases,
    mamba2_of,
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
    layer, mixer = facts.structure.layers[0], mamba2_of(facts, sizes)
    return {
        **common_config(facts, "falcon_h1", "FalconH1ForCausalLM"),
        **head_size(facts),
        "attention_bias": any(suffix.startswith("self_attn.") and suffix.endswith(".bias") for suffix in layer),
        "mlp_bias": any(suffix.startswith("mlp.") and suffix.endswith(".bias") for suffix in layer),
        "projectors_bias": False,
        "mamba_d_ssm": mixer.inner_size,
        **{key: value for key, value in mixer.config().items() if key != "mamba_expand"},
        "mamba_rms_norm": False,
        "mamba_norm_before_gate": False,
        **{f"{name}_multiplier": 1.0 for name in _MULTIPLIERS},
        "mlp_multipliers": [1.0, 1.0],
        "ssm_multipliers": [1.0] * 5,
    }


_MULTIPLIERS = ("lm_head", "embedding", "key", "attention_in", "attention_out", "ssm_in", "ssm_out")


def _mixer_shapes(facts: Facts, sizes: Sizes) -> Shapes:
    """Those of Mamba-2 without its norm."""
    shapes = mamba2_of(facts, sizes).tensor_shapes()
    return {name: shape for name, shape in shapes.items() if name != "mamba.norm.weight"}


def _by_llama(facts: Facts, layers: Sequence[str], config: Mapping[str, Any]) -> tuple[Answer, str]:
    if "self_attn.o_proj.bias" in facts.structure.layers[0]:
        return "no", "it does not add 'self_attn.o_proj.bias'"
    if bias_in_layer(facts):
        return "untried", "its converter knows FalconH1ForCausalLM, and biases were not run"
    return "with", "`hybridize convert`: the converter stops where the config does not give the size of heads"


FALCON_H1 = Target(
    family="falcon_h1",
    architecture="FalconH1ForCausalLM",
    donors=("llama", "mistral", "qwen2"),
    mixers={"parallel mamba2": "hybrid"},
    attention="hybrid",
    outputs={"parallel mamba2": ("mamba.out_proj.weight",), "network": ("feed_forward.down_proj.weight",)},
    by_llama=_by_llama,
    map_layer=_map_layer,
    write_config=_write_config,
    suggest_sizes=lambda facts: {**suggest_heads(facts), "conv": 4, "chunk": 64},
    check_sizes=check_heads,
    mixer_shapes=_mixer_shapes,
    final_norm="model.final_layernorm.weight",
    branch="parallel mamba2",
    not_by_vllm=bias_in_layer,
    ran_vllm=True,
)
