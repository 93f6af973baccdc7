"""Every error hybridizer raises on purpose.

    HybridizerError              exit code
    ├── InputError                   2      the input is invalid, and the user can correct it
    │   ├── RecipeError                     a recipe: all its problems at once, each with its line
    │   ├── DonorError                      a donor that cannot be found, or is refused
    │   ├── CheckpointError                 a checkpoint whose files are damaged or contradict themselves
    │   └── PlanError                       donors that cannot be joined as the recipe requests
    └── RunError                     1      the input was good and the run still failed
        ├── OutputError                     the output could not be written: occupied folder, full disk
        ├── VerificationError               a model folder that differs from its manifest
        ├── Interrupted            130      Ctrl-C stopped a training, whose state is saved
        └── Terminated             143      SIGTERM stopped a training, whose state is saved

Anything else that escapes is a bug in hybridizer (exit code 70, with its traceback).
Every message has four parts: where, what was requested, what was found, what to do next.
"""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

# Errors of the file system that another path, other permissions or another folder correct.
_PATH_ERRORS = {
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS,
    errno.EEXIST, errno.ENXIO, errno.EINVAL,
}  # fmt: skip


def printable(text: str) -> str:
    """`text` with every character that a terminal would act on written as an escape such as \\x1b; line ends stay.

    Names of files, tensors and recipe keys come from elsewhere. All output to a terminal passes through here.
    """
    return "".join(letter if letter.isprintable() or letter == "\n" else ascii(letter)[1:-1] for letter in text)


def printable_line(text: str) -> str:
    """`text` as `printable` gives it, on one line: line ends are written as \\n."""
    return printable(text).replace("\n", "\\n")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: `where` it is, `what` was requested and found there, and the `fix`."""

    where: str
    what: str
    fix: str

    def __str__(self) -> str:
        text = f"{printable_line(self.where)}: {printable_line(self.what)}"
        return f"{text}\n  {printable(self.fix)}" if self.fix else text


class HybridizerError(Exception):
    """Base of the tree above; carries one or more problems and prints them all."""

    exit_code: ClassVar[int] = 1

    def __init__(self, *problems: Problem) -> None:
        assert problems, "an error needs a problem"
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))


class InputError(HybridizerError):
    """The input is invalid, and the user can correct it."""

    exit_code = 2


class RecipeError(InputError):
    """A recipe that cannot be followed: every problem found in it, each with file and line."""


class DonorError(InputError):
    """A donor that cannot be found, or that is refused (pickle weights, remote code, quantised layouts)."""


class CheckpointError(InputError):
    """A checkpoint whose files are damaged, incomplete, or contradict each other."""


class PlanError(InputError):
    """Donors that cannot be joined the way the recipe asks."""


class RunError(HybridizerError):
    """The input was good and the run still failed."""


class OutputError(RunError):
    """The output could not be written: an occupied folder, a full disk, a file that changed meanwhile."""


class VerificationError(RunError):
    """A model folder that differs from its manifest."""


def from_os_error(error: OSError, where: str = "") -> HybridizerError:
    """The error to report for an OSError: InputError for a path that cannot be used, RunError otherwise (a full disk).

    `where` is used if the error itself names no file.
    """
    path, reason = path_and_reason(error, where or "the file system")
    if error.errno in _PATH_ERRORS:
        return InputError(Problem(path, f"{reason}.", "Check the path and its permissions."))
    return RunError(Problem(path, f"{reason}.", "Check the disk and its free space, and re-run."))


def path_and_reason(error: OSError, where: str) -> tuple[str, str]:
    """The path that an OSError names, else `where`, and what the system says about it."""
    path = error.filename2 or error.filename or where
    named = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else str(path)
    return named, error.strerror or str(error) or type(error).__name__


class Interrupted(RunError):
    """Ctrl-C (SIGINT) stopped a training, whose state is saved: exit code 128 + 2."""

    exit_code = 130


class Terminated(RunError):
    """SIGTERM stopped a training, whose state is saved: exit code 128 + 15."""

    exit_code = 143


class DidYouMean(str):
    """The hint for a misspelt name: "Did you mean 'x'?", or the list of `known` names where none is close to `name`."""

    def __new__(cls, name: str, known: Iterable[str]) -> DidYouMean:
        """The hint as text."""
        names = sorted(known)
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
        if close:
            return super().__new__(cls, f"Did you mean '{close[0]}'?")
        return super().__new__(
            cls, f"Known here: {', '.join(names)}." if names else "There is nothing to choose from here."
        )
