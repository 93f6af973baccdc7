"""granitemoehybrid as a target: attention with rotary positions beside Mamba-2, in blocks with two norms and SwiGLU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hybridizer.families.names import Shapes
from hybridizer.families.target import (
    Answer,
    Facts,
    LayerMap,
    Made,
    Sizes,
    Target,
    check_heads,
    common_config,
    copied,
    head_of_width,
    head_size,
    keep_with_biases,
    mamba2_of,
    suggest_heads,
)

_NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight")


def _map_layer(facts: Facts, shapes: Shapes) -> LayerMap:
    block = copied(*_NORMS)
    block["shared_mlp.input_linear.weight"] = Made("join", ("mlp.gate_proj.weight", "mlp.up_proj.weight"))
    block["shared_mlp.output_linear.weight"] = Made("copy", ("mlp.down_proj.weight",))
    return LayerMap(keep_with_biases("self_attn.", ("q_proj", "k_proj", "v_proj", "o_proj"), shapes), block)


def _write_config(facts: Facts, sizes: Sizes) -> dict[str, Any]:
    # A granite donor has multipliers; in the other families they are one, and the scale is that of every attention.
    scale = facts.settings("attention_multiplier") if facts.structure.text_family == "granite" else None
    layer = facts.structure.layers[0]
    return {
        **common_config(facts, "granitemoehybrid", "GraniteMoeHybridForCausalLM"),
        "attention_bias": any(suffix.startswith("self_attn.") and suffix.endswith(".bias") for suffix in layer),
        "attention_multiplier": facts.head_dim**-0.5 if scale is None else scale,
        "embedding_multiplier": facts.structure.text_config.get("embedding_multiplier", 1.0),
        "logits_scaling": facts.structure.text_config.get("logits_scaling", 1.0),
        "residual_multiplier": facts.structure.text_config.get("residual_multiplier", 1.0),
        "position_embedding_type": "rope",
        **head_size(facts),
        "shared_intermediate_size": facts.width,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "router_aux_loss_coef": 0.0,
        **mamba2_of(facts, sizes).config(),
    }


def _suggest_sizes(facts: Facts) -> Sizes:
    # The heads' values are twice as wide as the model: llama.cpp runs no other width, and it fits no worse
    # (docs/hybrids-fit.md). Chunks of 64 are 1.4 times as fast as the family's 256 on a CPU, with the same numbers.
    found = {**suggest_heads(facts), "conv": 4, "chunk": 64}
    heads = 2 * facts.hidden // max(facts.head_dim, 1)
    return {**found, "heads": heads, "groups": facts.kv_heads if heads % max(facts.kv_heads, 1) == 0 else 1}


def _check_sizes(facts: Facts, sizes: Sizes) -> Iterator[str]:
    inner = sizes["heads"] * sizes["head_dim"]
    if inner % facts.hidden:
        product = f"{sizes['heads']} heads of {sizes['head_dim']} = {inner}"
        yield f"{product} is not a multiple of the model's width {facts.hidden}."
    yield from check_heads(facts, sizes)


def _by_llama(facts: Facts, layers: Sequence[str], config: Mapping[str, Any]) -> tuple[Answer, str]:
    if problem := head_of_width(facts):
        return "no", problem
    if "mamba" not in layers:
        return "untried", "where every layer has attention its converter keeps rotary positions"
    inner, width = config["mamba_n_heads"] * config["mamba_d_head"], 2 * config["hidden_size"]
    if inner != width:
        fitting = f"{width // config['mamba_d_head']} heads of {config['mamba_d_head']} in `mixer_sizes`"
        return "no", f"its state spaces are {inner} wide (heads x head_dim), and it takes {width} alone: {fitting}"
    return (
        "with",
        "`hybridize convert`: under its own name the converter switches rotary positions off without an error",
    )


GRANITE = Target(
    family="granitemoehybrid",
    architecture="GraniteMoeHybridForCausalLM",
    donors=("llama", "mistral", "qwen2", "granite"),
    # Older spellings of linear_attention and full_attention: every transformers reads both, llama.cpp only these.
    mixers={"mamba2": "mamba"},
    attention="attention",
    outputs={"mamba2": ("mamba.out_proj.weight",), "network": ("shared_mlp.output_linear.weight",)},
    by_llama=_by_llama,
    map_layer=_map_layer,
    write_config=_write_config,
    suggest_sizes=_suggest_sizes,
    check_sizes=_check_sizes,
    mixer_shapes=lambda facts, sizes: mamba2_of(facts, sizes).tensor_shapes(),
    derived=("mamba2",),
    ran_vllm=True,
)
