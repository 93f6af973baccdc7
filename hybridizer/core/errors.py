"""Every error hybridizer raises on purpose.

    HybridizerError              exit code
    ├── InputError                   2      what the user gave is at fault, and the user can mend it
    │   ├── RecipeError                     a recipe: all its problems at once, each with its line
    │   ├── DonorError                      a donor that cannot be found, or is refused
    │   ├── CheckpointError                 a checkpoint whose files are damaged or contradict themselves
    │   └── PlanError                       donors that cannot be joined as asked
    └── RunError                     1      the input was good and the run still failed
        ├── OutputError                     the output could not be written: occupied folder, full disk
        ├── VerificationError               a model folder that is not what its manifest says
        ├── Interrupted            130      Ctrl-C stopped a training, whose state is saved
        └── Terminated             143      SIGTERM stopped a training, whose state is saved

Anything else that escapes is a bug in hybridizer (exit code 70, with its traceback).
Every message has four parts: where, what was asked, what was found, what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar


def printable(text: str) -> str:
    """`text` with every sign that a terminal would act on written as an escape such as \\x1b; line ends stay.

    Names of files, tensors and recipe keys come from elsewhere, and reach a terminal through here.
    """
    return "".join(sign if sign.isprintable() or sign == "\n" else repr(sign)[1:-1] for sign in text)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: `where` it is, `what` was asked and found there, and the `fix`."""

    where: str
    what: str
    fix: str

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}\n  {self.fix}" if self.fix else f"{self.where}: {self.what}"
        return printable(text)


class HybridizerError(Exception):
    """Base of the tree above; carries one or more problems and prints them all."""

    exit_code: ClassVar[int] = 1

    def __init__(self, *problems: Problem) -> None:
        assert problems, "an error without a problem says nothing"
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))


class InputError(HybridizerError):
    """What the user gave is at fault, and the user can mend it."""

    exit_code = 2


class RecipeError(InputError):
    """A recipe that cannot be followed: every problem found in it, each with file and line."""


class DonorError(InputError):
    """A donor that cannot be found, or that is refused (pickle weights, remote code, quantised layouts)."""


class CheckpointError(InputError):
    """A checkpoint whose files are damaged, incomplete, or say things that cannot all be true."""


class PlanError(InputError):
    """Donors that cannot be joined the way the recipe asks."""


class RunError(HybridizerError):
    """The input was good and the run still failed."""


class OutputError(RunError):
    """The output could not be written: an occupied folder, a full disk, a file that changed underneath."""


class VerificationError(RunError):
    """A model folder that is not what its manifest says it is."""


class Interrupted(RunError):
    """Ctrl-C (SIGINT) stopped a training, whose state is saved: exit code 128 + 2."""

    exit_code = 130


class Terminated(RunError):
    """SIGTERM stopped a training, whose state is saved: exit code 128 + 15."""

    exit_code = 143


def nearest(name: str, known: Iterable[str]) -> str:
    """The clause that helps with a misspelt name: "Did you mean 'x'?", or the list of what there is."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"Did you mean '{close[0]}'?"
    return f"Known here: {', '.join(names)}." if names else "There is nothing to choose from here."
