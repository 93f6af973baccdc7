"""What is done to all layers of a model for the time of a training, and undone after it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def recomputing(layers: Sequence[nn.Module]) -> Iterator[None]:
    """While it lasts, every layer keeps only its input and runs again in the backward pass.

    Every layer, frozen ones too: activation gradients cross those, and they hold as much. Never the reentrant kind,
    which gives a frozen prefix no gradients at all. The same layer object in several places is wrapped once.
    """
    distinct = list({id(layer): layer for layer in layers}.values())
    saved = [vars(layer).get("forward") for layer in distinct]
    for layer in distinct:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer, forward in zip(distinct, saved, strict=True):
            vars(layer).pop("forward")
            if forward is not None:
                layer.forward = forward


@contextmanager
def compiled(layers: Sequence[nn.Module]) -> Iterator[None]:
    """While it lasts, every layer runs through torch.compile: one graph for each kind of layer, frozen or trained."""
    for layer in layers:
        layer.compile()
    try:
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None  # as torch leaves a module that was never compiled; it has no call for it
