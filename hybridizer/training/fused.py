"""Norms and gated networks that keep less for the backward pass, put in place of a model's own for a training.

Modules are recognised by what they hold and then by what they compute: one is replaced only when its own output and the
replacement's agree on a probe. Element-wise work goes through the cache in pieces; measured on SmolLM2 shapes in
float32, a norm takes half the time forwards and backwards, a gated network keeps 2 of 4 wide activations.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

PIECE = 2**16  # elements: with their float32 temporaries they stay in a second-level cache of 1 MB


@contextmanager
def fused(model: nn.Module) -> Iterator[tuple[int, int]]:
    """While it lasts, RMS norms and SiLU-gated networks of `model` run as below; how many of each were replaced."""
    norms = [(module, partial(_norm_forward, module)) for module in model.modules() if _is_norm(module)]
    gated = [(module, partial(_gated_forward, module)) for module in model.modules() if _is_gated(module)]
    replaced = [(module, forward) for module, forward in [*norms, *gated] if _same(module, forward)]
    for module, forward in replaced:
        module.forward = forward
    try:
        yield sum(1 for pair in replaced if pair in norms), sum(1 for pair in replaced if pair in gated)
    finally:
        for module, _ in replaced:
            vars(module).pop("forward")


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x` (..., width) divided by its root mean square over the width, times `weight`; computed in float32.

    The result is rounded to the dtype of `x` before the weight is applied, as the families do.
    """
    output: Tensor = _RmsNorm.apply(x, weight, eps)
    return output


def gated_network(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """`(silu(x @ gate.T) * (x @ up.T)) @ down.T`, keeping x and the two products for the backward pass, no more."""
    output: Tensor = _GatedNetwork.apply(x, gate, up, down)
    return output


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        output = rows.new_empty(rows.shape, dtype=torch.promote_types(x.dtype, weight.dtype))
        scales = rows.new_empty((len(rows), 1), dtype=torch.float32)
        for piece in _pieces(rows):
            exact = rows[piece].float()
            scales[piece, 0] = torch.linalg.vecdot(exact, exact).div_(rows.shape[1]).add_(eps).rsqrt_()
            torch.mul((exact * scales[piece]).to(x.dtype), weight, out=output[piece])
        ctx.save_for_backward(rows, weight, scales)
        return output.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, scales = ctx.saved_tensors
        grad = grad_outputs[0].reshape(rows.shape)
        grad_rows = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for piece in _pieces(rows):
            normed, slope = rows[piece].float() * scales[piece], grad[piece].float()
            if grad_weight is not None:
                grad_weight += (slope * normed).sum(0)
            if grad_rows is not None:
                slope = slope * weight
                along = torch.linalg.vecdot(slope, normed).div_(rows.shape[1])[:, None]
                grad_rows[piece] = slope.addcmul_(normed, along, value=-1).mul_(scales[piece])
        shaped = None if grad_rows is None else grad_rows.view(grad_outputs[0].shape)
        return shaped, None if grad_weight is None else grad_weight.to(weight.dtype), None


class _GatedNetwork(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        gates, ups = rows @ gate.to(x.dtype).T, rows @ up.to(x.dtype).T
        trains = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        ctx.save_for_backward(rows if trains else None, gates, ups, gate, up, down)
        return (_activated(gates, ups) @ down.to(x.dtype).T).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        rows, gates, ups, gate, up, down = ctx.saved_tensors
        needs_x, needs_gate, needs_up, needs_down = ctx.needs_input_grad
        grad = grad_outputs[0].reshape(len(gates), -1)
        grad_down = (grad.T @ _activated(gates, ups)).to(down.dtype) if needs_down else None
        slopes = grad @ down.to(grad.dtype)
        grad_gates, grad_ups = torch.empty_like(gates), slopes
        for piece in _pieces(gates):
            slope, gate_piece = slopes[piece], gates[piece]
            torch.ops.aten.silu_backward.grad_input(slope * ups[piece], gate_piece, grad_input=grad_gates[piece])
            grad_ups[piece] = slope * functional.silu(gate_piece)
        grad_x = None
        if needs_x:
            grad_x = torch.addmm(grad_gates @ gate.to(grad.dtype), grad_ups, up.to(grad.dtype))
            grad_x = grad_x.view(*grad_outputs[0].shape[:-1], -1)
        grad_gate = (grad_gates.T @ rows).to(gate.dtype) if needs_gate else None
        return grad_x, grad_gate, (grad_ups.T @ rows).to(up.dtype) if needs_up else None, grad_down


def _activated(gates: Tensor, ups: Tensor) -> Tensor:
    output = torch.empty_like(gates)
    for piece in _pieces(gates):
        torch.mul(functional.silu(gates[piece]), ups[piece], out=output[piece])
    return output


def _pieces(rows: Tensor) -> list[slice]:
    """Slices of rows of about PIECE elements on a CPU; everything at once elsewhere, where launches cost more."""
    size = max(1, PIECE // rows.shape[1]) if rows.device.type == "cpu" else max(1, len(rows))
    return [slice(start, start + size) for start in range(0, len(rows), size)]


def _is_norm(module: nn.Module) -> bool:
    """Whether a module takes one tensor and holds one vector called weight and a small constant, as RMS norms do."""
    names = [name for name, _ in module.named_parameters()]
    if names != ["weight"] or list(module.children()) or len(inspect.signature(module.forward).parameters) != 1:
        return False
    return module.get_parameter("weight").ndim == 1 and isinstance(_eps(module), float)


def _eps(module: nn.Module) -> object:
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


def _norm_forward(module: Any, x: Tensor) -> Tensor:
    return rms_norm(x, module.weight, module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps)


def _is_gated(module: nn.Module) -> bool:
    parts = dict(module.named_children())
    if set(parts) != {"gate_proj", "up_proj", "down_proj", "act_fn"} or list(module.parameters(recurse=False)):
        return False
    linears = [parts[name] for name in ("gate_proj", "up_proj", "down_proj")]
    return all(isinstance(linear, nn.Linear) and linear.bias is None for linear in linears)


def _gated_forward(module: Any, x: Tensor) -> Tensor:
    return gated_network(x, module.gate_proj.weight, module.up_proj.weight, module.down_proj.weight)


@torch.no_grad()
def _same(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> bool:
    """Whether `forward` gives what the module's own forward gives, up to the rounding of its dtype."""
    weight = next(module.parameters())
    probe = torch.linspace(-2, 2, 3 * weight.shape[-1], device=weight.device).view(3, -1).to(weight.dtype).sin()
    try:
        expected = module(probe)
    except (TypeError, RuntimeError):  # a module that wants more than one tensor
        return False
    found = forward(probe)
    if not isinstance(expected, Tensor) or expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    tolerance = 16 * torch.finfo(weight.dtype).eps
    return torch.allclose(found.float(), expected.float(), rtol=tolerance, atol=tolerance * float(expected.abs().max()))
