"""What a long-running stage tells the outside while it works; the command line decides how that looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from hybridizer.core.errors import printable

if TYPE_CHECKING:
    from rich.console import Console


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


class ConsoleMonitor:
    """Notes as lines on standard error, tasks as bars with the time left; bars are drawn on terminals only."""

    @cached_property
    def console(self) -> Console:
        """Standard error as a rich console."""
        from rich.console import Console

        return Console(stderr=True)

    def note(self, text: str) -> None:
        """Print one line."""
        self.console.print(printable(text), highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def task(self, label: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        """Draw a bar for `total` units while the block runs; yields the function that advances it."""
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        count = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), count, TimeRemainingColumn())
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            identifier = progress.add_task(printable(label), total=total)
            yield lambda advance: progress.advance(identifier, advance)
