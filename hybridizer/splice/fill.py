"""Tensors of one value, as the zero-output copies of a layer have: bytes without torch."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from typing import Final

from hybridizer.checkpoint.dtypes import DTYPE_BITS
from hybridizer.families.identity import MINUS_ONE, ZERO

VALUES: Final[Mapping[str, float]] = {ZERO: 0.0, MINUS_ONE: -1.0}  # by the `init` of a fresh tensor
_FORMATS: Final[Mapping[str, str]] = {"F64": "<d", "F32": "<f", "F16": "<e"}
_CHUNK_ELEMENTS: Final = 1 << 20


def filled_chunks(init: str, dtype: str, shape: tuple[int, ...]) -> Iterator[memoryview]:
    """The little-endian bytes of a tensor of a floating `dtype` whose every element is VALUES[init]."""
    value = VALUES[init]
    # bfloat16 is the upper half of float32, which holds these values exactly.
    element = struct.pack("<f", value)[2:] if dtype == "BF16" else struct.pack(_FORMATS[dtype], value)
    assert len(element) * 8 == DTYPE_BITS[dtype]
    left = math.prod(shape)
    chunk = memoryview(element * min(left, _CHUNK_ELEMENTS))
    while left > 0:
        count = min(left, _CHUNK_ELEMENTS)
        yield chunk[: count * len(element)]
        left -= count
