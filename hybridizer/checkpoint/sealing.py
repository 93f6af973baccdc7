"""A file flushed to disk and hashed while it is still being written, by threads that follow the writer."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Final

from hybridizer.checkpoint.hashing import hash_chunks

FLUSH_BYTES: Final = 256 << 20  # written back in steps of this size, so that little is left for the flush at the end

_CHUNK_BYTES = 1 << 20


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
    it.
    """
    return hash_chunks(_follow(path, growth, stop))


def _follow(path: Path, growth: Growth, stop: threading.Event) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    position = 0
    with path.open("rb", buffering=0) as file:
        while (reached := growth.wait_beyond(position)) > position:
            while position < reached:
                size = file.readinto(buffer[: min(_CHUNK_BYTES, reached - position)])
                if not size or stop.is_set():  # no size: it was cut short by another program
                    return
                yield buffer[:size]
                position += size


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
