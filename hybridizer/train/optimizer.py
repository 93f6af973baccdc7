"""AdamW over float32 masters of the trained tensors only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hybridizer.core.errors import InputError, Problem
from hybridizer.models.sharding import is_sharded, local_part, shard_like, unshard
from hybridizer.recipe.models import Train
from hybridizer.train.freeze import FreezePlan

_FACTOR = "lr_factor"  # of a parameter group


class Masters:
    """The trained tensors in float32: the parameters themselves where they are float32, copies where they are not."""

    def __init__(self, model: nn.Module, plan: FreezePlan) -> None:
        parameters = dict(model.named_parameters())
        self._parameters = {name: parameters[name] for name in plan.trained}
        self.tensors: Mapping[str, Tensor] = {name: _master(p) for name, p in self._parameters.items()}
        self._low = [name for name, p in self._parameters.items() if p.dtype != torch.float32]
        self._sides = {name: plan.side(name) for name in plan.trained}

    @torch.no_grad()
    def collect_gradients_(self) -> None:
        """Add the gradients of low-precision parameters to their masters', in float32, and free them."""
        for name in self._low:
            parameter, master = self._parameters[name], self.tensors[name]
            if parameter.grad is None:
                continue
            grad = parameter.grad.float()
            master.grad = grad if master.grad is None else master.grad.add_(grad)
            parameter.grad = None

    @torch.no_grad()
    def publish_(self) -> None:
        """Round the masters into the parameters that compute."""
        if self._low:
            torch._foreach_copy_([self._parameters[n] for n in self._low], [self.tensors[n] for n in self._low])

    def reached(self) -> set[str]:
        """The tensors that have a gradient which is not all zero."""
        return {
            name
            for name, tensor in self.tensors.items()
            if tensor.grad is not None and bool(unshard(tensor.grad.count_nonzero()))
        }

    def gradient_norms(self) -> dict[str, float]:
        """The L2 norm of the gradients of each side (`shallow`, `deep`) that trains, and of all (`total`)."""
        norms = {}
        for side in sorted(set(self._sides.values())):
            grads = [t.grad for n, t in self.tensors.items() if self._sides[n] == side and t.grad is not None]
            norms[side] = float(unshard(torch.nn.utils.get_total_norm(grads))) if grads else 0.0
        norms["total"] = sum(norm**2 for norm in norms.values()) ** 0.5
        return norms

    @torch.no_grad()
    def scale_gradients_(self, factor: float) -> None:
        """Multiply every gradient by `factor`."""
        torch._foreach_mul_([t.grad for t in self.tensors.values() if t.grad is not None], factor)

    def not_finite(self) -> list[str]:
        """The tensors that hold NaN or infinity, in this process's part of them."""
        return [name for name, tensor in self.tensors.items() if not bool(local_part(tensor.detach()).isfinite().all())]

    def state(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Masters and the optimizer's state for them, by name: `master.<name>`, `exp_avg.<name>` and so on.

        Whole tensors, and plain numbers as tensors of int64 without an axis. Every process must call this.
        """
        tensors = {f"master.{name}": unshard(tensor.detach()) for name, tensor in self.tensors.items()}
        for name, tensor in self.tensors.items():
            for key, value in optimizer.state[tensor].items():
                tensors[f"{key}.{name}"] = unshard(value) if isinstance(value, Tensor) else torch.tensor(value)
        return _apart(tensors)

    @torch.no_grad()
    def load_(self, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned, and publish it."""
        for key, value in tensors.items():
            kind, name = key.split(".", 1)
            master = self.tensors[name]
            if kind == "master":
                master.copy_(shard_like(value, master))
            elif value.ndim == 0:
                optimizer.state[master][kind] = int(value) if value.dtype == torch.int64 else value
            else:
                optimizer.state[master][kind] = shard_like(value, master)
        self.publish_()


def make_optimizer(
    masters: Mapping[str, Tensor], settings: Train, factors: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """The optimizer over `masters`, fused where torch has it; weight decay skips vectors.

    `factors` scale the learning rate of tensors by name, and with it their decay, which AdamW multiplies by the rate.
    Raises InputError for adamw8bit where bitsandbytes is missing or tensors are sharded over processes.
    """
    sizes = {name: (factors or {}).get(name, 1.0) for name in masters}
    groups: list[dict[str, Any]] = []
    for factor in dict.fromkeys(sizes.values()):
        tensors = [tensor for name, tensor in masters.items() if sizes[name] == factor]
        decayed, plain = ([t for t in tensors if (t.ndim >= 2) == matrix] for matrix in (True, False))
        groups.append({"params": decayed, "weight_decay": settings.weight_decay, _FACTOR: factor})
        groups.append({"params": plain, "weight_decay": 0.0, _FACTOR: factor})
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "adamw8bit":
        return _eight_bit(groups, settings)
    fused = all(t.device.type in {"cpu", "cuda", "mps", "xpu"} for t in masters.values())
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=fused)


def set_rate_(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group of `optimizer` the learning rate `lr`, times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group[_FACTOR]


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """`tensors`, copied where two share memory, as the 8-bit optimizer's tables do: safetensors refuses such pairs."""
    seen: set[int] = set()
    for key, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        if place in seen:
            tensors[key] = tensor.clone()
        seen.add(place)
    return tensors


def _master(parameter: nn.Parameter) -> Tensor:
    return parameter if parameter.dtype == torch.float32 else parameter.detach().float().requires_grad_(True)


def _eight_bit(groups: list[dict[str, Any]], settings: Train) -> torch.optim.Optimizer:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        fix = "pip install bitsandbytes, or use adamw."
        raise InputError(Problem("train.optimizer", "adamw8bit needs the package bitsandbytes.", fix)) from None
    if any(is_sharded(tensor) for group in groups for tensor in group["params"]):
        what = "adamw8bit cannot hold tensors that FSDP shards over processes."
        raise InputError(Problem("train.optimizer", what, "Use adamw, or DDP, which does not shard them."))
    optimizer: torch.optim.Optimizer = AdamW8bit(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps)
    return optimizer
