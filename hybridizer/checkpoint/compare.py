"""Are two tensors of checkpoint files the same, byte for byte?"""

from __future__ import annotations

from typing import Final

from hybridizer.checkpoint.header import TensorEntry

_CHUNK_BYTES: Final = 8 << 20


def same_bytes(a: TensorEntry, b: TensorEntry) -> bool:
    """Whether dtype, shape and every byte agree. Reads a few megabytes at a time, and stops at the first difference.

    A file that ends inside its tensor (it shrank since its header was read) is equal to nothing.
    """
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    with a.file.open("rb") as first, b.file.open("rb") as second:
        first.seek(a.begin)
        second.seek(b.begin)
        left = a.num_bytes
        while left > 0:
            count = min(left, _CHUNK_BYTES)
            piece = first.read(count)
            if len(piece) != count or piece != second.read(count):
                return False
            left -= count
    return True
