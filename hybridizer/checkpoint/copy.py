"""Bytes from one file into another, inside the kernel if possible, otherwise through user memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from hybridizer.core.errors import OutputError, Problem

KERNEL_CHUNK_BYTES = 64 << 20
HAND_CHUNK_BYTES = 4 << 20

Buffer = bytes | bytearray | memoryview


def copy_range(file: Path, begin: int, end: int, target: int, on_progress: Callable[[int], None]) -> None:
    """Append bytes `begin` to `end` of `file` to the open file descriptor `target`.

    Calls `on_progress` with the number of bytes of each step. Raises OutputError naming `file` when it cannot be read,
    or ends before `end` (it was complete when its header was read); OSError when `target` cannot be written.
    """
    try:
        source = os.open(file, os.O_RDONLY)
    except OSError as error:
        raise _unreadable(file, error) from None
    try:
        reached = _copy_in_kernel(source, begin, end, target, on_progress)
        _copy_by_hand(file, source, reached, end, target, on_progress)
    finally:
        os.close(source)


def write_all(target: int, data: Buffer) -> None:
    """Write all of `data` to a file descriptor: a single write may take only a part."""
    view = memoryview(data)
    if view.nbytes == 0:  # an empty array of several dimensions cannot be cast
        return
    view = view.cast("B")
    while view:
        view = view[os.write(target, view) :]


def _copy_in_kernel(source: int, begin: int, end: int, target: int, on_progress: Callable[[int], None]) -> int:
    """Copies as far as copy_file_range can and returns the offset reached."""
    if not hasattr(os, "copy_file_range"):
        return begin
    position = begin
    while position < end:
        try:
            step = os.copy_file_range(source, target, min(KERNEL_CHUNK_BYTES, end - position), position)
        except OSError:
            # Not on this kernel, not between these file systems, disk full, bad sector: copying by hand either
            # works or fails on the side at fault.
            return position
        if step == 0:  # the file's end, or a file system that copies nothing: reading shows which
            return position
        position += step
        on_progress(step)
    return position


def _copy_by_hand(
    file: Path, source: int, begin: int, end: int, target: int, on_progress: Callable[[int], None]
) -> None:
    position = begin
    while position < end:
        try:
            data = os.pread(source, min(HAND_CHUNK_BYTES, end - position), position)
        except OSError as error:
            raise _unreadable(file, error) from None
        if not data:
            what = f"bytes {begin} to {end} were to be copied, the file now ends at {position}."
            fix = "It changed while it was being copied: let its writer finish, then run again."
            raise OutputError(Problem(str(file), what, fix))
        write_all(target, data)
        position += len(data)
        on_progress(len(data))


def _unreadable(file: Path, error: OSError) -> OutputError:
    return OutputError(Problem(str(file), f"cannot be read: {error.strerror}.", "Restore the file, then run again."))
