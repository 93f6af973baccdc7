"""What a long-running stage reports while it works, and how a terminal, or a file in its place, shows it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from hybridizer.core.errors import printable_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

# Without a terminal, a task that will take longer than this is reported on a line of its own, that often.
LINE_SECONDS = 30.0
MIN_TASK_SECONDS = 10.0


class Advance(Protocol):
    """Called with how many units are done since the last call, and the figures of the moment in a few words."""

    def __call__(self, count: int, status: str = "") -> None: ...


class Monitor(Protocol):
    """Receives progress. `note` is one finished fact; `task` yields a function to be called at each advance."""

    def note(self, text: str) -> None: ...

    def task(self, label: str, total: int, unit: str) -> AbstractContextManager[Advance]: ...


class SilentMonitor:
    """A monitor that shows nothing: the default of library calls and of tests."""

    def note(self, text: str) -> None:
        """Drop the note."""

    @contextmanager
    def task(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        """Yield a function that drops every advance."""
        yield lambda count, status="": None


class ConsoleMonitor:
    """Notes as lines on standard error; tasks as bars on a terminal, and as lines at intervals elsewhere."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock

    @cached_property
    def console(self) -> Console:
        """Standard error as a rich console."""
        from rich.console import Console

        return Console(stderr=True)

    def note(self, text: str) -> None:
        """Print one line."""
        self.console.print(printable_line(text), highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def task(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        """Show how much of `total` units is done while the block runs; yields the function that advances it."""
        if not self.console.is_terminal:
            yield _Lines(self.note, label, total, unit, self._clock)
            return
        with self._bar(unit) as progress:
            identifier = progress.add_task(printable_line(label), total=total, status="")

            def advance(count: int, status: str = "") -> None:
                progress.update(identifier, advance=count, status=printable_line(status))

            yield advance

    def _bar(self, unit: str) -> Progress:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        label = TextColumn("{task.description}", markup=False)
        count: Any = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
        status = TextColumn("{task.fields[status]}", markup=False)
        columns = (label, BarColumn(bar_width=20), count, status, TimeRemainingColumn())
        return Progress(*columns, console=self.console, transient=True)


class _Lines:
    """The advances of one task as lines: the first as soon as it is known to take long, then at intervals."""

    def __init__(
        self, note: Callable[[str], None], label: str, total: int, unit: str, clock: Callable[[], float]
    ) -> None:
        self._note, self._label, self._total, self._unit, self._clock = note, label, total, unit, clock
        self._began = clock()
        self._shown: float | None = None
        self._done = self._skipped = 0

    def __call__(self, count: int, status: str = "") -> None:
        if not self._done and not count:
            return
        now = self._clock()
        if not self._done and now - self._began < 1e-3:  # done by an earlier start: it does not count for speed
            self._skipped = count
        self._done += count
        elapsed, worked = now - self._began, self._done - self._skipped
        left = elapsed / worked * max(self._total - self._done, 0) if worked else 0.0
        due = elapsed + left >= MIN_TASK_SECONDS if self._shown is None else now - self._shown >= LINE_SECONDS
        if worked and due:
            self._shown = now
            amount = _amount(self._done, self._total, self._unit)
            parts = (f"{self._label}: {amount}", status, f"{duration(left)} left" if left > 0 else "")
            self._note("  ".join(part for part in parts if part))


def duration(seconds: float) -> str:
    """A length of time in one or two units: "8 s", "12 min", "3 h 20 min"."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _amount(done: int, total: int, unit: str) -> str:
    """How much of how much: "3 of 100 steps", "1.2 GB of 4.1 GB"; `total` 0 is unknown."""
    one, all_ = (_size(done), _size(total)) if unit == "bytes" else (f"{done:,}", f"{total:,} {unit}")
    return f"{one} of {all_}" if total else one


def _size(count: int) -> str:
    for name, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {name}"
    return f"{count} B"
