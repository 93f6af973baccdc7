"""New mixers: their tensors by kind and initialisation, and the modules of transformers that run them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hybridizer.core.errors import DidYouMean, PlanError, Problem
from hybridizer.families.mixer_shapes import AttentionShape, DeltaNetShape, Mamba2Shape, MixerShape, ShortConvShape
from hybridizer.mixers.derive import derive_delta_net, derive_mamba2, derive_short_conv
from hybridizer.models.load import random_causal_lm

KINDS = {"mamba2": Mamba2Shape, "gated_delta_net": DeltaNetShape, "short_conv": ShortConvShape}
INITS = ("attention", "fresh")
OUT_PROJ = "out_proj.weight"


def make_mixer_tensors(
    kind: str,
    init: str,
    shape: MixerShape,
    seed: int,
    attention: Mapping[str, Tensor] | None = None,
    attention_shape: AttentionShape | None = None,
) -> dict[str, Tensor]:
    """The float32 tensors of a mixer by their names in a layer of the target, such as "mamba.in_proj.weight".

    `init` "fresh" draws them by `seed` as the target's family initialises a new layer. "attention" derives them from
    the projections of the `attention` that the mixer replaces, which names them ending in "q_proj.weight" and so on.
    The same arguments give the same tensors. Raises PlanError for an unknown kind or init, and for sizes that cannot be
    derived.
    """
    if kind not in KINDS:
        raise PlanError(Problem("mixer.kind", f"there is no mixer '{kind}'.", str(DidYouMean(kind, KINDS))))
    assert isinstance(shape, KINDS[kind]), (kind, shape)
    if init not in INITS:
        raise PlanError(Problem("mixer.init", f"there is no init '{init}'.", str(DidYouMean(init, INITS))))
    fresh = _fresh(shape, seed)
    if init == "fresh":
        return fresh
    assert attention is not None and attention_shape is not None, "an attention to derive the mixer from"
    if isinstance(shape, Mamba2Shape):
        return derive_mamba2(shape, attention_shape, attention, fresh)
    if isinstance(shape, DeltaNetShape):
        return derive_delta_net(shape, attention_shape, attention, fresh)
    return derive_short_conv(shape, attention_shape, attention, fresh)


def make_module(shape: MixerShape, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The module that computes (rows, tokens, hidden) from the same with these `tensors`: the target family's own."""
    module = _one_layer(shape).get_submodule(shape.prefix.rstrip("."))
    module.load_state_dict({name.removeprefix(shape.prefix): tensor for name, tensor in tensors.items()})
    return module


def _fresh(shape: MixerShape, seed: int) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = _one_layer(shape).state_dict()
    return {name: tensor.clone() for name, tensor in sorted(state.items()) if name.startswith(shape.prefix)}


def _one_layer(shape: MixerShape) -> nn.Module:
    """The layer of the smallest model of the family that has such a mixer, with random weights."""
    config: dict[str, Any] = {
        "model_type": shape.model_type, "vocab_size": 8, "hidden_size": shape.hidden_size, "intermediate_size": 8,
        "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "rms_norm_eps": shape.norm_eps,
        "norm_eps": shape.norm_eps,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **shape.extra_config(), **shape.config(),
    }  # fmt: skip
    return random_causal_lm(config, torch.float32).get_submodule("model.layers.0")
