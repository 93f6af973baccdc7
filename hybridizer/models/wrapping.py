"""What is done to all layers of a model for the time of a training, and undone after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def recomputing(layers: Sequence[nn.Module]) -> Iterator[None]:
    """While it lasts, every layer keeps only its input and runs again in the backward pass.

    Every layer, frozen ones too: activation gradients cross those, and they hold as much. Never the reentrant kind,
    which gives a frozen prefix no gradients at all.
    """
    with wrapping(layers, lambda forward: partial(checkpoint, forward, use_reentrant=False)):
        yield


@contextmanager
def compiled(layers: Sequence[nn.Module]) -> Iterator[None]:
    """While it lasts, every layer runs through torch.compile: one graph for each kind of layer, frozen or trained.

    Entered before `recomputing`, which would hide the layers' code from the compiler.
    """
    with wrapping(layers, torch.compile):
        yield


@contextmanager
def wrapping(modules: Sequence[nn.Module], wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """While it lasts, every module runs what `wrap` makes of its forward pass; one that is there twice, once."""
    distinct = list(dict.fromkeys(modules))
    saved = [vars(module).get("forward") for module in distinct]
    for module in distinct:
        module.forward = wrap(module.forward)
    try:
        yield
    finally:
        for module, forward in zip(distinct, saved, strict=True):
            vars(module).pop("forward")
            if forward is not None:
                module.forward = forward
