"""A file flushed to disk and hashed while it is still being written, by threads that follow the writer."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from hybridizer.checkpoint.hashing import hash_chunks

FLUSH_BYTES: Final = 256 << 20  # written back in steps of this size, so that little is left for the flush at the end

_CHUNK_BYTES = 1 << 20
_NUM_BUFFERS = 3  # one is being hashed, one waits, one is being filled


class Growth:
    """How much of a file has been written, in bytes from its begin: told by the writer, awaited by other threads."""

    def __init__(self, file: FileIO) -> None:
        self.file = file
        self._changed = threading.Condition()
        self._reached = 0
        self.ended = False

    def advance(self) -> None:
        """Tell the threads that wait that all bytes before the descriptor's position are written."""
        with self._changed:
            self._reached = self.file.tell()
            self._changed.notify_all()

    def end(self) -> None:
        """Tell them that nothing more will be written."""
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    def wait_beyond(self, position: int) -> int:
        """The number of bytes written, as soon as it is more than `position` or nothing more will be written."""
        with self._changed:
            self._changed.wait_for(lambda: self.ended or self._reached > position)
            return self._reached


def hash_growing(path: Path, growth: Growth, stop: threading.Event) -> str:
    """The sha256 of what the file `path` holds, read back as it is written; 64 hex digits.

    Setting `stop` ends it within a megabyte; the result is then meaningless. Raises OSError as the file system gives
    it. A thread of its own reads ahead: one that reads and hashes in turns spends a seventh of its time reading, and
    a single large file waits for it (docs/log.md).
    """
    empty: SimpleQueue[bytearray | None] = SimpleQueue()
    filled: SimpleQueue[memoryview | None] = SimpleQueue()
    for _ in range(_NUM_BUFFERS):
        empty.put(bytearray(_CHUNK_BYTES))
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(_follow, path, growth, stop, empty, filled)
        try:
            digest = hash_chunks(_take(filled, empty))
        finally:
            empty.put(None)  # a thread that still reads must not wait for buffers that do not come
        reading.result()
        return digest


def _follow(
    path: Path,
    growth: Growth,
    stop: threading.Event,
    empty: SimpleQueue[bytearray | None],
    filled: SimpleQueue[memoryview | None],
) -> None:
    """Put the file's bytes into `filled` as they are written, in buffers from `empty`; None comes last."""
    position = 0
    try:
        with path.open("rb", buffering=0) as file:
            while (reached := growth.wait_beyond(position)) > position:
                while position < reached:
                    buffer = empty.get()
                    if buffer is None:
                        return
                    piece = memoryview(buffer)[: min(_CHUNK_BYTES, reached - position)]
                    size = file.readinto(piece)
                    if not size or stop.is_set():  # no size: it was cut short by another program
                        return
                    filled.put(piece[:size])
                    position += size
    finally:
        filled.put(None)


def _take(filled: SimpleQueue[memoryview | None], empty: SimpleQueue[bytearray | None]) -> Iterator[memoryview]:
    """The pieces in `filled`, each valid until the next is taken: its buffer then goes back to `empty`."""
    while (piece := filled.get()) is not None:
        yield piece
        buffer = piece.obj
        assert isinstance(buffer, bytearray)
        empty.put(buffer)


def flush_growing(growth: Growth, stop: threading.Event) -> None:
    """Make the file readable by all, flush it in steps while it is written, and as a whole at its end.

    Uses the descriptor that writes: only that one is sure to report a failed write. Raises OSError then. Setting
    `stop` leaves out what is not flushed yet.
    """
    descriptor, flushed = growth.file.fileno(), 0
    os.fchmod(descriptor, 0o644)
    while (reached := growth.wait_beyond(flushed + FLUSH_BYTES)) and not growth.ended:
        os.fdatasync(descriptor)
        flushed = reached
    if not stop.is_set():
        os.fsync(descriptor)
