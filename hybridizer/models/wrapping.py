"""Another forward pass for modules of a model, for as long as a block lasts: the one place that sets `forward`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

Forward: TypeAlias = Callable[..., Any]


@contextmanager
def recomputing(layers: Sequence[nn.Module]) -> Iterator[None]:
    """While it lasts, every layer keeps only its input and runs again in the backward pass.

    Every layer, frozen ones too: activation gradients cross those, and they hold as much. Never the reentrant kind,
    which gives a frozen prefix no gradients at all.
    """
    with wrapped_forward(layers, lambda forward: partial(checkpoint, forward, use_reentrant=False)):
        yield


@contextmanager
def compiled(layers: Sequence[nn.Module]) -> Iterator[None]:
    """While it lasts, every layer runs through torch.compile: one graph for each kind of layer, frozen or trained.

    Entered before `recomputing`, which would hide the layers' code from the compiler.
    """
    with wrapped_forward(layers, torch.compile):
        yield


@contextmanager
def wrapped_forward(modules: Sequence[nn.Module], wrap: Callable[[Forward], Forward]) -> Iterator[None]:
    """While it lasts, every module runs what `wrap` makes of its forward pass; one that is listed twice, once."""
    with replaced_forward({module: wrap(module.forward) for module in modules}):
        yield


@contextmanager
def replaced_forward(forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """While it lasts, every module of `forwards` runs the forward pass given for it.

    Afterwards each has the one it had: its class's, or one of its own, which accelerate's hooks set.
    """
    saved = {module: vars(module).get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module, own in saved.items():
            vars(module).pop("forward", None)
            if own is not None:
                module.forward = own
