"""Compares a config with the shapes of its tensors, before a weight is read or a byte is written.

transformers refuses tensors whose shape differs from the config's only when the model is loaded, and fills missing
biases and norms with initial values. Compared here is what holds in every family of the tables except those named
below; all other keys are tested when the model is loaded before it is published.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from hybridizer.core.errors import Problem
from hybridizer.families.families import is_known
from hybridizer.families.keys import Assumptions, read_assumptions, unify
from hybridizer.families.structure import Structure
from hybridizer.plan.shapes import WITHOUT_SCORES

# Attention with gates, latent parts, or sizes of its own for some layers.
_OTHER_ATTENTION: Final = frozenset({
    "dots3_note_text", "gemma4_text", "gemma4_unified_text", "helium", "inkling_text", "inkling2_text", "kimi_linear",
    "laguna", "mimo_v2_flash",
})  # fmt: skip
_GATED_QUERIES: Final = frozenset({"qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "qwen4_exp_text"})
# `intermediate_size` is a list, or that of the experts.
_OTHER_MLP: Final = frozenset({"gemma3n_text", "minimax_m3_vl_text"})
_MLP_BIAS_UNUSED: Final = frozenset({"deepseek_v32", "dots3_note_text", "glm_moe_dsa"})
_WITHOUT_FINAL_NORM: Final = frozenset({"ctrl", "nanochat", "olmo", "openai-gpt", "qwen4_exp_text"})
# Keys with which a config gives some layers sizes of their own, or splits heads into parts.
_PER_LAYER: Final = ("per_layer_config", "use_double_wide_mlp")
_LATENT: Final = ("kv_lora_rank", "qk_rope_head_dim", "v_head_dim")
# Families without attention, and one with a cache of its own that counts tokens.
_NEED_NO_ATTENTION: Final = frozenset({"falcon_mamba", "mamba", "mamba2", "minimax", "rwkv", "xlstm"})


@dataclass(frozen=True)
class _Size:
    """The keys whose product is the size of an axis of a tensor."""

    tensor: str
    axis: int
    keys: tuple[str, ...]


def check_config(structure: Structure, where: str) -> list[Problem]:
    """Everything in which the config of `structure` contradicts its tensors; empty when they agree.

    Each problem is at `where` and names key, value, tensor and shape. Compared are the vocabulary, the width of
    embedding, head and final norm, heads, head size and key/value heads, the width of gated networks, and biases. A
    final norm must be there. Families outside the tables are not compared.
    """
    family, text = structure.text_family, unify(structure.text_config)
    if not is_known(family):
        return []
    read = read_assumptions(family)
    found = [*_compare_sizes(structure, read, text), *_compare_biases(structure, read, text)]
    if not structure.final_norm and family not in _WITHOUT_FINAL_NORM and not _ends_without_norm(text):
        found.append("no tensor is the final norm, which the family has; it would get initial values.")
    fix = "Correct config.json, or take config and weights from one checkpoint."
    return [Problem(where, what, fix) for what in found]


def check_attention_left(structure: Structure, where: str) -> list[Problem]:
    """A problem when a model of a hybrid family has no layer with attention.

    transformers takes the length of the text so far from the cache of an attention layer: without one, generation
    raised ValueError in all 11 hybrid families that were tried, and worked in minimax.
    """
    kinds = set(structure.traits.get("attention", ()))
    if not kinds or structure.text_family in _NEED_NO_ATTENTION or not kinds <= WITHOUT_SCORES:
        return []
    what = f"no output layer has attention: all are {' or '.join(sorted(kinds))}."
    fix = f"Keep at least one attention layer: models of the family '{structure.text_family}' cannot generate without."
    return [Problem(where, what, fix)]


def _ends_without_norm(text: Mapping[str, Any]) -> bool:
    """Whether the config of an OPT model asks for no final norm."""
    return bool(text.get("_remove_final_layer_norm")) or text.get("do_layer_norm_before") is False


def _compare_sizes(structure: Structure, read: Assumptions, text: Mapping[str, Any]) -> Iterator[str]:
    compared: set[tuple[tuple[str, ...], int]] = set()
    for size in (*_end_sizes(structure, text), *_layer_sizes(structure, text)):
        shape, values = structure.shapes[size.tensor], [_value(read, key, text) for key in size.keys]
        numbers = [value for value in values if isinstance(value, int)]
        if len(numbers) < len(values) or size.axis >= len(shape) or math.prod(numbers) == shape[size.axis]:
            continue
        if (size.keys, shape[size.axis]) in compared:  # every layer differs in the same way
            continue
        compared.add((size.keys, shape[size.axis]))
        keys = " x ".join(f"`{key}` {value}" for key, value in zip(size.keys, values, strict=True))
        product = f" = {math.prod(numbers)}" if len(numbers) > 1 else ""
        yield f"{keys}{product}, and '{size.tensor}' has shape {list(shape)} (axis {size.axis})."


def _value(read: Assumptions, key: str, text: Mapping[str, Any]) -> Any:
    """The value of `key`; null means what an absent key means, as it does for head size and key/value heads."""
    present = {name: value for name, value in text.items() if name != key or value is not None}
    return read.value_of(key, present)


def _end_sizes(structure: Structure, text: Mapping[str, Any]) -> Iterator[_Size]:
    width = "word_embed_proj_dim" if text.get("word_embed_proj_dim") else "hidden_size"  # OPT of 350 million
    for name in (*structure.embedding, *structure.head):
        if len(structure.shapes[name]) == 2:
            yield _Size(name, 0, ("vocab_size",))
            yield _Size(name, 1, (width,))
    for name in structure.final_norm:
        yield _Size(name, 0, ("hidden_size",))


def _layer_sizes(structure: Structure, text: Mapping[str, Any]) -> Iterator[_Size]:
    family = structure.text_family
    if any(text.get(key) for key in _PER_LAYER):
        return
    queries, pairs = ("num_attention_heads", "head_dim"), ("num_key_value_heads", "head_dim")
    attention: dict[str, tuple[int, tuple[str, ...]]] = {}
    if _has_plain_attention(family, text):
        attention = {"k_proj": (0, pairs), "v_proj": (0, pairs), "o_proj": (1, queries)}
        if family not in _GATED_QUERIES:
            attention["q_proj"] = (0, queries)
    places = {f"self_attn.{name}.weight": size for name, size in attention.items()}
    if family not in _OTHER_MLP:
        places |= {f"mlp.{name}.weight": (0, ("intermediate_size",)) for name in ("gate_proj", "up_proj")}
        places["mlp.down_proj.weight"] = (1, ("intermediate_size",))
    for names in structure.layers:
        for suffix in sorted(names.keys() & places.keys()):
            yield _Size(names[suffix], *places[suffix])


def _has_plain_attention(family: str, text: Mapping[str, Any]) -> bool:
    return family not in _OTHER_ATTENTION and not any(text.get(key) for key in _LATENT)


def _compare_biases(structure: Structure, read: Assumptions, text: Mapping[str, Any]) -> Iterator[str]:
    family = structure.text_family
    modules = {}
    if _has_plain_attention(family, text):
        modules["attention_bias"] = "self_attn.q_proj"
    if family not in _MLP_BIAS_UNUSED:
        modules["mlp_bias"] = "mlp.up_proj"
    for key, module in modules.items():
        value = read.value_of(key, text)
        layers = [names for names in structure.layers if f"{module}.weight" in names]
        if not isinstance(value, bool):
            continue
        for names in layers:
            weight = names[f"{module}.weight"]
            bias = weight.removesuffix("weight") + "bias"
            if (bias in structure.shapes) != value:
                found = f"is there, of shape {list(structure.shapes[bias])}" if not value else "is not there"
                yield f"`{key}` is {str(value).lower()}, and '{bias}' {found}."
                break
