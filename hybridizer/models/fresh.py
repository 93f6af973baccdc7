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


def fresh_layer(config: Mapping[str, Any], layer: int, seed: int, *, mixer_only: bool) -> dict[str, Tensor]:
    """The float32 tensors of layer `layer` of the model of `config`, by suffix, as the family initialises them.

    Drawn from `seed` and the layer's place alone: the same on every machine with the same torch, whatever was drawn
    before. Takes the memory of one layer, in a family that needs two kinds of layers of two. With `mixer_only` the
    network of the layer has other sizes. `config` has `layer_types`. Raises DonorError when transformers cannot build
    it.
    """
    kinds = list(config["layer_types"])
    chosen = [kinds[layer]]
    attention = next(trait for trait in read_traits(config["model_type"]) if trait.name == "attention")
    if attention.rule(attention.decode({**config, "layer_types": chosen}, 1)):
        chosen.append(next(kind for kind in kinds if kind != kinds[layer]))
    small = {
        **{key: value for key, value in config.items() if not key.endswith("_token_id")},
        **({key: _VOCABULARY for key in _WIDTHS if key in config} if mixer_only else {}),
        "num_hidden_layers": len(chosen),
        "layer_types": chosen,
        "vocab_size": _VOCABULARY,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
    }
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(int.from_bytes(sha256(f"{seed} {layer}".encode()).digest()[:7], "big"))
        model = random_causal_lm(small, torch.float32)
    prefix = "model.layers.0."
    tensors = as_checkpoint(model, model.state_dict())
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
