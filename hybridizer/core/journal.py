"""A journal: finished pieces of long work on disk, one line each, so that an interruption loses at most one piece."""

from __future__ import annotations

import json
import os
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
        """Open the journal at `path`, or start it. Raises JournalError for a damaged one, or one with another key."""
        self.path, self._work = path, work
        self.lines: list[tuple[str, Any]] = []  # "file:line" and the value in it
        header = _encode({"key": key})
        content = path.read_bytes() if path.exists() else b""
        if header.startswith(content):  # new, empty, or killed while starting
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(header)
            flush_folder(path.parent)
            return
        if not content.startswith(header):
            what = f"this is not the journal of this {work}."
            raise JournalError(Problem(str(path), what, "Name another file, or delete this one to start over."))
        whole = content[: content.rindex(b"\n") + 1]
        for number, line in enumerate(whole.splitlines()[1:], start=2):
            where = f"{path}:{number}"
            try:
                self.lines.append((where, json.loads(line)))
            except ValueError as error:
                raise self.damage(where, str(error)) from None
        os.truncate(path, len(whole))

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


def _encode(value: object) -> bytes:
    return json.dumps(value, allow_nan=False).encode() + b"\n"
