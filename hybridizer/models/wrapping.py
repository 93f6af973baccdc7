"""Replaces the forward pass of modules inside a block: the one place that sets `forward`."""

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
    """Activation checkpointing inside the block: every layer saves only its input and runs again in the backward pass.

    Every layer, frozen ones too: activation gradients pass through those, and they save as much. Never reentrant
    checkpointing, which computes no gradients behind a frozen prefix.
    """
    with wrapped_forward(layers, lambda forward: partial(checkpoint, forward, use_reentrant=False)):
        yield


@contextmanager
def compiled(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Inside the block, every layer runs through torch.compile: one graph for each kind of layer, frozen or trained.

    Entered before `recomputing`, which would hide the layers' code from the compiler.
    """
    with wrapped_forward(layers, torch.compile):
        yield


@contextmanager
def wrapped_forward(modules: Sequence[nn.Module], wrap: Callable[[Forward], Forward]) -> Iterator[None]:
    """Inside the block, every module runs `wrap(forward)` instead of `forward`; one listed twice is wrapped once."""
    with replaced_forward({module: wrap(module.forward) for module in modules}):
        yield


@contextmanager
def replaced_forward(forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Inside the block, every module of `forwards` runs the forward pass given for it.

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
