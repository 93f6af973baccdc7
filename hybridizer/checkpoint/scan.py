"""NaN and infinity in weights: a scan of every byte of a tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
    import numpy as np

    mask = np.array(pattern.mask, dtype=f"<u{pattern.bytes_each}")
    bits = mask if pattern.bits is None else np.array(pattern.bits, dtype=mask.dtype)
    count = 0
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    try:
        with entry.file.open("rb") as file:
            file.seek(entry.begin)
            for begin in range(entry.begin, entry.end, _CHUNK_BYTES):
                piece = buffer[: min(_CHUNK_BYTES, entry.end - begin)]
                if file.readinto(piece) != len(piece):
                    what = f"tensor '{entry.name}' ends at byte {entry.end}, the file ends before."
                    raise CheckpointError(Problem(str(entry.file), what, "The file changed: download it again."))
                count += int(np.count_nonzero((np.frombuffer(piece, mask.dtype) & mask) == bits))
    except OSError as error:
        problem = Problem(str(entry.file), f"cannot be read: {error.strerror}.", "Check permissions and the disk.")
        raise CheckpointError(problem) from None
    return count
