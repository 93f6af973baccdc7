"""The journal of a trace: its readings on disk after every batch, so that an interruption loses at most one batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hybridizer.core.journal import Journal, JournalError
from hybridizer.trace.readings import Reading

__all__ = ["JournalError", "TraceProgress"]


class TraceProgress:
    """The finished batches of a trace in a `Journal`, one line for each."""

    def __init__(self, path: Path, key: str) -> None:
        """Open the journal at `path`, or start it. Raises JournalError for one with another key."""
        self._journal = Journal(path, key, "trace (same donor, probes and settings)")
        self.path = path

    def read_finished(self, num_prompts: int) -> Iterator[list[Reading]]:
        """The finished batches, one in memory at a time, of a trace of so many prompts.

        Raises JournalError for a line that holds no readings of them, and for a prompt that was read twice.
        """
        seen: set[int] = set()
        for where, batch in self._journal.lines:
            readings = self._read(where, batch)
            indices = {reading.index for reading in readings}
            if not all(index in range(num_prompts) for index in indices):
                raise self._journal.damage(where, "the line holds readings of other prompts")
            if len(indices) < len(readings) or indices & seen:
                raise self._journal.damage(where, "a prompt was read twice")
            seen |= indices
            yield readings

    def append(self, batch: Sequence[Reading]) -> None:
        """Add one finished batch; it is on disk when this returns."""
        self._journal.append(batch)

    def _read(self, where: str, batch: Any) -> list[Reading]:
        names = {field.name for field in dataclasses.fields(Reading)}
        if not isinstance(batch, list) or not all(isinstance(item, dict) and set(item) == names for item in batch):
            raise self._journal.damage(where, "the line holds no readings")
        return [Reading(**{name: _frozen(value) for name, value in item.items()}) for item in batch]


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
