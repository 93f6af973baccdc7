"""A journal: finished pieces of long work on disk, one line each, so that an interruption loses at most one piece."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hybridizer.core.errors import InputError, Problem
from hybridizer.core.files import flush_folder
from hybridizer.core.records import to_jsonable


class JournalError(InputError):
    """A journal that is damaged, or that of other work."""


class Journal:
    """A JSON Lines file: a line with the key of the work, then one for each finished piece, flushed to disk.

    A last line cut short by a crash is dropped on opening. The journal of other work is never continued or overwritten.
    `work` names the work in messages, such as "trace (same donor, probes and settings)".
    """

    def __init__(self, path: Path, key: str, work: str) -> None:
        """Open the journal at `path`, or start it. Raises JournalError for one with another key."""
        self.path, self._work = path, work
        header = _encode({"key": key})
        content = _beginning(path, len(header))
        if header.startswith(content):  # new, empty, killed while starting, or the same work
            path.parent.mkdir(parents=True, exist_ok=True)
            if content != header:
                path.write_bytes(header)
            flush_folder(path.parent)
        else:
            what = f"this is not the journal of this {work}."
            raise JournalError(Problem(str(path), what, "Name another file, or delete this one to start over."))
        with path.open("rb") as file:
            os.truncate(path, sum(len(line) for line in file if line.endswith(b"\n")))

    @property
    def lines(self) -> Iterator[tuple[str, Any]]:
        """The finished pieces, each with "file:line", one in memory at a time. Raises JournalError for damage."""
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                where = f"{self.path}:{number}"
                try:
                    value = json.loads(line)
                except ValueError as error:
                    raise self.damage(where, str(error)) from None
                if number > 1:
                    yield where, value

    def append(self, piece: Any) -> None:
        """Add one finished piece; it is on disk when this returns."""
        with self.path.open("ab") as file:
            file.write(_encode(to_jsonable(piece)))
            file.flush()
            os.fsync(file.fileno())

    def damage(self, where: str, reason: str) -> JournalError:
        """The error for a line that does not hold what it should."""
        noun = self._work.partition(" ")[0]
        return JournalError(Problem(where, f"damaged journal: {reason}.", f"Delete the file to start the {noun} over."))


def _beginning(path: Path, num_bytes: int) -> bytes:
    """The first bytes of a file, none where it does not exist."""
    if not path.exists():
        return b""
    with path.open("rb") as file:
        return file.read(num_bytes)


def _encode(value: object) -> bytes:
    return json.dumps(value, allow_nan=False).encode() + b"\n"
