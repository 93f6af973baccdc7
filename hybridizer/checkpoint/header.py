"""Headers of safetensors files, read by hand: where each tensor's bytes lie, without reading them.

A file is an 8-byte little-endian header length, a JSON header, and the tensors' bytes without a gap.
"""

from __future__ import annotations

import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from hybridizer.checkpoint.dtypes import DTYPE_BITS, SUB_BYTE_DTYPES
from hybridizer.checkpoint.sniff import SNIFF_BYTES, describe_foreign
from hybridizer.checkpoint.strict_json import parse_object, shorten
from hybridizer.core.errors import CheckpointError, Problem

MAX_HEADER_BYTES: Final = 100_000_000  # the safetensors library's own limit
MAX_DIMENSIONS: Final = 64
LENGTH_BYTES: Final = 8

_REFETCH = "The file is damaged or was cut short: download it again, or restore it from where it came."
_REWRITE = "The program that wrote this file made an error: write it again with the safetensors library."


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a safetensors file; its bytes are `begin` (included) to `end` (excluded), counted in the file."""

    name: str
    dtype: str  # as safetensors spells it, "BF16"
    shape: tuple[int, ...]
    file: Path
    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.begin

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    """The header of one file: tensors in the order of their bytes, and the free-text metadata."""

    path: Path
    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]
    num_bytes: int  # of the whole file


def read_header(path: Path) -> Header:
    """The header of the safetensors file `path`, accepted only if it agrees with the file's size.

    Raises CheckpointError when the file is not there, is something else (pickle, Git LFS pointer, web page), is cut
    short, or when its header contradicts itself: an unknown dtype, a shape that does not fit its bytes, offsets that
    overlap, leave a gap or leave the file, a name that occurs twice.
    """
    return parse_header(path, *_read_raw(path))


def parse_header(path: Path, raw: bytes, num_bytes: int) -> Header:
    """`read_header` of the header's JSON text `raw`, for a file `path` of `num_bytes` in all, which is not read.

    Raises CheckpointError as `read_header` does.
    """
    parsed = parse_object(raw, str(path), _REFETCH)
    metadata = _check_metadata(path, parsed.pop("__metadata__", {}))
    data_start = LENGTH_BYTES + len(raw)
    entries = [_parse_entry(path, name, value, data_start, num_bytes) for name, value in parsed.items()]
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    _check_contiguous(path, entries, data_start, num_bytes)
    return Header(path, {entry.name: entry for entry in entries}, metadata, num_bytes)


def _refuse(path: Path, what: str, fix: str) -> NoReturn:
    raise CheckpointError(Problem(str(path), what, fix))


def _read_raw(path: Path) -> tuple[bytes, int]:
    """The header's JSON text and the size of the whole file, in bytes."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # opening a pipe would block
            kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
            _refuse(path, f"a safetensors file was expected, this is {kind}.", "Name the file itself.")
        with path.open("rb") as file:
            num_bytes = os.fstat(file.fileno()).st_size
            first = file.read(SNIFF_BYTES)
            length = int.from_bytes(first[:LENGTH_BYTES], "little")
            _check_length(path, first, length, num_bytes)
            file.seek(LENGTH_BYTES)
            raw = file.read(length)
    except FileNotFoundError:
        what = "a broken symbolic link." if path.is_symlink() else "this file was expected and is not there."
        _refuse(path, what, "Download or restore the file.")
    except OSError as error:
        _refuse(path, f"cannot be read: {error.strerror}.", "Check permissions and the disk.")
    if len(raw) != length:
        _refuse(path, f"a header of {length} bytes was announced, {len(raw)} could be read.", _REFETCH)
    return raw, num_bytes


