"""Safetensors checkpoints written from byte ranges of other files, in constant memory, whatever the model's size."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hybridizer.checkpoint.copy import copy_range, write_all
from hybridizer.checkpoint.hashing import HASH_THREADS, hash_file
from hybridizer.checkpoint.header import TensorEntry
from hybridizer.checkpoint.layout import (
    OutputTensor,
    encode_header,
    encode_index,
    name_shards,
    plan_shards,
    required_bytes,
)
from hybridizer.checkpoint.publish import to_output_error
from hybridizer.checkpoint.reader import INDEX_NAME
from hybridizer.checkpoint.sealing import Growth, flush_growing, hash_growing
from hybridizer.core.errors import OutputError, Problem
from hybridizer.core.files import flush_folder, write_file

MAX_UNSEALED_SHARDS: Final = 8  # files held open: a small max_shard_bytes must not use up the process's descriptors


@dataclass(frozen=True, slots=True)
class WrittenCheckpoint:
    """What was written: sha256 (64 hex digits) by file name, the index's name if there is one, bytes of all files."""

    files: dict[str, str]
    index: str | None
    num_bytes: int


def write_checkpoint(
    folder: Path,
    tensors: Sequence[OutputTensor],
    *,
    max_shard_bytes: int,
    metadata: Mapping[str, str],
    on_progress: Callable[[int], None],
) -> WrittenCheckpoint:
    """Write `tensors` as `model.safetensors`, or as shards of at most `max_shard_bytes` of data and an index.

    `folder` exists and holds no checkpoint; the caller publishes it. The same tensors give the same bytes.
    A tensor larger than a shard gets one of its own. `on_progress` is called with the number of bytes just written;
    the calls add up to the tensors' bytes. Files have mode 0644 and are flushed to disk. Each sha256 is of what the
    file holds when it is read back. Other threads flush and hash what has been written while this one writes on.
    Raises OutputError when the disk is full, a source changed since its header was read, or a callable gives more or
    fewer bytes than its tensor takes.
    """
    _check_arguments(tensors, max_shard_bytes)
    shards = plan_shards(tensors, max_shard_bytes)
    by_name = dict(zip(name_shards(len(shards)), shards, strict=True))
    try:
        hashes = _write_shards(folder, by_name, metadata, on_progress)
        if len(shards) > 1:
            write_file(folder / INDEX_NAME, encode_index(by_name))
            hashes[INDEX_NAME] = hash_file(folder / INDEX_NAME)
        flush_folder(folder)
        num_bytes = sum((folder / name).stat().st_size for name in hashes)
        return WrittenCheckpoint(hashes, INDEX_NAME if len(shards) > 1 else None, num_bytes)
    except OSError as error:
        raise to_output_error(error, folder, required_bytes(tensors)) from error


def write_shard(
    target: int, tensors: Sequence[OutputTensor], metadata: Mapping[str, str], on_progress: Callable[[int], None]
) -> None:
    """Write one safetensors file of `tensors`, in their order, to the file descriptor `target`; nothing is flushed."""
    write_all(target, encode_header(tensors, metadata))
    write_tensors(target, tensors, on_progress)


def write_tensors(target: int, tensors: Sequence[OutputTensor], on_progress: Callable[[int], None]) -> None:
    """Append the bytes of `tensors`, in their order, to the file descriptor `target`."""
    for part in _coalesce(tensors):
        if isinstance(part, OutputTensor):
            _write_chunks(part, target, on_progress)
        else:
            copy_range(part.file, part.begin, part.end, target, on_progress)


@dataclass(frozen=True, slots=True)
class _Range:
    file: Path
    begin: int
    end: int


