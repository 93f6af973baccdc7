"""New layers, initialised as their own family initialises them."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from hybridizer.families.families import read_traits
from hybridizer.models.load import as_checkpoint, random_causal_lm

# Sizes of the model that the layer is taken out of, where nothing of them is taken: it costs nothing to draw.
_VOCABULARY = 8
_WIDTHS = ("intermediate_size", "shared_intermediate_size", "block_ff_dim")


def fresh_layer(
    config: Mapping[str, Any], layer: int, seed: int, shapes: Mapping[str, tuple[int, ...]], *, mixer_only: bool
) -> dict[str, Tensor]:
    """The float32 tensors `shapes` of layer `layer` of the model of `config`, as the family initialises them.

    Drawn from `seed` and the layer's place alone: the same on every machine with the same torch, whatever was drawn
    before. Takes the memory of one layer, in a family that needs two kinds of layers of two. With `mixer_only` the
    layer's network is not drawn, and cannot be asked for. Raises DonorError when transformers cannot build it.
    """
    attention = next(trait for trait in read_traits(config["model_type"]) if trait.name == "attention")
    kinds = attention.decode(config, config["num_hidden_layers"])
    chosen = list(kinds[layer : layer + 1])
    if attention.rule(tuple(chosen)):
        chosen.append(next(kind for kind in kinds if kind != kinds[layer]))
    listed = {"layer_types": chosen} if "layer_types" in attention.keys else {}
    small = {
        **{key: value for key, value in config.items() if key not in attention.keys and not key.endswith("_token_id")},
        **({key: _VOCABULARY for key in _WIDTHS if key in config} if mixer_only else {}),
        "num_hidden_layers": len(chosen),
        **listed,
        "vocab_size": _VOCABULARY,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
    }
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(int.from_bytes(sha256(f"{seed} {layer}".encode()).digest()[:7], "big"))
        model = random_causal_lm(small, torch.float32)
    tensors = as_checkpoint(model, model.state_dict())
    return _as_planned({suffix: tensors[f"model.layers.0.{suffix}"] for suffix in shapes}, shapes)


def _as_planned(tensors: dict[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """`tensors` in their planned shapes: transformers cuts a joined matrix into equal parts, whatever they are."""
    cut = [suffix for suffix in tensors if tuple(tensors[suffix].shape) != shapes[suffix]]
    if cut:
        whole = torch.cat([tensors[suffix] for suffix in cut])
        parts = whole.split([shapes[suffix][0] for suffix in cut])
        tensors |= dict(zip(cut, parts, strict=True))
    return tensors
