"""What one measurement of one model gave: its figures, facts about them, and one row per item."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hybridizer import __version__
from hybridizer.core.cache import cache_folder
from hybridizer.core.errors import CheckpointError
from hybridizer.core.progress import Monitor
from hybridizer.core.records import content_hash, read_record, to_jsonable, write_json
from hybridizer.evaluate.figures import Figure

SCHEMA = "hybridizer.outcome/1"
SET, TASK = "set", "task"


@dataclass(frozen=True)
class Outcome:
    """One set or task, scored by one model.

    `kind` is "set" for bits per byte and "task" for the others. `facts` are counts and settings as plain values;
    `prompt` is the first item as the model got it; `rows` has what is known of each item.
    """

    kind: str
    name: str
    figures: tuple[Figure, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    prompt: str | None = None
    rows: tuple[Mapping[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values from which the outcome can be read again, bit for bit."""
        return {"schema": SCHEMA, **to_jsonable(self)}


def cached_outcome(parts: Any, label: str, monitor: Monitor, measure: Callable[[], Outcome]) -> Outcome:
    """The outcome of `measure`, kept in the cache under a hash of `parts`: everything that its numbers depend on.

    So an evaluation that was stopped resumes after the last set or task that was finished. A damaged entry is replaced.
    """
    key = content_hash([SCHEMA, parts, __version__]).removeprefix("sha256:")
    path = cache_folder() / "eval" / f"{key}.json"
    if path.is_file():
        try:
            outcome = read_record(path, Outcome, SCHEMA, str(path), "Delete the file; it is measured again.")
        except CheckpointError as error:
            monitor.note(f"measuring again: {error}")
        else:
            monitor.note(f"{label}: unchanged, from the cache")
            return outcome
    outcome = measure()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, outcome.to_json())
    return outcome
