"""Limits on what a model may lose against another one: kept, broken, or not to be told."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridizer.core.bootstrap import Interval
from hybridizer.core.errors import DidYouMean, InputError, Problem, RecipeError
from hybridizer.evaluate.compare import LEAST_DOCUMENTS
from hybridizer.evaluate.figures import Difference, Figure
from hybridizer.evaluate.request import read_mapping

KEPT, BROKEN, UNDECIDED = "kept", "broken", "undecided"
EXIT_CODES = {KEPT: 0, BROKEN: 1, UNDECIDED: 3}
MAX_LOSS = "max_loss"


@dataclass(frozen=True)
class Limit:
    """The most that the figure `metric` of `what` may lose, in its own unit: bits per byte, share of items, bits."""

    what: str
    metric: str
    max_loss: float


@dataclass(frozen=True)
class GateResult:
    """A limit, judged by the 95% interval of the loss of model `b` against model `a`; a gain is a negative loss.

    "broken" where the whole interval lies above the limit, "kept" where it lies below, else "undecided", as with too
    few groups for an interval, and where nothing was measured (`loss` is None).
    """

    what: str
    metric: str
    a: str
    b: str
    max_loss: float
    loss: float | None
    loss_ci: Interval | None
    verdict: str

    def __str__(self) -> str:
        if self.loss is None:
            return f"{self.what} ({self.metric}): {self.verdict}: nothing was measured"
        spread = f", 95% {self.loss_ci[0]:+.4f} to {self.loss_ci[1]:+.4f}" if self.loss_ci else ", no interval"
        return (
            f"{self.what} ({self.metric}): {self.verdict}: '{self.b}' loses {self.loss:+.4f}{spread}, "
            f"against '{self.a}'; the limit is {self.max_loss:g}"
        )


def read_limits(path: Path) -> tuple[Limit, ...]:
    """The limits in a YAML file: `news: {bits_per_byte: {max_loss: 0.01}}`.

    Raises RecipeError with every mistake in it.
    """
    limits, problems = [], []
    for what, metrics in read_mapping(path).items():
        for metric, found in metrics.items() if isinstance(metrics, Mapping) else [("", metrics)]:
            number = _max_loss(found)
            if number is None:
                text = f"the limit of '{what}' is not {{metric: {{{MAX_LOSS}: number}}}}."
                fix = f"Write, for example, {what}: {{bits_per_byte: {{{MAX_LOSS}: 0.01}}}}."
                problems.append(Problem(str(path), text, fix))
            else:
                limits.append(Limit(what, metric, number))
    if problems:
        raise RecipeError(*problems)
    return tuple(limits)


def _max_loss(value: Any) -> float | None:
    """The number in `{max_loss: number}`; None for anything else."""
    if not isinstance(value, Mapping) or set(value) != {MAX_LOSS}:
        return None
    number = value[MAX_LOSS]
    usable = isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number) and number >= 0
    return float(number) if usable else None


def check_gate(
    limits: Sequence[Limit], metrics: Mapping[str, Sequence[str] | None], num_models: int, where: str
) -> None:
    """Return if `limits` can be judged, as far as is known before a model is scored; InputError with every mistake.

    `metrics` has those of each set and task; None for a task of lm-eval, whose metrics its results say.
    """
    problems = []
    if num_models < 2:
        problems.append(Problem(where, "a limit compares two models or more.", "Name the model to compare with first."))
    for limit in limits:
        known = metrics.get(limit.what, ())
        if limit.what not in metrics:
            what = f"this evaluation has neither a set nor a task '{limit.what}'."
            problems.append(Problem(where, what, f"It has: {', '.join(metrics)}."))
        elif known is not None and limit.metric not in known:
            what = f"'{limit.what}' has no figure '{limit.metric}'."
            problems.append(Problem(where, what, DidYouMean(limit.metric, known)))
    if problems:
        raise InputError(*problems)


def check_limits(limits: Sequence[Limit], figures: Sequence[tuple[str, Sequence[Figure]]], where: str) -> None:
    """Return if every limit is on a figure that the first and some other model have; InputError otherwise."""
    problems = []
    known = [{(f.what, f.metric) for f in of_model} for _, of_model in figures]
    for limit in limits:
        for (name, _), pairs in zip(figures, known, strict=True):
            if (limit.what, limit.metric) not in pairs:
                what = f"'{name}' has no figure '{limit.metric}' of '{limit.what}'."
                fix = DidYouMean(f"{limit.what} {limit.metric}", [" ".join(pair) for pair in pairs])
                problems.append(Problem(where, what, fix))
    if problems:
        raise InputError(*problems)


def judge(
    limits: Sequence[Limit], differences: Sequence[Difference], lower_is_better: Mapping[tuple[str, str], bool],
    baseline: str,
) -> tuple[GateResult, ...]:  # fmt: skip
    """Every limit for every model that `differences` compares with `baseline`."""
    found = []
    for limit in limits:
        sign = 1.0 if lower_is_better.get((limit.what, limit.metric), True) else -1.0
        about = (baseline, limit.what, limit.metric)
        pairs = [pair for pair in differences if (pair.a, pair.what, pair.metric) == about]
        found += [_judge(limit, pair, sign) for pair in pairs]
        if not pairs:
            blank = (baseline, "", limit.max_loss, None, None, UNDECIDED)
            found.append(GateResult(limit.what, limit.metric, *blank))
    return tuple(found)


def exit_code(results: Sequence[GateResult]) -> int:
    """1 if a limit is broken, else 3 if one cannot be decided, else 0."""
    verdicts = {result.verdict for result in results}
    return EXIT_CODES[next((v for v in (BROKEN, UNDECIDED) if v in verdicts), KEPT)]


def _judge(limit: Limit, pair: Difference, sign: float) -> GateResult:
    spread = None
    if pair.difference_ci is not None:
        ends = sorted(sign * end for end in pair.difference_ci)
        spread = (ends[0], ends[1])
    verdict = UNDECIDED
    if spread is not None and pair.num_groups >= LEAST_DOCUMENTS:
        verdict = BROKEN if spread[0] > limit.max_loss else KEPT if spread[1] <= limit.max_loss else UNDECIDED
    return GateResult(
        limit.what, limit.metric, pair.a, pair.b, limit.max_loss, sign * pair.difference + 0.0, spread, verdict
    )
