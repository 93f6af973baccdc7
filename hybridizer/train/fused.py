"""Norms and gated networks that keep less for the backward pass, used in place of a model's own during a training.

Modules are recognised by what they hold and then by what they compute: one is replaced only when its own output and the
replacement's agree on a probe. Element-wise work goes through the cache in pieces; measured on SmolLM2 shapes in
float32, a norm takes half the time forwards and backwards, a gated network keeps 2 of 4 wide activations.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hybridizer.models.parts import MODEL_FAULTS
from hybridizer.models.wrapping import replaced_forward
from hybridizer.train.low_bits import in_dtype

PIECE = 2**16  # elements: with their float32 temporaries they stay in a second-level cache of 1 MB


@dataclass(frozen=True)
class Activation:
    """An element-wise function, and its slope: `slope(grad, x, grad_input=out)` writes grad times f'(x) into out."""

    apply: Callable[[Tensor], Tensor]
    slope: Callable[..., Tensor]


SILU = Activation(functional.silu, torch.ops.aten.silu_backward.grad_input)
GELU = Activation(functional.gelu, torch.ops.aten.gelu_backward.grad_input)
TANH_GELU = Activation(partial(functional.gelu, approximate="tanh"), partial(GELU.slope, approximate="tanh"))


@contextmanager
def fused(model: nn.Module) -> Iterator[tuple[int, int]]:
    """Inside the block, RMS norms and gated networks of `model` run as below; yields how many of each were replaced."""
    norms = {module: forward for module in model.modules() if (forward := _fused_norm(module)) is not None}
    gated = {module: forward for module in model.modules() if (forward := _fused_gated(module)) is not None}
    with replaced_forward({**norms, **gated}):
        yield len(norms), len(gated)


def rms_norm(x: Tensor, weight: Tensor, eps: float, around_one: bool = False) -> Tensor:
    """`x` (..., width) divided by its root mean square over the width, times `weight`; computed in float32.

    The result is rounded to the dtype of `x` before the weight is applied. `around_one` is the other way of the
    families: the factor is 1 + weight, and rounding comes last.
    """
    output: Tensor = _RmsNorm.apply(x, weight, eps, around_one)
    return output


def gated_network(
    x: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    activation: Activation = SILU,
    scales: Sequence[Tensor | None] = (None, None, None),
) -> Tensor:
    """`(act(x @ gate.T) * (x @ up.T)) @ down.T`, keeping only x and the two products for the backward pass.

    `scales` are those of weights kept in 8 or 4 bits, as `low_bits.encode` gives them.
    """
    output: Tensor = _GatedNetwork.apply(x, gate, up, down, activation, *scales)
    return output


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, around_one: bool) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        factor = 1 + weight.float() if around_one else weight
        rounded = torch.float32 if around_one else x.dtype
        output = rows.new_empty(rows.shape, dtype=x.dtype if around_one else torch.promote_types(x.dtype, weight.dtype))
        scales = rows.new_empty((len(rows), 1), dtype=torch.float32)
        for piece in _pieces(rows):
            exact = rows[piece].float()
            scales[piece, 0] = torch.linalg.vecdot(exact, exact).div_(rows.shape[1]).add_(eps).rsqrt_()
            torch.mul((exact * scales[piece]).to(rounded), factor, out=output[piece])
        ctx.save_for_backward(rows, weight, scales)
        ctx.around_one = around_one
        return output.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, scales = ctx.saved_tensors
        factor = 1 + weight.float() if ctx.around_one else weight
        grad = grad_outputs[0].reshape(rows.shape)
        grad_rows = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for piece in _pieces(rows):
            normed, slope = rows[piece].float() * scales[piece], grad[piece].float()
            if grad_weight is not None:
                grad_weight += (slope * normed).sum(0)
            if grad_rows is not None:
                slope = slope * factor
                along = torch.linalg.vecdot(slope, normed).div_(rows.shape[1])[:, None]
                grad_rows[piece] = slope.addcmul_(normed, along, value=-1).mul_(scales[piece])
        shaped = None if grad_rows is None else grad_rows.view(grad_outputs[0].shape)
        return shaped, None if grad_weight is None else grad_weight.to(weight.dtype), None, None


