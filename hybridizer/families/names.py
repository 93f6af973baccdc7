"""Tensor names on disk: which belong to a layer, which to the whole model, which to neither."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

Shapes = Mapping[str, tuple[int, ...]]

# The first number in a name is the place in a list of layers; later ones (experts, codebooks) are inside a layer.
_FIRST_NUMBER = re.compile(r"(?:^|\.)(\d{1,9})\.(?=.)")
_OTHER_TOWERS = frozenset({"vision", "visual", "vision_tower", "vision_model", "audio", "audio_tower", "audio_model"})
_DRAFT_HEADS = ("mtp.", "model.mtp.", "mtp_", "model.mtp_")
# Recomputed when a model is loaded; checkpoints of old torch and transformers hold them as tensors.
_RECOMPUTED = ("rotary_emb.inv_freq", ".masked_bias")

EMBEDDINGS = (
    "embed_tokens",
    "wte",
    "word_embeddings",
    "embeddings",
    "embed_in",
    "tok_embeddings",
    "tokens_embed",
    "embed",
    "w",
)
FINAL_NORMS = (
    "norm",
    "ln_f",
    "final_layernorm",
    "final_layer_norm",
    "final_norm",
    "norm_f",
    "ln_out",
    "out_norm",
    "embedding_norm",
    "layer_norm",
)
HEADS = ("lm_head", "embed_out", "head", "unembed", "output")


@dataclass
class NameTable:
    """Names sorted: `lists` holds, for each list prefix, place -> suffix -> name; `single` the names in no list."""

    lists: dict[str, dict[int, dict[str, str]]] = field(default_factory=dict)
    single: list[str] = field(default_factory=list)


def sort_names(shapes: Shapes) -> NameTable:
    """Every tensor name, sorted into lists and single names, in the order of the file."""
    table = NameTable()
    for name in shapes:
        match = _FIRST_NUMBER.search(name)
        if match is None:
            table.single.append(name)
        else:
            places = table.lists.setdefault(name[: match.start(1)], {})
            places.setdefault(int(match[1]), {})[name[match.end() :]] = name
    return table


def layer_lists(table: NameTable) -> dict[str, dict[int, dict[str, str]]]:
    """The lists that can be the decoder layers: not those of vision, audio or draft towers."""
    return {
        prefix: places
        for prefix, places in table.lists.items()
        if not _OTHER_TOWERS & set(prefix.split(".")) and not prefix.startswith(_DRAFT_HEADS)
    }


def is_draft_head(name: str) -> bool:
    """Whether the tensor belongs to a multi-token-prediction head outside the list of layers."""
    return name.startswith(_DRAFT_HEADS)


def is_recomputed(name: str, shape: tuple[int, ...]) -> bool:
    """Whether the tensor is a buffer (rotary frequencies, a causal mask) that is recomputed when a model is loaded."""
    causal_mask = name.endswith(("attn.bias", "attention.bias")) and len(shape) == 4
    return causal_mask or name.endswith(_RECOMPUTED)


def pick(names: list[str], modules: tuple[str, ...], prefix: str = "") -> tuple[str, ...]:
    """The weight and, where present, the bias of the first of `modules` that exists under `prefix`."""
    for module in modules:
        found = [
            name
            for name in names
            if name.startswith(prefix)
            and name.rpartition(".")[0].rpartition(".")[2] == module
            and name.rpartition(".")[2] in ("weight", "bias")
        ]
        if found:
            return tuple(found)
    return ()
