"""The record of a trial, "hybridizer.trial/1", and of its times: what tables and plots of a trial read.

What was measured in seconds and bytes is in a record of its own, "hybridizer.trial_times/1": those figures differ from
run to run, and everything in the first record is the same bytes for the same recipe, donors and texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hybridizer.core.bootstrap import Interval
from hybridizer.core.records import to_jsonable

SCHEMA = "hybridizer.trial/1"
TIMES_SCHEMA = "hybridizer.trial_times/1"
IN_DOMAIN, RETENTION, TASK, RECALL = "in-domain", "retention", "task", "recall"


@dataclass(frozen=True)
class Outcome:
    """What is measured: a `metric` of the text or task `what`; `role` is in-domain, retention, task or recall."""

    what: str
    metric: str
    role: str
    lower_is_better: bool
    chance: float | None = None


@dataclass(frozen=True)
class ArmFigure:
    """One outcome of one arm: the mean over seeds with its 95% interval, and the value of each seed.

    `before` is the figure of the spliced model that the arm was trained from.
    """

    what: str
    metric: str
    value: float
    ci: Interval | None
    seed_values: tuple[float, ...]
    before: float | None = None
    caveat: str | None = None


@dataclass(frozen=True)
class RateScore:
    """Bits per byte of the selection half after training with one learning rate and the first seed."""

    lr: float
    bits_per_byte: float
    is_chosen: bool


@dataclass(frozen=True)
class ArmCost:
    """What one run of an arm takes, from sizes alone: parameters, optimizer steps, tokens, FLOP, bytes at the peak."""

    trained_parameters: int
    frozen_parameters: int
    steps: int
    tokens: int
    flop: float
    peak_bytes: int


@dataclass(frozen=True)
class TrialArm:
    """One arm: its overrides, what stays frozen, its learning rates with their scores, and its figures.

    `overrides` are those of the recipe; `added` are those that the trial adds so that embedding, final norm and head
    have one fate in all arms. `lr` is the chosen learning rate. `plan_hashes` has one plan for each seed.
    """

    name: str
    overrides: Mapping[str, Any]
    added: Mapping[str, Any]
    frozen_layers: tuple[int, ...]
    frozen_parts: tuple[str, ...]
    seeds: tuple[int, ...]
    lr: float
    rates: tuple[RateScore, ...]
    cost: ArmCost
    plan_hashes: tuple[str, ...]
    figures: tuple[ArmFigure, ...]


@dataclass(frozen=True)
class TrialPair:
    """Arm `b` minus arm `a` in one outcome: mean over seeds, 95% interval, p value, Holm's over all pairs, verdict."""

    a: str
    b: str
    what: str
    metric: str
    difference: float
    ci: Interval | None
    p: float | None
    p_holm: float | None
    verdict: str
    caveat: str | None = None


@dataclass(frozen=True)
class Primary:
    """The outcome that was declared before the trial ran."""

    what: str
    metric: str


@dataclass(frozen=True)
class TrialRecord:
    """A finished trial. `hash` is over the plans, the sets, the settings and the primary outcome.

    `detectable` is the smallest difference in the primary outcome that the trial could have told, from the spread over
    seeds and items that it found; None where it cannot be computed.
    """

    name: str
    hash: str
    primary: Primary
    detectable: float | None
    seeds: tuple[int, ...]
    outcomes: tuple[Outcome, ...]
    arms: tuple[TrialArm, ...]
    pairs: tuple[TrialPair, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON values."""
        return {"schema": SCHEMA, **to_jsonable(self)}


@dataclass(frozen=True)
class RunTimes:
    """Seconds of training of one run, and the most memory that it used, in bytes."""

    arm: str
    lr: float
    seed: int
    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class TrialTimes:
    """The times of all runs of a trial, on `device`."""

    device: str
    runs: tuple[RunTimes, ...]

    def to_json(self) -> dict[str, Any]:
        """The times as plain JSON values."""
        return {"schema": TIMES_SCHEMA, **to_jsonable(self)}
