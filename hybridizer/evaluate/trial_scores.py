"""The scores of one run of a trial, stored beside it: what a killed trial does not measure again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hybridizer.core.errors import CheckpointError
from hybridizer.core.progress import Monitor
from hybridizer.core.records import read_record, to_jsonable, write_json
from hybridizer.evaluate.figures import Figure
from hybridizer.evaluate.outcome import Outcome

SCHEMA = "hybridizer.trial_scores/1"


@dataclass(frozen=True)
class TrialScores:
    """The outcomes of one model, by item. `key` is a hash of its plan and of everything that it was measured on.

    `steps` and `tokens` are those of its training, 0 for a model before training. `place` is device and dtype.
    """

    key: str
    plan_hash: str
    steps: int
    tokens: int
    place: tuple[str, str]
    outcomes: tuple[Outcome, ...]

    @property
    def figures(self) -> tuple[Figure, ...]:
        """All figures, in the order in which they were measured."""
        return tuple(figure for outcome in self.outcomes for figure in outcome.figures)


def write_scores(path: Path, scores: TrialScores) -> None:
    """Write `scores`: complete under `path`, or not there at all."""
    write_json(path, {"schema": SCHEMA, **to_jsonable(scores)})


def read_scores_of(path: Path, key: str, monitor: Monitor) -> TrialScores | None:
    """The scores in `path` if they are those of `key`; None where there are none, or of something else, or damaged."""
    if not path.is_file():
        return None
    try:
        scores = read_record(path, TrialScores, SCHEMA, str(path), "Delete the file; it is measured again.")
    except CheckpointError as error:
        monitor.note(f"measuring again: {error}")
        return None
    return scores if scores.key == key else None