def _check_length(path: Path, first: bytes, length: int, num_bytes: int) -> None:
    starts_like_json = first[LENGTH_BYTES : LENGTH_BYTES + 1] == b"{"
    fits = 2 <= length <= min(MAX_HEADER_BYTES, num_bytes - LENGTH_BYTES)
    if fits and starts_like_json:
        return
    if foreign := describe_foreign(first):
        _refuse(path, f"not safetensors: {foreign[0]}", foreign[1])
    if num_bytes < LENGTH_BYTES:
        _refuse(path, f"not safetensors: {num_bytes} bytes cannot even hold a header length.", _REFETCH)
    if length > MAX_HEADER_BYTES:
        what = f"its first 8 bytes announce a header of {length} bytes; no header exceeds {MAX_HEADER_BYTES}."
        _refuse(path, what, "This is not a safetensors file, or it is damaged: download it again.")
    if not fits:
        what = f"its first 8 bytes announce a header of {length} bytes, the file has {num_bytes} bytes in all."
        _refuse(path, what, _REFETCH)
    _refuse(path, "the header does not start with '{'.", "This is not a safetensors file, or it is damaged.")


def _check_metadata(path: Path, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        _refuse(path, f"__metadata__ must map text to text, found {shorten(value)}.", _REWRITE)
    return value


def _parse_entry(path: Path, name: str, value: Any, data_start: int, num_bytes: int) -> TensorEntry:
    if not name or any(ord(character) < 32 for character in name):
        _refuse(path, f"a tensor is named {shorten(name)}; names need visible characters.", _REWRITE)
    where = f"tensor {shorten(name)}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        _refuse(path, f"{where} needs exactly dtype, shape and data_offsets, found {shorten(value)}.", _REWRITE)
    dtype = _check_dtype(path, where, value["dtype"])
    shape = _check_counts(path, f"{where}: shape", value["shape"])
    if len(shape) > MAX_DIMENSIONS:
        _refuse(path, f"{where} has {len(shape)} dimensions; at most {MAX_DIMENSIONS} are read.", _REWRITE)
    begin, end = _check_range(path, where, value["data_offsets"], num_bytes - data_start)
    needed = math.prod(shape) * DTYPE_BITS[dtype] // 8
    if needed != end - begin:
        size = f"{dtype} of shape {shorten(list(shape))} takes {shorten(needed)} bytes"
        _refuse(path, f"{where}: {size}, it is given {end - begin}.", _REWRITE)
    return TensorEntry(name, dtype, shape, path, data_start + begin, data_start + end)


def _check_dtype(path: Path, where: str, value: Any) -> str:
    if isinstance(value, str) and value in DTYPE_BITS:
        return value
    if isinstance(value, str) and value in SUB_BYTE_DTYPES:
        what = f"{where} has dtype {value}, which packs several numbers into a byte."
        _refuse(path, what, "Such tensors are not supported: use a donor in BF16, F16, F32 or 8-bit floats.")
    _refuse(path, f"{where} has the unknown dtype {shorten(value)}.", f"Known are {', '.join(DTYPE_BITS)}.")


def _check_counts(path: Path, where: str, value: Any) -> tuple[int, ...]:
    # bool is an int to Python, and 2.0 equals 2: both are refused, as in the safetensors library.
    if not isinstance(value, list) or not all(type(item) is int and 0 <= item < 2**63 for item in value):
        _refuse(path, f"{where} must be a list of whole numbers from 0, found {shorten(value)}.", _REWRITE)
    return tuple(value)


def _check_range(path: Path, where: str, value: Any, num_data_bytes: int) -> tuple[int, int]:
    offsets = _check_counts(path, f"{where}: data_offsets", value)
    if len(offsets) != 2 or not offsets[0] <= offsets[1] <= num_data_bytes:
        what = f"{where}: data_offsets {shorten(list(offsets))} are not a range in the {num_data_bytes} bytes of data."
        _refuse(path, what, _REFETCH)
    return offsets[0], offsets[1]


def _check_contiguous(path: Path, entries: list[TensorEntry], data_start: int, num_bytes: int) -> None:
    position = data_start
    for entry in entries:
        if entry.begin != position:
            kind = "overlaps the tensor before it" if entry.begin < position else "leaves a gap before it"
            _refuse(path, f"tensor {shorten(entry.name)} {kind} (at byte {entry.begin}, not {position}).", _REWRITE)
        position = entry.end
    if position != num_bytes:
        what = f"its tensors end at byte {position}, the file at {num_bytes}: the bytes between belong to none."
        _refuse(path, what, _REFETCH)
