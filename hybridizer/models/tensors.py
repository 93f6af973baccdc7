"""Tensors of a safetensors file as torch tensors and back to bytes, for the few that are converted or blended."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hybridizer.checkpoint.dtypes import TORCH_NAMES
from hybridizer.checkpoint.header import TensorEntry
from hybridizer.core.errors import PlanError, Problem

if TYPE_CHECKING:
    import torch

_CHUNK_ELEMENTS = 4 << 20


def torch_dtype(dtype: str) -> torch.dtype:
    """The torch dtype of a safetensors dtype code such as "BF16"."""
    import torch

    found = getattr(torch, TORCH_NAMES[dtype])
    assert isinstance(found, torch.dtype)
    return found


def read_tensor(entry: TensorEntry) -> torch.Tensor:
    """The whole tensor, in its own dtype, in memory of its own."""
    import torch

    data = bytearray(entry.num_bytes)
    with entry.file.open("rb") as file:
        file.seek(entry.begin)
        if file.readinto(data) != entry.num_bytes:
            raise _changed(entry)
    if not data:
        return torch.empty(entry.shape, dtype=torch_dtype(entry.dtype))
    return torch.frombuffer(data, dtype=torch_dtype(entry.dtype)).reshape(entry.shape)


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The tensor's elements as little-endian bytes in row order, without a copy where it is contiguous."""
    import torch

    return memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def converted_chunks(entry: TensorEntry, dtype: str) -> Iterator[memoryview]:
    """The tensor's bytes in another floating dtype, rounded to nearest even, a few megabytes at a time.

    Raises PlanError when a finite value does not fit: float16 ends at 65504.
    """
    import torch

    target = torch_dtype(dtype)
    width = entry.num_bytes // max(1, entry.num_elements)
    with entry.file.open("rb") as file:
        file.seek(entry.begin)
        for start in range(0, entry.num_elements, _CHUNK_ELEMENTS):
            count = min(_CHUNK_ELEMENTS, entry.num_elements - start)
            data = bytearray(count * width)
            if file.readinto(data) != len(data):
                raise _changed(entry)
            chunk = torch.frombuffer(data, dtype=torch_dtype(entry.dtype))
            result = chunk.to(target)
            if bool((result.isinf() & chunk.isfinite()).any()):
                what = (
                    f"tensor '{entry.name}' holds values up to {float(chunk.abs().max()):.4g}, too large for {dtype}."
                )
                raise PlanError(Problem(str(entry.file), what, "Use bfloat16 or float32 as output.dtype."))
            yield tensor_bytes(result)


def _changed(entry: TensorEntry) -> PlanError:
    what = f"tensor '{entry.name}' ends before its {entry.num_bytes} bytes: the file changed after it was opened."
    return PlanError(Problem(str(entry.file), what, "Leave donors alone while a build runs; run it again."))
