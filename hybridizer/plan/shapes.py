"""The sizes of a model that is planned but not built, from its config and the shapes of its tensors alone."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hybridizer.checkpoint.dtypes import DTYPE_BITS
from hybridizer.families.keys import read_assumptions, unify
from hybridizer.families.names import Shapes
from hybridizer.families.reading import read_structure
from hybridizer.families.structure import Structure
from hybridizer.plan.dimensions import BLOCK, LARGE_ELEMENTS, MIN_BLOCK, LayerShape, ModelShape

# Kinds of layers that carry state along a row, alone or beside attention; kinds that score no pairs of tokens.
STATEFUL = {"linear_attention", "mamba", "mamba2", "conv", "rwkv", "mlstm"}
STATEFUL_ATTENTION = {"hybrid", "hybrid_sliding"}
WITHOUT_SCORES = STATEFUL | {"moe", "mlp"}
# Activations of gated networks that training.fused runs without keeping their results.
FUSED_ACTIVATIONS = {"silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh"}
ROUTERS = {"gate", "router", "wg"}  # modules of their own in transformers 5, which get no adapters
_GATED_NAMES = {"gate_proj", "up_proj", "down_proj"}
_PLACE = re.compile(r"(?<=\.)\d+(?=\.)")
_HEAD_NORM = re.compile(r"(^|\.)(q|k|query|key)_?(layer)?_?norm\.weight$")


@dataclass(frozen=True)
class Experts:
    """A mixture of experts: how many a layer has, and how many are used per token."""

    count: int
    chosen: int


def planned_shape(config: Mapping[str, Any], tensors: Mapping[str, tuple[tuple[int, ...], str]]) -> ModelShape:
    """The shape of the model of `config` whose `tensors` map names to shape and safetensors dtype.

    Raises CheckpointError when config and tensors contradict each other, as `read_structure` does.
    """
    structure = read_structure(config, {name: shape for name, (shape, _) in tensors.items()}, "the planned model")
    text = unify(structure.text_config)
    vocabulary, width = structure.shapes[structure.embedding[0]]
    kinds = structure.traits.get("attention", ("",) * structure.num_layers)
    layers = tuple(
        layer_shape(
            {suffix: structure.shapes[name] for suffix, name in names.items()},
            width,
            0 if kinds[i] in WITHOUT_SCORES else _attention_width(structure, text, width),
            _experts(text, i),
            text.get("hidden_act", text.get("hidden_activation", "silu")) in FUSED_ACTIVATIONS,
        )
        for i, names in enumerate(structure.layers)
    )
    stateful = tuple(i for i, kind in enumerate(kinds) if kind in STATEFUL | STATEFUL_ATTENTION)
    return ModelShape(width, vocabulary, layers, structure.tied, _stored_bytes(tensors), stateful)


def layer_shape(
    tensors: Shapes, width: int, attention_width: int, experts: Experts | None = None, fusable: bool = True
) -> LayerShape:
    """The shape of one layer with these tensors (suffix -> shape) in a model `width` wide.

    `fusable` says that the activation of a gated network is one that is not kept. Of `experts` all count as parameters,
    and those chosen for a token as work.
    """
    routed = _routed(tensors, experts)
    share = experts.chosen / experts.count if experts else 1.0
    dense = {suffix: shape for suffix, shape in tensors.items() if len(shape) >= 2 and suffix not in routed}
    outputs = {suffix: _output_width(suffix, tensors) for suffix in dense}
    norms = sum(shape == (width,) and "norm" in suffix for suffix, shape in tensors.items())
    kept = sum(outputs.values()) + attention_width + _head_norm_widths(tensors, outputs)
    kept += max(0, norms - 2) * width  # norms behind attention and network, beside those before them
    matrices = {suffix: math.prod(shape) // outputs[suffix] for suffix, shape in dense.items() if len(shape) == 2}
    linears = {suffix: inputs for suffix, inputs in matrices.items() if _is_linear(suffix)}
    inner = [inputs for inputs in matrices.values() if inputs not in (width, attention_width)]
    gates = sum(i for i in inner if list(outputs.values()).count(i) > 1 or 2 * i in outputs.values())
    taken = 2 * width + sum(inner)  # what goes into the matrices, once where several take it
    fused = _is_gated(dense) and fusable
    trained = 2 * width if fused else taken
    kept += 0 if fused else gates
    adapted = taken + gates if fused else taken  # a network with adapters is not fused
    dropped = 2 * sum(linears.values()) - taken  # a mask and what is left, for each module
    worked = sum(math.prod(shape) for shape in dense.values())
    for suffix in routed:
        worked += round(share * math.prod(tensors[suffix]))
        kept += round(share * _expert_widths(tensors[suffix]))
    counts = [math.prod(shape) for shape in tensors.values()]
    large = sum(count for count in counts if count >= LARGE_ELEMENTS)
    adapter_width = sum(linears.values()) + sum(outputs[suffix] for suffix in linears)
    return LayerShape(
        sum(counts), worked, kept, trained, attention_width, large,
        len(linears), adapter_width, adapted, dropped, max(counts, default=0), *_kept_low(dense, linears, outputs),
    )  # fmt: skip


def _kept_low(dense: Shapes, linears: Mapping[str, int], outputs: Mapping[str, int]) -> tuple[int, int, int]:
    """Parameters, rows and blocks of the linear modules that can be kept in 8 or 4 bits; none in layers as GPT-2's."""
    if any(outputs[suffix] != dense[suffix][0] for suffix in linears):
        return 0, 0, 0
    fitting = [(outputs[suffix], inputs) for suffix, inputs in linears.items() if inputs % MIN_BLOCK == 0]
    return (
        sum(rows * inputs for rows, inputs in fitting),
        sum(rows for rows, _ in fitting),
        sum(rows * (inputs // math.gcd(inputs, BLOCK)) for rows, inputs in fitting),
    )


def _is_linear(suffix: str) -> bool:
    """Whether a matrix is the weight of a plain linear module, by its name: biases and routers are not."""
    module, _, kind = suffix.rpartition(".")
    return kind == "weight" and module.rpartition(".")[2] not in ROUTERS


def _attention_width(structure: Structure, text: Mapping[str, Any], width: int) -> int:
    """Heads x head size; of latent attention, the mean of what is scored and what is summed up."""
    read = read_assumptions(structure.text_family)
    heads = read.value_of("num_attention_heads", text)
    if not isinstance(heads, int):
        return width
    if isinstance(text.get("qk_nope_head_dim"), int) and isinstance(text.get("v_head_dim"), int):
        scored = int(text["qk_nope_head_dim"]) + int(text.get("qk_rope_head_dim") or 0)
        return heads * (scored + int(text["v_head_dim"])) // 2
    size = read.value_of("head_dim", text)
    return heads * size if isinstance(size, int) else width


def _experts(text: Mapping[str, Any], layer: int) -> Experts | None:
    count, chosen = text.get("num_local_experts"), text.get("num_experts_per_tok")
    chosen = chosen[layer] if isinstance(chosen, list) else chosen
    return Experts(count, chosen) if isinstance(count, int) and isinstance(chosen, int) and count > 1 else None


def _routed(tensors: Shapes, experts: Experts | None) -> set[str]:
    """Tensors of which a token uses the chosen experts' share: stacked over experts, or one of many equal ones."""
    if experts is None:
        return set()
    alike = Counter(_PLACE.sub("*", suffix, count=1) for suffix in tensors)
    stacked = {suffix for suffix, shape in tensors.items() if len(shape) == 3 and shape[0] == experts.count}
    return stacked | {suffix for suffix in tensors if alike[_PLACE.sub("*", suffix, count=1)] == experts.count}


def _output_width(suffix: str, tensors: Shapes) -> int:
    """The width of a matrix's output: its first axis, or the last where that is the bias's length (as in GPT-2)."""
    shape = tensors[suffix]
    bias = tensors.get(suffix.removesuffix("weight") + "bias")
    return shape[-1] if bias == shape[-1:] and bias != shape[:1] else shape[0]


def _head_norm_widths(tensors: Shapes, outputs: Mapping[str, int]) -> int:
    """What norms on queries and keys keep beside their results: those of the projections before them."""
    widths = 0
    for suffix in tensors:
        found = _HEAD_NORM.search(suffix)
        if found:
            module = suffix[: found.start()]
            same = [w for name, w in outputs.items() if name.startswith(module) and _names_part(name, found[2][0])]
            widths += max(same, default=0)
    return widths


def _names_part(suffix: str, letter: str) -> bool:
    """Whether a projection's name begins with the letter of queries or keys."""
    return suffix.rpartition(".")[0].rpartition(".")[2].startswith(letter)


def _is_gated(dense: Shapes) -> bool:
    modules = {suffix.rpartition(".")[0].rpartition(".")[2] for suffix in dense}
    return modules >= _GATED_NAMES


def _expert_widths(shape: tuple[int, ...]) -> int:
    """Input and output of one expert's matrix, or of all experts' where they are stacked."""
    return shape[0] * (shape[1] + shape[2]) if len(shape) == 3 else sum(shape)


def _stored_bytes(tensors: Mapping[str, tuple[tuple[int, ...], str]]) -> int:
    """Bytes of a parameter in the dtype that holds most of them."""
    held: Counter[str] = Counter()
    for shape, dtype in tensors.values():
        held[dtype] += math.prod(shape)
    return DTYPE_BITS[held.most_common(1)[0][0]] // 8
