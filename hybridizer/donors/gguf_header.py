"""The few facts of a GGUF file that are needed before it is dequantised, read from its header alone."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

from hybridizer.core.errors import CheckpointError, Problem

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MOST_KEYS, _MOST_ITEMS, _LONGEST_TEXT = 100_000, 1 << 28, 1 << 24


class _Malformed(Exception):
    pass


def read_gguf_header(path: Path) -> dict[str, Any]:
    """The scalar and text metadata of a GGUF file by key, such as `llama.block_count`; arrays are passed over.

    Takes milliseconds where the package `gguf` takes seconds: it stops before the tensors and keeps no vocabulary.
    Raises CheckpointError when the file is no GGUF file or ends early.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise _Malformed("it does not begin with the letters GGUF")
            version, _, num_keys = struct.unpack("<IQQ", _exactly(file, 20))
            if version not in (2, 3):
                raise _Malformed(f"GGUF version {version} is not 2 or 3")
            if num_keys > _MOST_KEYS:
                raise _Malformed(f"its header claims {num_keys} entries")
            return dict(entry for entry in (_read_entry(file) for _ in range(num_keys)) if entry[1] is not None)
    except FileNotFoundError:
        raise CheckpointError(Problem(str(path), "there is no such file.", "Check the path.")) from None
    except OSError as error:
        raise CheckpointError(Problem(str(path), f"cannot be read: {error.strerror}.", "Check the path.")) from None
    except (_Malformed, UnicodeDecodeError) as error:
        raise CheckpointError(
            Problem(str(path), f"not a readable GGUF file: {error}.", "Fetch the file again.")
        ) from None


def _read_entry(file: BinaryIO) -> tuple[str, Any]:
    key = _read_text(file).decode()
    (kind,) = struct.unpack("<I", _exactly(file, 4))
    return key, _read_value(file, kind)


def _read_value(file: BinaryIO, kind: int) -> Any:
    if kind in _SCALARS:
        return struct.unpack(_SCALARS[kind], _exactly(file, struct.calcsize(_SCALARS[kind])))[0]
    if kind == _STRING:
        return _read_text(file).decode(errors="replace")
    if kind != _ARRAY:
        raise _Malformed(f"value type {kind} is unknown")
    item, count = struct.unpack("<IQ", _exactly(file, 12))
    if count > _MOST_ITEMS:
        raise _Malformed(f"an array of {count} items in the header")
    if item in _SCALARS:
        file.seek(count * struct.calcsize(_SCALARS[item]), 1)
    elif item == _STRING:
        for _ in range(count):
            _read_text(file)
    else:
        raise _Malformed(f"array items of type {item} are unknown")
    return None


def _read_text(file: BinaryIO) -> bytes:
    (length,) = struct.unpack("<Q", _exactly(file, 8))
    if length > _LONGEST_TEXT:
        raise _Malformed(f"a text of {length} bytes in the header")
    return _exactly(file, length)


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise _Malformed(f"it ends inside its header, at byte {file.tell()}")
    return data
