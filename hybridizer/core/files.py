"""Files and folders that are either complete or not there: made under a temporary name, flushed, then renamed."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

STALE_SECONDS: Final = 24 * 3600.0  # nothing that is still being written has been left alone for so long

# The names that `new_file` and `new_folder` give.
_TEMPORARY: Final = re.compile(r"\..+\.([a-z0-9_]{8})\.partial")


def flush_folder(folder: Path) -> None:
    """Flush a folder's entries (names, not contents) to disk, so that a rename inside it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(folder: Path) -> None:
    """Flush a folder with all files and folders in it to disk; links are left alone."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_symlink():
            continue
        if path.is_dir():
            flush_folder(path)
        elif path.is_file():
            flush_file(path)


def flush_file(path: Path) -> None:
    """Flush a file's content to disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary file to fill, which becomes `path` (mode 0644) when the block ends, and is removed when it raises.

    A reader of `path` sees the old file or the whole new one. Raises OSError as the file system gives it.
    """
    with _replacing(path) as partial:
        yield partial
        flush_file(partial)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """`new_file` for a block that flushes the file itself."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=".partial", dir=path.parent)
    os.fchmod(descriptor, 0o644)
    os.close(descriptor)
    partial = Path(temporary)
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def write_file(path: Path, content: str | bytes) -> None:
    """Write `content` to `path` as `new_file` does."""
    data = content.encode() if isinstance(content, str) else content
    with _replacing(path) as partial, partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # only the descriptor that wrote is sure to report a failed write


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A hidden folder to fill, which becomes `path` when the block ends, and is removed when it raises.

    `path` may be missing or an empty folder when the block ends. Raises OSError as the file system gives it.
    """
    partial = hidden_sibling(path)
    partial.mkdir()
    try:
        yield partial
        flush_tree(partial)
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # the error that ended the block is the one to report
        raise
    flush_folder(path.parent)


def remove_stale(folder: Path) -> None:
    """Remove the temporary files and folders in `folder` that killed runs left: nothing in them changed for a day.

    For caches, which several runs write at once without a lock. What cannot be removed is left.
    """
    newest_stale = time.time() - STALE_SECONDS
    for path in folder.glob(".*.partial"):
        if not _TEMPORARY.fullmatch(path.name):
            continue
        with contextlib.suppress(OSError):  # another run removed it first, or it belongs to another user
            if max(part.lstat().st_mtime for part in (path, *path.rglob("*"))) > newest_stale:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def hidden_sibling(path: Path) -> Path:
    """A name beside `path` that nothing has: `.<name>.<8 hex digits>.partial`."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
