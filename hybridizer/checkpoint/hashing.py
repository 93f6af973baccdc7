"""sha256 of files and of checkpoints, cached so that gigabytes are read once and not at every run."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from hybridizer.checkpoint.copy import Buffer
from hybridizer.checkpoint.header import TensorEntry
from hybridizer.core.errors import CheckpointError, Problem
from hybridizer.core.files import remove_stale, write_file
from hybridizer.core.records import content_hash

HASH_THREADS: Final = max(2, min(4, os.cpu_count() or 1))
RACY_NS: Final = 2_000_000_000

_CHUNK_BYTES = 1 << 20
_COMPARED_BYTES: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class _Identity:
    """What changes whenever a file's content does: ctime too, because programs set mtime back and cannot set ctime."""

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


def hash_chunks(chunks: Iterable[Buffer]) -> str:
    """The sha256 of bytes that come in pieces, 64 hex digits."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def hash_file(path: Path, stop: threading.Event | None = None) -> str:
    """The sha256 of a file's content, 64 hex digits.

    Setting `stop` from another thread ends it within a megabyte; the result is then meaningless.
    Raises OSError as the file system gives it. Releases the interpreter lock, so that files hash side by side.
    """
    chunks = _read_chunks(path, 0, sys.maxsize)
    return hash_chunks(chunks if stop is None else itertools.takewhile(lambda _: not stop.is_set(), chunks))


def hash_tensor(entry: TensorEntry) -> str:
    """`sha256:<hex>` of the bytes of one tensor in its file. Raises OSError as the file system gives it."""
    return f"sha256:{hash_chunks(read_tensor_chunks(entry))}"


def read_tensor_chunks(entry: TensorEntry) -> Iterator[memoryview]:
    """The bytes of one tensor, in pieces of a megabyte, each valid until the next is read."""
    return _read_chunks(entry.file, entry.begin, entry.num_bytes)


def _read_chunks(path: Path, begin: int, num_bytes: int) -> Iterator[memoryview]:
    """At most `num_bytes` of a file from `begin`, in pieces of a megabyte, each valid until the next is read."""
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        file.seek(begin)
        while num_bytes and (size := file.readinto(buffer[: min(num_bytes, _CHUNK_BYTES)])):
            yield buffer[:size]
            num_bytes -= size


def hash_files(files: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    """(name, sha256) of each file in the order given; several are read at once.

    Raises OSError as the file system gives it. Closing the iterator stops the reading.
    """
    return _side_by_side(hash_file, files)


def fingerprint_files(files: Mapping[str, Path], cache_folder: Path, clock_ns: Callable[[], int] = time.time_ns) -> str:
    """`sha256:<hex>` over the names in `files` and the content of each: the same wherever the files lie.

    Content hashes are kept in `cache_folder` by path, size, times and inode. A file that changed less than two seconds
    before it was read is not kept: the next change could fall into the same tick of the clock and not be noticed.
    Raises CheckpointError when a file cannot be read, or changes while it is.
    """

    def hash_one(path: Path, stop: threading.Event) -> str:
        return _hash_cached(path, cache_folder, clock_ns, stop)

    return content_hash(dict(_side_by_side(hash_one, files)))


def _side_by_side(
    hash_one: Callable[[Path, threading.Event], str], files: Mapping[str, Path]
) -> Iterator[tuple[str, str]]:
    stop = threading.Event()
    pool = ThreadPoolExecutor(HASH_THREADS)
    try:
        futures = {name: pool.submit(hash_one, path, stop) for name, path in files.items()}
        for name, future in futures.items():
            yield name, future.result()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _hash_cached(path: Path, cache_folder: Path, clock_ns: Callable[[], int], stop: threading.Event) -> str:
    try:
        before = _identity(path)
        place = cache_folder / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()}.json"
        if known := _recall(place, before):
            return known
        found = hash_file(path, stop)
        after = _identity(path)
    except OSError as error:
        problem = Problem(str(path), f"cannot be read: {error.strerror}.", "Restore the file, or check permissions.")
        raise CheckpointError(problem) from None
    if before != after:
        problem = Problem(str(path), "the file changed while it was read.", "Let the writer finish, then run again.")
        raise CheckpointError(problem)
    if clock_ns() - after.ctime_ns >= RACY_NS and not stop.is_set():
        # A cache folder that is read-only or full makes the next run slower, not this one wrong.
        with contextlib.suppress(OSError):
            cache_folder.mkdir(parents=True, exist_ok=True)
            remove_stale(cache_folder)
            write_file(place, json.dumps({"identity": asdict(after), "sha256": found}) + "\n")
    return found


def _identity(path: Path) -> _Identity:
    status = path.stat()
    return _Identity(str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def _recall(place: Path, identity: _Identity) -> str | None:
    """The cached sha256 of the file with this identity; None if there is none, or none that is usable."""
    try:
        record = json.loads(place.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or record.get("identity") != asdict(identity):
        return None
    found = record.get("sha256")
    is_hash = isinstance(found, str) and len(found) == 64 and set(found) <= set("0123456789abcdef")
    return found if is_hash else None


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
            count = min(left, _COMPARED_BYTES)
            piece = first.read(count)
            if len(piece) != count or piece != second.read(count):
                return False
            left -= count
    return True
