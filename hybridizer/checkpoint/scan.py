"""NaN and infinity in weights: a scan of every byte of a tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

from hybridizer.checkpoint.header import TensorEntry
from hybridizer.core.errors import CheckpointError, Problem

_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class _Pattern:
    """A value is not finite when its bits, seen through `mask`, are `bits`; `bits` None means the mask itself."""

    bytes_each: int
    mask: int
    bits: int | None = None

    def may_occur(self, piece: bytearray) -> bool:
        """Whether the last byte of a value in `piece` is one that a value with this pattern can have.

        Nearly all weights pass without numpy, whose import takes longer than the scan of a small model.
        """
        last = piece[self.bytes_each - 1 :: self.bytes_each]
        return any(byte in last for byte in _last_bytes(self))

    def count(self, piece: bytearray) -> int:
        """How many values in `piece` have this pattern."""
        if not self.may_occur(piece):
            return 0
        import numpy as np

        mask = np.array(self.mask, dtype=f"<u{self.bytes_each}")
        bits = mask if self.bits is None else np.array(self.bits, dtype=mask.dtype)
        return int(np.count_nonzero((np.frombuffer(piece, mask.dtype) & mask) == bits))


@cache
def _last_bytes(pattern: _Pattern) -> tuple[int, ...]:
    """What the last, most significant byte of a value with this pattern can be."""
    shift = 8 * (pattern.bytes_each - 1)
    mask, bits = pattern.mask >> shift, (pattern.mask if pattern.bits is None else pattern.bits) >> shift
    return tuple(byte for byte in range(256) if byte & mask == bits)


# Where a format has infinities, an exponent of all ones means NaN or infinity. Of the others, E4M3 has NaN as all ones
# but the sign, the FNUZ formats as the negative zero they do not have, and E8M0 as all ones.
_PATTERNS: Final[Mapping[str, _Pattern]] = {
    "F64": _Pattern(8, 0x7FF0_0000_0000_0000),
    "F32": _Pattern(4, 0x7F80_0000),
    "C64": _Pattern(4, 0x7F80_0000),
    "F16": _Pattern(2, 0x7C00),
    "BF16": _Pattern(2, 0x7F80),
    "F8_E5M2": _Pattern(1, 0x7C),
    "F8_E4M3": _Pattern(1, 0x7F),
    "F8_E8M0": _Pattern(1, 0xFF),
    "F8_E5M2FNUZ": _Pattern(1, 0xFF, 0x80),
    "F8_E4M3FNUZ": _Pattern(1, 0xFF, 0x80),
}


def find_nonfinite(entry: TensorEntry) -> int:
    """How many values of a tensor are NaN or infinite; 0 for whole numbers and BOOL. A C64 counts as two values.

    Reads the tensor once in pieces of 4 MiB. Raises CheckpointError when the file cannot be read or has shrunk.
    """
    pattern = _PATTERNS.get(entry.dtype)
    if pattern is None:
        return 0
    count = 0
    try:
        with entry.file.open("rb") as file:
            file.seek(entry.begin)
            for begin in range(entry.begin, entry.end, _CHUNK_BYTES):
                piece = bytearray(min(_CHUNK_BYTES, entry.end - begin))
                if file.readinto(piece) != len(piece):
                    what = f"tensor '{entry.name}' ends at byte {entry.end}, the file ends before."
                    raise CheckpointError(Problem(str(entry.file), what, "The file changed: download it again."))
                count += pattern.count(piece)
    except OSError as error:
        problem = Problem(str(entry.file), f"cannot be read: {error.strerror}.", "Check permissions and the disk.")
        raise CheckpointError(problem) from None
    return count