def _check_arguments(tensors: Sequence[OutputTensor], max_shard_bytes: int) -> None:
    assert tensors, "a checkpoint needs a tensor"
    assert max_shard_bytes > 0, f"max_shard_bytes is {max_shard_bytes}"
    assert len({tensor.name for tensor in tensors}) == len(tensors), "two tensors have one name"
    for tensor in tensors:
        entries = _entries(tensor)
        if entries is not None:
            same = {entry.dtype for entry in entries} == {tensor.dtype}
            same = same and sum(entry.num_bytes for entry in entries) == tensor.num_bytes
            assert same, f"{tensor.name} cannot be the bytes of {entries}"


def _write_shards(
    folder: Path,
    shards: Mapping[str, Sequence[OutputTensor]],
    metadata: Mapping[str, str],
    on_progress: Callable[[int], None],
) -> dict[str, str]:
    """The sha256 of every shard. Two kinds of threads follow this one: some hash, and one flushes shard after shard."""
    stop = threading.Event()
    growths: list[Growth] = []
    hashed: list[Future[str]] = []
    flushed: list[Future[None]] = []
    hashing, flushing = ThreadPoolExecutor(HASH_THREADS), ThreadPoolExecutor(1)
    with contextlib.ExitStack() as open_files:
        try:
            for number, (name, tensors) in enumerate(shards.items()):
                if number >= MAX_UNSEALED_SHARDS:
                    earliest = number - MAX_UNSEALED_SHARDS
                    flushed[earliest].result()
                    hashed[earliest].result()
                    growths[earliest].file.close()
                file = open_files.enter_context((folder / name).open("xb", buffering=0))
                growth = Growth(file)
                growths.append(growth)
                hashed.append(hashing.submit(hash_growing, folder / name, growth, stop))
                flushed.append(flushing.submit(flush_growing, growth, stop))
                write_shard(file.fileno(), tensors, metadata, _reporting(growth, on_progress))
                growth.advance()
                growth.end()
            for future in flushed:
                future.result()
            return {name: future.result() for name, future in zip(shards, hashed, strict=True)}
        finally:
            stop.set()
            for growth in growths:  # after an error its threads still wait for more
                growth.end()
            for pool in (hashing, flushing):
                pool.shutdown(cancel_futures=True)


def _reporting(growth: Growth, on_progress: Callable[[int], None]) -> Callable[[int], None]:
    def advance(num_bytes: int) -> None:
        growth.advance()
        on_progress(num_bytes)

    return advance


def _coalesce(tensors: Sequence[OutputTensor]) -> list[OutputTensor | _Range]:
    """The parts of a shard in order: donor ranges, neighbours joined, and the tensors that a callable yields."""
    parts: list[OutputTensor | _Range] = []
    for tensor in tensors:
        entries = _entries(tensor)
        if entries is None:
            parts.append(tensor)
        for source in entries or ():
            last = parts[-1] if parts else None
            if isinstance(last, _Range) and (last.file, last.end) == (source.file, source.begin):
                parts[-1] = _Range(last.file, last.begin, source.end)
            else:
                parts.append(_Range(source.file, source.begin, source.end))
    return parts


def _entries(tensor: OutputTensor) -> tuple[TensorEntry, ...] | None:
    """The tensors whose bytes make up `tensor`; None where a callable yields them."""
    source = tensor.source
    if isinstance(source, TensorEntry):
        return (source,)
    return source if isinstance(source, tuple) else None


def _write_chunks(tensor: OutputTensor, target: int, on_progress: Callable[[int], None]) -> None:
    assert callable(tensor.source), tensor
    written = 0
    for chunk in tensor.source():
        data = memoryview(chunk)
        written += data.nbytes
        if written > tensor.num_bytes:
            break
        write_all(target, data)
        on_progress(data.nbytes)
    if written != tensor.num_bytes:
        found = f"more than that ({written} and counting)" if written > tensor.num_bytes else f"{written}"
        what = f"{tensor.dtype} of shape {list(tensor.shape)} takes {tensor.num_bytes} bytes, its source gave {found}."
        raise OutputError(
            Problem(f"tensor {tensor.name}", what, "This is an error in the code that computes the tensor.")
        )
