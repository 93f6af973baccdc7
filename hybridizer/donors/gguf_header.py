"""The header of a GGUF file, read without a library: metadata of the model, and the place of its tensors.

It is checked against the file's size and against itself before a library reads the file.
"""

from __future__ import annotations

import math
import re
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from hybridizer.checkpoint.sniff import SNIFF_BYTES, describe_foreign
from hybridizer.checkpoint.strict_json import shorten
from hybridizer.core.errors import CheckpointError, Problem

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MOST_KEYS, _MOST_TENSORS, _MOST_ITEMS, _LONGEST_TEXT = 100_000, 1_000_000, 1 << 28, 1 << 24
_MOST_DIMENSIONS, _MOST_ELEMENTS = 4, 1 << 48
_LONGEST_CONTEXT = 1 << 24  # tokens; the longest of 2026 is 10 million
_DEFAULT_ALIGNMENT = 32
_LAYER = re.compile(r"blk\.(\d{1,9})\.")
_REFETCH = "Download the file again."


class _Malformed(Exception):
    pass


@dataclass(frozen=True)
class GgufTensor:
    """One tensor as the header lists it: its shape in torch's order, its ggml type, and the byte at which it begins."""

    name: str
    shape: tuple[int, ...]
    kind: int
    begin: int

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class GgufHeader:
    """The scalar and text metadata by key (arrays are left out), every tensor by name, the size of the file."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]
    alignment: int
    num_bytes: int

    @property
    def architecture(self) -> str | None:
        found = self.metadata.get("general.architecture")
        return found if isinstance(found, str) else None

    def setting(self, name: str) -> Any:
        """The value of `<architecture>.<name>`; None where it is absent."""
        return self.metadata.get(f"{self.architecture}.{name}")


def read_gguf_header(path: Path) -> GgufHeader:
    """The header of a GGUF file, from its first bytes to the list of tensors.

    Takes milliseconds where the package `gguf` takes seconds, since it keeps no vocabulary. Raises CheckpointError when
    the file is not a GGUF file, ends early, or lists tensors that are not inside it.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would block forever
            raise _Malformed("it is not a regular file")
        with path.open("rb") as file:
            return _read(path, file, status.st_size)
    except FileNotFoundError:
        raise CheckpointError(Problem(str(path), "there is no such file.", "Check the path.")) from None
    except OSError as error:
        raise CheckpointError(Problem(str(path), f"cannot be read: {error.strerror}.", "Check the path.")) from None
    except (_Malformed, UnicodeDecodeError) as error:
        raise CheckpointError(Problem(str(path), f"not a readable GGUF file: {error}.", _REFETCH)) from None


def count_layers(header: GgufHeader) -> int:
    """The number of layers, equal in metadata and tensors.

    Raises CheckpointError when it is not, when the header lacks a key that is needed to build the model (transformers
    would use its defaults: 32 layers, 32 heads), and for implausible sizes.
    """
    path = header.path
    if header.architecture is None:
        _refuse(path, "its header has no `general.architecture`, the family of the model.")
    needed = ["block_count", "embedding_length"]
    if any(".attn_" in name for name in header.tensors):
        needed.append("attention.head_count")
    for name in needed:
        if header.setting(name) is None:
            _refuse(path, f"its header has no `{header.architecture}.{name}`; a default would be a guess.")
    widest = max((size for tensor in header.tensors.values() for size in tensor.shape), default=0)
    for key, value in header.metadata.items():
        if not key.startswith(f"{header.architecture}.") or not isinstance(value, int):
            continue
        most = _LONGEST_CONTEXT if "context" in key or "window" in key else max(widest, len(header.tensors))
        if not 0 <= value <= most:
            _refuse(path, f"`{key}` is {shorten(value)}, and no tensor is as wide." if value > 0 else f"`{key}` < 0.")
    depth = header.setting("block_count")
    layers = {int(match[1]) for match in map(_LAYER.match, header.tensors) if match}
    if type(depth) is not int or layers != set(range(min(depth, len(layers) + 1))):
        found = f"layers 0..{max(layers)}" if layers else "no layer"
        lacking = sorted(set(range(max(layers, default=0))) - layers) if len(layers) < 100_000 else []
        without = f" without {', '.join(map(str, lacking[:5]))}" if lacking else ""
        _refuse(path, f"`block_count` is {shorten(depth)}, and it holds {found}{without}.")
    return depth


def _refuse(path: Path, what: str) -> NoReturn:
    raise CheckpointError(
        Problem(str(path), what, f"{_REFETCH} If the error stays, report it to the author of the file.")
    )


def _read(path: Path, file: BinaryIO, num_bytes: int) -> GgufHeader:
    first = file.read(SNIFF_BYTES)
    if first[:4] != b"GGUF":
        foreign = describe_foreign(first)
        found = f": {foreign[0].rstrip('.')}" if foreign else ""
        raise _Malformed(f"it does not begin with the letters GGUF{found}")
    file.seek(4)
    version, num_tensors, num_keys = struct.unpack("<IQQ", _exactly(file, 20))
    if version not in (2, 3):
        raise _Malformed(f"GGUF version {version} is not 2 or 3")
    if num_keys > _MOST_KEYS:
        raise _Malformed(f"its header claims {num_keys} entries")
    if num_tensors > _MOST_TENSORS:
        raise _Malformed(f"its header claims {num_tensors} tensors")
    metadata: dict[str, Any] = {}
    keys = set()
    for _ in range(num_keys):
        key, value = _read_entry(file, num_bytes)
        if key in keys:
            raise _Malformed(f"its header has the key {shorten(key)} twice")
        keys.add(key)
        if value is not None:
            metadata[key] = value
    infos = [_read_info(file) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
        raise _Malformed(f"its alignment is {shorten(alignment)}, not a power of two")
    start = -(-file.tell() // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for name, shape, kind, offset in infos:
        if name in tensors:
            raise _Malformed(f"it lists the tensor {shorten(name)} twice")
        if start + offset >= num_bytes or offset % alignment:
            raise _Malformed(f"the tensor {shorten(name)} would begin at byte {start + offset} of {num_bytes}")
        tensors[name] = GgufTensor(name, shape, kind, start + offset)
    return GgufHeader(path, metadata, tensors, alignment, num_bytes)


def _read_info(file: BinaryIO) -> tuple[str, tuple[int, ...], int, int]:
    name = _read_text(file).decode()
    if not name or any(ord(character) < 32 for character in name):
        raise _Malformed(f"a tensor is named {shorten(name)}")
    (num_dimensions,) = struct.unpack("<I", _exactly(file, 4))
    if not 1 <= num_dimensions <= _MOST_DIMENSIONS:
        raise _Malformed(f"the tensor {shorten(name)} has {num_dimensions} dimensions")
    shape = struct.unpack(f"<{num_dimensions}Q", _exactly(file, 8 * num_dimensions))[::-1]
    if not 1 <= math.prod(shape) <= _MOST_ELEMENTS:
        raise _Malformed(f"the tensor {shorten(name)} has the shape {shape}")
    kind, offset = struct.unpack("<IQ", _exactly(file, 12))
    return name, shape, kind, offset


def _read_entry(file: BinaryIO, num_bytes: int) -> tuple[str, Any]:
    key = _read_text(file).decode()
    (kind,) = struct.unpack("<I", _exactly(file, 4))
    return key, _read_value(file, kind, num_bytes)


def _read_value(file: BinaryIO, kind: int, num_bytes: int) -> Any:
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
        if file.tell() > num_bytes:
            raise _Malformed("it ends inside its header, in an array")
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
