"""Matrix products of bfloat16 tensors on processors without bfloat16 instructions: in float32, rounded once.

Such a processor emulates the instructions, three times slower than it multiplies in float32 (measured in docs/log.md).
The operands here are upcast, which is exact, multiplied in float32 and rounded to bfloat16, as the instructions do,
which also accumulate in float32. Tensors saved for the backward pass stay in bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hybridizer.models.hardware import choose_matmul_dtype

_aten = torch.ops.aten
_ATTENTION = _aten._scaled_dot_product_flash_attention_for_cpu.default
_PRODUCTS = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten.baddbmm.default,
    _aten._grouped_mm.default,
    _ATTENTION,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
}


def matmul_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype in which a training in `dtype` multiplies on `device`, see `hardware.choose_matmul_dtype`."""
    found: torch.dtype = getattr(torch, choose_matmul_dtype(str(dtype).removeprefix("torch."), device.type))
    return found


class UpcastMatmul(TorchDispatchMode):
    """Inside the block, matrix products and attention of bfloat16 tensors on a CPU compute in float32, in both passes.

    Every operation inside passes through Python, about 20 microseconds each: meant for large tensors. Convolutions are
    left alone: they are as fast in bfloat16.
    """

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run `func`, with operands upcast and results rounded where it is a product of bfloat16 tensors."""
        kwargs = kwargs or {}
        if func not in _PRODUCTS or not _is_low(args[0]):
            return func(*args, **kwargs)
        result = func(*map(_upcast, args), **{key: _upcast(value) for key, value in kwargs.items()})
        if func is _ATTENTION:
            return result[0].bfloat16(), result[1]  # the sum of exponentials is float32 in every precision
        return result.bfloat16() if isinstance(result, Tensor) else tuple(part.bfloat16() for part in result)


def _is_low(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.bfloat16 and value.device.type == "cpu"


def _upcast(value: Any) -> Any:
    return value.float() if _is_low(value) else value
