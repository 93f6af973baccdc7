"""Output folders that appear under their name complete and flushed, or not at all.

A run writes into a hidden sibling, `.<name>.<random>.partial`, which is renamed when all is done. A lock file beside
it, `.<name>.lock`, keeps a second run out; what a killed run left behind is removed by the next.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hybridizer.core.errors import OutputError, Problem, path_and_reason
from hybridizer.core.files import flush_folder, flush_tree, hidden_sibling

MANIFEST_NAME: Final = "manifest.json"

LOCK_SECONDS: Final = 0.1  # after this time the holder of a lock counts as another run

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def begin_output(final: Path, *, replace: bool = False) -> Iterator[Path]:
    """A hidden folder to fill, which becomes `final` when the block ends, and is removed when the block raises.

    `final` may be missing or an empty folder. With `replace` it may also be a finished output (one that holds a
    manifest.json): the two are swapped in one step where the system can (Linux), else the old one is moved away just
    before, so that a kill in between leaves no folder under the name. Missing parent folders are made.
    Raises OutputError when `final` is occupied, is a mount point, or is being written by another run, and when the
    file system refuses.
    """
    final = Path(os.path.abspath(final))  # noqa: PTH100  resolve() would follow the link that is to be refused
    with _reporting_os_errors(final):
        _make_parents(final)
    with lock(final):
        with _reporting_os_errors(final):
            _check_vacant(final, replace=replace)
            _remove_stale(final)
            temporary = hidden_sibling(final)
            temporary.mkdir()
        try:
            yield temporary
            with _reporting_os_errors(final):
                flush_tree(temporary)
                left_over = _publish(temporary, final, replace=replace)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)  # the error that ended the run is the one to report
            raise
        if left_over:
            shutil.rmtree(left_over, ignore_errors=True)  # hidden; the next run tries again


@contextlib.contextmanager
def _reporting_os_errors(final: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise to_output_error(error, final.parent) from error


def _make_parents(final: Path) -> None:
    missing = [parent for parent in final.parents if not parent.exists()]
    final.parent.mkdir(parents=True, exist_ok=True)
    for parent in missing:
        flush_folder(parent.parent)


@contextlib.contextmanager
def lock(final: Path) -> Iterator[None]:
    """Keep other runs off the folder `final`, there or not yet. Raises OutputError when another run is writing it."""
    import filelock

    path = final.with_name(f".{final.name}.lock")
    held = filelock.FileLock(path, mode=0o644, fallback_to_soft=False)  # a soft lock would outlive a killed run
    try:
        # Not tried once only: a run that just ended may have removed the file that was opened, which is then no lock.
        held.acquire(timeout=LOCK_SECONDS, poll_interval=LOCK_SECONDS / 10)
    except filelock.Timeout:
        what = "another run is writing this folder now."
        fix = "Wait for it to end, or choose another output folder."
        raise OutputError(Problem(str(final), what, fix)) from None
    except OSError as error:
        if error.filename:  # the lock file could not be made, as no other file could
            raise to_output_error(error, final.parent) from error
        what = f"this folder cannot be locked against other runs: {error.strerror}."
        fix = "Choose an output folder on a file system that has file locks."
        raise OutputError(Problem(str(final), what, fix)) from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        held.release()


def _check_vacant(final: Path, *, replace: bool) -> None:
    if final.is_symlink() or (final.exists() and not final.is_dir()):
        kind = "a symbolic link" if final.is_symlink() else "a file"
        raise OutputError(Problem(str(final), f"{kind} of that name is there.", "Choose another output folder."))
    if not final.exists():
        return
    if final.is_mount():
        what = "is a mount point, which cannot be swapped for a finished folder."
        raise OutputError(Problem(str(final), what, "Name a new folder inside it."))
    names = sorted(entry.name for entry in final.iterdir())
    if not names or (replace and MANIFEST_NAME in names):
        return
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    if replace:
        what = f"holds no {MANIFEST_NAME}, so it is not a finished output that may be replaced; it holds {shown}."
        raise OutputError(Problem(str(final), what, "Choose another output folder, or remove this one yourself."))
    fix = "Choose another output folder, or pass --replace."
    raise OutputError(Problem(str(final), f"the folder exists and holds {shown}.", fix))


def _remove_stale(final: Path) -> None:
    # No live run can own these: this one holds the lock. "a" must not take ".a.b.01234567.partial", which is of "a.b".
    pattern = re.compile(re.escape(f".{final.name}.") + r"[0-9a-f]{8}\.partial")
    for path in final.parent.iterdir():
        if pattern.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)


def _publish(temporary: Path, final: Path, *, replace: bool) -> Path | None:
    """Gives the finished folder its name, durably. Returns where the folder that it replaced is now, if it did."""
    left_over = None
    if replace and final.exists():
        left_over = temporary if _exchange(temporary, final) else _move_aside(temporary, final)
    else:
        temporary.rename(final)
    flush_folder(final.parent)
    return left_over


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two names in one step. False where kernel or file system cannot, and then nothing has changed."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    names = (ctypes.c_int(_AT_FDCWD), os.fsencode(one), ctypes.c_int(_AT_FDCWD), os.fsencode(other))
    if libc.renameat2(*names, ctypes.c_uint(_RENAME_EXCHANGE)) == 0:
        return True
    code = ctypes.get_errno()
    if code in {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}:
        return False
    raise OSError(code, os.strerror(code), str(other))


def _move_aside(temporary: Path, final: Path) -> Path:
    aside = hidden_sibling(final)
    final.rename(aside)
    try:
        temporary.rename(final)
    except OSError:
        aside.rename(final)
        raise
    return aside


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
    where, reason = path_and_reason(error, str(folder))
    if error.errno in _NO_ROOM:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(there).free
        during = "" if needed is None else f" while writing {_show(needed)}"
        return OutputError(Problem(str(folder), f"{reason}{during}; {_show(free)} are free now.", _MAKE_ROOM))
    return OutputError(Problem(where, f"{reason}.", "Check the disk and the permissions, then run again."))


def _show(num_bytes: int) -> str:
    return f"{num_bytes} bytes ({num_bytes / 1e9:.2f} GB)"
