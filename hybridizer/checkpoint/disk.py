"""Room on a disk, and what is said when there is none."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Final

from hybridizer.core.errors import OutputError, Problem

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_MAKE_ROOM = "Free some space, or choose an output folder on another disk."


def check_free_space(folder: Path, needed: int) -> None:
    """Raises OutputError when the disk of `folder`, which exists, has less than `needed` bytes free for this user."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        what = f"the output needs {_show(needed)}, the disk has {_show(free)} free."
        raise OutputError(Problem(str(folder), what, _MAKE_ROOM))


def to_output_error(error: OSError, folder: Path, needed: int | None = None) -> OutputError:
    """What to raise for an `error` met while `needed` bytes (None: some) were being written into `folder`."""
    if error.errno in _NO_ROOM:
        free = shutil.disk_usage(folder).free
        asked = "" if needed is None else f" while writing {_show(needed)}"
        return OutputError(Problem(str(folder), f"{error.strerror}{asked}; {_show(free)} are free now.", _MAKE_ROOM))
    where = str(error.filename2 or error.filename or folder)
    return OutputError(Problem(where, f"{error.strerror}.", "Check the disk and the permissions, then run again."))


def _show(num_bytes: int) -> str:
    return f"{num_bytes} bytes ({num_bytes / 1e9:.2f} GB)"
