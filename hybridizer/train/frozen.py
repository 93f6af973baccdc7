"""Frozen linear layers in 8 or 4 bits for the time of a training: kept low, computed in the precision of their input.

The donors' own bytes wait outside of the memory that trains, and are back at the end: nothing is exported from here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from hybridizer.core.errors import InputError, Problem
from hybridizer.models.memory import page_out
from hybridizer.models.objective import TrainableParts
from hybridizer.models.parts import MODEL_FAULTS
from hybridizer.plan.dimensions import MIN_BLOCK
from hybridizer.recipe.train import LowDtype
from hybridizer.train.freeze import FreezePlan
from hybridizer.train.isolation import FEW_TOKENS
from hybridizer.train.low_bits import encode, in_dtype
from hybridizer.train.precision import FrozenProduct, MixedLinear

_WRONG = {"int8": 0.1, "fp8": 0.2, "nf4": 0.5}  # of the size of the logits; 0.01 to 0.03, 0.03 and 0.15 are usual


class LowLinear(nn.Linear):
    """A linear layer whose frozen weight holds the values of `encode`; it computes in the precision of its input."""

    scales: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """`input` (..., in_features) to (..., out_features) in the dtype of `input`."""
        bias = None if self.bias is None else self.bias.to(input.dtype)
        if torch.compiler.is_compiling():  # the compiler decides itself what it keeps and what it computes again
            return functional.linear(input, in_dtype(self.weight, self.scales, input.dtype), bias)
        output: Tensor = FrozenProduct.apply(input, self.weight, self.scales)
        return output if bias is None else output + bias


@contextmanager
def kept_low(
    model: nn.Module, parts: TrainableParts, plan: FreezePlan, kind: LowDtype, vocab_size: int
) -> Iterator[int]:
    """Inside the block, the frozen linear layers of `model` that are in its layers are kept as `kind` says.

    Yields how many there are. Weights whose row length is not divisible by 16, and those of other modules as well,
    stay. The original weights wait in the host's memory: on a CPU as pages of the checkpoint's file, which leave memory
    where the system can read them again. Raises InputError where the model does not compute with the result, as code
    does that uses a weight without calling its module.
    """
    expected = _logits(model, vocab_size)
    before: dict[nn.Linear, type[nn.Module]] = {}
    kept: dict[nn.Parameter, Tensor] = {}
    try:
        for module in _linears(model, parts, plan):
            weight = module.weight
            values, scales = encode(weight.data, kind)
            kept[weight], before[module] = weight.data.cpu(), type(module)
            weight.data = values
            module.scales = scales
            module.__class__ = LowLinear
        page_out(list(kept.values()))
        _refuse_wrong(model, expected, kind, vocab_size)
        yield len(before)
    finally:
        for module, kind_before in before.items():
            module.__class__ = kind_before
            device = module.weight.device
            module.weight.data = kept[module.weight].to(device)
            vars(module).pop("scales", None)


def _linears(model: nn.Module, parts: TrainableParts, plan: FreezePlan) -> list[nn.Linear]:
    """The modules whose weight is kept low, none of which shares it with another module."""
    frozen = {id(p) for name, p in model.named_parameters() if name in plan.frozen}
    holders: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    inside = dict.fromkeys(module for layer in parts.layers for module in layer.modules())
    return [
        module
        for module in inside
        if isinstance(module, nn.Linear)
        and type(module) in (nn.Linear, MixedLinear)
        and "forward" not in vars(module)
        and id(module.weight) in frozen
        and holders[id(module.weight)] == 1
        and module.in_features % MIN_BLOCK == 0
    ]


@torch.no_grad()
def _logits(model: nn.Module, vocab_size: int) -> Tensor:
    training, device = model.training, next(model.parameters()).device
    try:
        ids = (torch.arange(FEW_TOKENS, device=device) * 37 % vocab_size)[None]
        logits: Tensor = model.eval()(input_ids=ids, use_cache=False).logits.float()
        return logits
    finally:
        model.train(training)


def _refuse_wrong(model: nn.Module, expected: Tensor, kind: LowDtype, vocab_size: int) -> None:
    """Return if the model computes about what it computed before. Raises InputError if not."""
    fix = "Delete `frozen_dtype`: this model's code uses weights in another way than by calling linear modules."
    try:
        error = float((_logits(model, vocab_size) - expected).norm() / expected.norm())
    except MODEL_FAULTS as fault:
        what = f"the model does not run in {kind}: {type(fault).__name__}: {str(fault)[:200]}"
        raise InputError(Problem("train.frozen_dtype", what, fix)) from fault
    if not error < _WRONG[kind]:
        what = f"in {kind} the logits differ by {error:.0%} of their size."
        raise InputError(Problem("train.frozen_dtype", what, fix))
