"""The JSON lines a run leaves behind: one a step, complete up to the last checkpoint whatever happened."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybridizer.core.files import write_file
from hybridizer.core.records import to_jsonable


class Journal:
    """Appends one JSON object a line to `path`, each with its `step`."""

    def __init__(self, path: Path, next_step: int) -> None:
        """Keeps what the file holds up to `next_step` and drops the rest: those steps are taken again."""
        self._path = path
        kept = [line for line in _whole_lines(path) if json.loads(line)["step"] < next_step]
        write_file(path, "".join(kept))

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append the line of `step`."""
        with self._path.open("a") as file:
            file.write(json.dumps(to_jsonable({"step": step, **values})) + "\n")


def _whole_lines(path: Path) -> list[str]:
    """The complete lines of `path`: a killed process may have left half a line at the end."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith("\n")]
