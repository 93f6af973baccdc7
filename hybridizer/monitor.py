"""What a long-running stage tells the outside while it works; the command line decides how that looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Monitor(Protocol):
    """Receives progress. `note` is one finished fact; `task` yields a function that is told of each advance."""

    def note(self, text: str) -> None: ...

    def task(self, label: str, total: int, unit: str) -> AbstractContextManager[Callable[[int], None]]: ...


class SilentMonitor:
    """A monitor that says nothing: the default of library calls and of tests."""

    def note(self, text: str) -> None:
        """Drop the note."""

    @contextmanager
    def task(self, label: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        """Yield a function that drops every advance."""
        yield lambda advance: None
