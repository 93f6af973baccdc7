"""The journal of a trace: its readings on disk after every batch, so that an interruption loses at most one batch."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hybridizer.core.errors import InputError, Problem
from hybridizer.core.files import flush_folder
from hybridizer.core.records import to_jsonable
from hybridizer.trace.readings import Reading


class JournalError(InputError):
    """A journal that is damaged, or that of another trace."""


class TraceProgress:
    """A JSON Lines file: a line with the key of the trace, then one for each finished batch, flushed to disk.

    A last line cut short by a crash is dropped on opening. Another trace's journal is never continued or overwritten.
    """

    def __init__(self, path: Path, key: str) -> None:
        """Open the journal at `path`, or start it. Raises JournalError for a damaged one, or one with another key."""
        self.path = path
        self.finished: list[Reading] = []
        header = _encode({"key": key})
        content = path.read_bytes() if path.exists() else b""
        if header.startswith(content):  # new, empty, or killed while starting
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(header)
            flush_folder(path.parent)
            return
        if not content.startswith(header):
            what = "this is not the journal of this trace (same donor, probes and settings)."
            raise JournalError(Problem(str(path), what, "Name another file, or delete this one to start over."))
        whole = content[: content.rindex(b"\n") + 1]
        for number, line in enumerate(whole.splitlines()[1:], start=2):
            self.finished += _decode(f"{path}:{number}", line)
        if len({reading.index for reading in self.finished}) < len(self.finished):
            raise _damage(str(path), "a prompt was read twice")
        os.truncate(path, len(whole))

    def append(self, batch: Sequence[Reading]) -> None:
        """Add one finished batch; it is on disk when this returns."""
        with self.path.open("ab") as file:
            file.write(_encode(to_jsonable(batch)))
            file.flush()
            os.fsync(file.fileno())


def _encode(value: object) -> bytes:
    return json.dumps(value, allow_nan=False).encode() + b"\n"


def _decode(where: str, line: bytes) -> list[Reading]:
    try:
        batch = json.loads(line)
    except ValueError as error:
        raise _damage(where, str(error)) from None
    names = {field.name for field in dataclasses.fields(Reading)}
    if not isinstance(batch, list) or not all(isinstance(item, dict) and set(item) == names for item in batch):
        raise _damage(where, "the line holds no readings")
    return [Reading(**{name: _frozen(value) for name, value in item.items()}) for item in batch]


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _damage(where: str, reason: str) -> JournalError:
    return JournalError(Problem(where, f"damaged journal: {reason}.", "Delete the file to start the trace over."))
