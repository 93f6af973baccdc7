"""Which precision computes, and how tensors stored in another one are used in it.

Frozen tensors stay in the checkpoint's precision: a linear layer casts its frozen weight on each use and keeps no
cast copy for the backward pass. Trained tensors live in the compute precision, with float32 masters in the optimizer.
There is no autocast, so nothing is cast twice in a step.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from hybridizer.core.errors import InputError, Problem
from hybridizer.models.hardware import choose_compute_dtype
from hybridizer.models.matmul import matmul_dtype
from hybridizer.models.parts import MODEL_FAULTS
from hybridizer.models.sharding import is_sharded
from hybridizer.train.freeze import FreezePlan
from hybridizer.train.low_bits import in_dtype

Precision = Literal["auto", "float32", "bfloat16"]


def choose_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype to compute in on `device`, which is that of the plan's cost estimate."""
    found: torch.dtype = getattr(torch, choose_compute_dtype(precision, device.type))
    return found


def product_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype of matrix products on `device`: float32 where a processor has no bfloat16 instructions."""
    return matmul_dtype(choose_dtype(precision, device), device)


class MixedLinear(nn.Linear):
    """A linear layer whose frozen weight has its own precision; it computes in that of its input."""

    def forward(self, input: Tensor) -> Tensor:
        """`input` (..., in_features) to (..., out_features) in the dtype of `input`."""
        if self.weight.dtype == input.dtype:
            return super().forward(input)
        bias = None if self.bias is None else self.bias.to(input.dtype)
        output: Tensor = FrozenProduct.apply(input, self.weight, None)
        return output if bias is None else output + bias


class FrozenProduct(torch.autograd.Function):
    """`input @ weight.T` with a frozen weight that `in_dtype` makes in each pass; the copy is not kept."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, scales: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight, scales)
        return functional.linear(input, in_dtype(weight, scales, input.dtype))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        weight, scales = ctx.saved_tensors
        return grad_outputs[0] @ in_dtype(weight, scales, grad_outputs[0].dtype), None, None


class WorkingPrecision:
    """A model set up to compute in one dtype; `restore_` gives every frozen tensor its original bytes."""

    def __init__(self, model: nn.Module, plan: FreezePlan, dtype: torch.dtype, keep_low: bool = True) -> None:
        """Changes `model` in place and keeps every parameter object; frozen tensors are cast too unless `keep_low`."""
        self._model, self._kept = model, dict[str, Tensor]()
        stays = _ids_kept_low(model) if keep_low else set()
        for name, parameter in model.named_parameters():
            if parameter.dtype == dtype or (name in plan.frozen and id(parameter) in stays):
                continue
            if name in plan.frozen:
                self._kept[name] = parameter.data
            parameter.data = parameter.data.to(dtype)
        self._hooks = [hook for module in model.modules() if (hook := _adapt_(module, dtype)) is not None]

    def restore_(self) -> None:
        """Undo everything except the dtype of trained tensors, which the optimizer's masters replace."""
        for name, parameter in self._model.named_parameters():
            if name in self._kept and not is_sharded(parameter):
                parameter.data = self._kept[name]
        for module in self._model.modules():
            if type(module) is MixedLinear:
                _as_class_(module, nn.Linear)
        for hook in self._hooks:
            hook.remove()


def working_precision(model: nn.Module, plan: FreezePlan, dtype: torch.dtype, vocab_size: int) -> WorkingPrecision:
    """`model` set up to compute in `dtype`, with frozen tensors in their own precision where its code allows that.

    Code that uses the weight of a linear module without calling the module, such as Mamba's, does not. Raises
    InputError where the model does not run in `dtype` at all.
    """
    ids = (torch.arange(8, device=next(model.parameters()).device) % vocab_size)[None]
    training, fault = model.training, ""
    for keep_low in (True, False):
        working = WorkingPrecision(model, plan, dtype, keep_low)
        try:
            with torch.no_grad():
                model.eval()(input_ids=ids, use_cache=False)
            return working
        except MODEL_FAULTS as error:
            fault = f"{type(error).__name__}: {str(error)[:200]}"
            working.restore_()
        finally:
            model.train(training)
    name = str(dtype).removeprefix("torch.")
    what = f"this model's own code does not run in {name}: {fault}"
    raise InputError(Problem("train.precision", what, "Set the other precision, float32 or bfloat16."))


def _ids_kept_low(model: nn.Module) -> set[int]:
    """The parameters that every module holding them can use in another precision than it computes in."""
    able = {id(parameter) for module in model.modules() for parameter in _kept_low(module)}
    others = [module for module in model.modules() if not _kept_low(module)]
    return able - {id(parameter) for module in others for parameter in module.parameters(recurse=False)}


def _kept_low(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of `module` that can be used in their own precision."""
    plain = type(module) in (nn.Linear, nn.Embedding)
    return list(module.parameters(recurse=False)) if plain else []


def _adapt_(module: nn.Module, dtype: torch.dtype) -> Any:
    """Let a module of frozen low-precision weights compute in `dtype`; a hook to remove later, if one was needed."""
    if not any(parameter.dtype != dtype for parameter in _kept_low(module)):
        return None
    if type(module) is nn.Linear:
        _as_class_(module, MixedLinear)
        return None
    return module.register_forward_hook(lambda _module, _args, output: output.to(dtype))


def _as_class_(module: nn.Module, kind: type[nn.Module]) -> None:
    """Replace the forward pass of `module`, which keeps its identity and its parameter objects."""
    module.__class__ = kind
