"""Files that are either complete or not there: written under a temporary name, flushed to disk, then renamed."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def flush_folder(folder: Path) -> None:
    """Flush a folder's entries (names, not contents) to disk, so that a rename inside it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, content: str | bytes) -> None:
    """Write `content` to `path` (mode 0644) so that a reader sees the old file or the whole new one, never a part.

    Raises OSError as the file system gives it (no space, no permission); then no trace of the new content is left.
    """
    data = content.encode() if isinstance(content, str) else content
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    flush_folder(path.parent)