class _GatedNetwork(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gate: Tensor, up: Tensor, down: Tensor, activation: Activation, *scales: Tensor | None
    ) -> Tensor:
        rows, (gate_scales, up_scales, down_scales) = x.reshape(-1, x.shape[-1]), scales
        gates = rows @ in_dtype(gate, gate_scales, x.dtype).T
        ups = rows @ in_dtype(up, up_scales, x.dtype).T
        trains = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        ctx.save_for_backward(rows if trains else None, gates, ups, gate, up, down, *scales)
        ctx.activation = activation
        output = _activated(gates, ups, activation) @ in_dtype(down, down_scales, x.dtype).T
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        rows, gates, ups, gate, up, down, gate_scales, up_scales, down_scales = ctx.saved_tensors
        needs_x, needs_gate, needs_up, needs_down, *_ = ctx.needs_input_grad
        activation = ctx.activation
        grad = grad_outputs[0].reshape(len(gates), -1)
        grad_down = (grad.T @ _activated(gates, ups, activation)).to(down.dtype) if needs_down else None
        slopes = grad @ in_dtype(down, down_scales, grad.dtype)
        grad_gates, grad_ups = torch.empty_like(gates), slopes
        for piece in _pieces(gates):
            slope, gate_piece = slopes[piece], gates[piece]
            activation.slope(slope * ups[piece], gate_piece, grad_input=grad_gates[piece])
            grad_ups[piece] = slope * activation.apply(gate_piece)
        grad_x = None
        if needs_x:
            grad_x = grad_gates @ in_dtype(gate, gate_scales, grad.dtype)
            grad_x = torch.addmm(grad_x, grad_ups, in_dtype(up, up_scales, grad.dtype))
            grad_x = grad_x.view(*grad_outputs[0].shape[:-1], -1)
        grad_gate = (grad_gates.T @ rows).to(gate.dtype) if needs_gate else None
        grad_up = (grad_ups.T @ rows).to(up.dtype) if needs_up else None
        return grad_x, grad_gate, grad_up, grad_down, None, None, None, None


def _activated(gates: Tensor, ups: Tensor, activation: Activation) -> Tensor:
    output = torch.empty_like(gates)
    for piece in _pieces(gates):
        torch.mul(activation.apply(gates[piece]), ups[piece], out=output[piece])
    return output


def _pieces(rows: Tensor) -> list[slice]:
    """Slices of rows of about PIECE elements on a CPU; everything at once elsewhere, where launches cost more."""
    size = max(1, PIECE // rows.shape[1]) if rows.device.type == "cpu" else max(1, len(rows))
    return [slice(start, start + size) for start in range(0, len(rows), size)]


def _fused_norm(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """The forward pass to put in place of a norm's, or None. Compared in float32, where a wrong one shows."""
    if not _is_norm(module):
        return None
    exact = copy.deepcopy(module).float()
    for around_one in (False, True):
        if _same(exact, partial(_norm_forward, exact, around_one)):
            return partial(_norm_forward, module, around_one)
    return None


def _is_norm(module: nn.Module) -> bool:
    """Whether a module takes one tensor and holds one vector called weight and a small constant, as RMS norms do."""
    names = [name for name, _ in module.named_parameters()]
    if names != ["weight"] or list(module.children()) or len(inspect.signature(module.forward).parameters) != 1:
        return False
    return module.get_parameter("weight").ndim == 1 and isinstance(_eps(module), float)


def _eps(module: nn.Module) -> Any:
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


def _norm_forward(module: Any, around_one: bool, x: Tensor) -> Tensor:
    return rms_norm(x, module.weight, _eps(module), around_one)


def _fused_gated(module: Any) -> Callable[[Tensor], Tensor] | None:
    """The forward pass to put in place of a gated network's, or None."""
    activation = _find_activation(module.act_fn, (SILU, TANH_GELU, GELU)) if _is_gated(module) else None
    if activation is None:
        return None
    forward = partial(_gated_forward, module, activation)
    return forward if _same(module, forward) else None


@torch.no_grad()
def _find_activation(function: Callable[[Tensor], Tensor], known: Sequence[Activation]) -> Activation | None:
    """Which of `known` the model's own function is, in float32: in bfloat16 SiLU could pass for GELU."""
    probe = torch.linspace(-6, 6, 193)
    expected = function(probe)
    return next((a for a in known if torch.allclose(a.apply(probe), expected, rtol=1e-5, atol=1e-6)), None)


def _is_gated(module: nn.Module) -> bool:
    parts = dict(module.named_children())
    if set(parts) != {"gate_proj", "up_proj", "down_proj", "act_fn"} or list(module.parameters(recurse=False)):
        return False
    linears = [parts[name] for name in ("gate_proj", "up_proj", "down_proj")]
    learnt = list(parts["act_fn"].parameters())
    return not learnt and all(isinstance(linear, nn.Linear) and linear.bias is None for linear in linears)


def _gated_forward(module: Any, activation: Activation, x: Tensor) -> Tensor:
    linears = (module.gate_proj, module.up_proj, module.down_proj)
    gate, up, down = (linear.weight for linear in linears)
    return gated_network(x, gate, up, down, activation, [getattr(linear, "scales", None) for linear in linears])


@torch.no_grad()
def _same(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> bool:
    """Whether `forward` gives what the module's own forward gives, up to the rounding of its dtype."""
    weight = next(module.parameters())
    probe = torch.linspace(-2, 2, 3 * weight.shape[-1], device=weight.device).view(3, -1).to(weight.dtype).sin()
    try:
        expected = module(probe)
    except MODEL_FAULTS:  # a module that takes more than one tensor, or one of another shape
        return False
    found = forward(probe)
    if not isinstance(expected, Tensor) or expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    tolerance = 16 * torch.finfo(weight.dtype).eps
    return torch.allclose(found.float(), expected.float(), rtol=tolerance, atol=tolerance * float(expected.abs().max()))
