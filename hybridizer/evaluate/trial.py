"""The figures of a trial: every arm over its seeds, every two arms compared, with Holm's correction.

Runs of two arms with the same seed saw the same data in the same order, so that they are paired by seed; all runs are
scored on the same documents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from hybridizer.core.bootstrap import LEVEL, Array, Interval, wilson_interval
from hybridizer.core.errors import DidYouMean, InputError, Problem
from hybridizer.core.student import student_quantile
from hybridizer.evaluate.compare import FEW_DOCUMENTS, LEAST_DOCUMENTS
from hybridizer.evaluate.crossed import (
    Crossed,
    critical_distance,
    crossed_interval,
    measure_crossed,
    p_value,
)
from hybridizer.evaluate.figures import A_BETTER, B_BETTER, UNTOLD, Figure, check_same_items, sum_groups
from hybridizer.evaluate.power import Detectable, Spread, detectable_after

LEAST_SEEDS = 3  # with 2, five equal arms are called different in up to 7% of trials, not 5%
Name = tuple[str, str]


@dataclass(frozen=True)
class ArmRun:
    """The figures of one run: arm `arm` trained with `seed`."""

    arm: str
    seed: int
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class ArmEstimate:
    """A figure of an arm: the mean over its seeds, each in `by_seed` as (seed, value).

    `value_ci` is the 95% interval over other seeds and other groups of items, None for one seed. `n` items in
    `num_groups` groups. `caveat` is why the interval is missing or unreliable.
    """

    arm: str
    what: str
    metric: str
    value: float
    value_ci: Interval | None
    chance: float | None
    lower_is_better: bool
    n: int
    num_groups: int
    by_seed: tuple[tuple[int, float], ...]
    caveat: str | None


@dataclass(frozen=True)
class PairEstimate:
    """A figure of arm `b` less that of arm `a`, over the seeds that both have.

    `difference_ci` is the 95% interval of this pair alone, `p` its two-sided p value, and `p_holm` the same corrected
    for all pairs of the primary outcome, or, if it is secondary, for all pairs of all secondary figures. `verdict` is
    "no difference can be told" where p_holm is 5% or more, and with fewer than LEAST_SEEDS seeds or LEAST_DOCUMENTS
    groups.
    """

    a: str
    b: str
    what: str
    metric: str
    primary: bool
    difference: float
    difference_ci: Interval | None
    p: float | None
    p_holm: float | None
    seeds: tuple[int, ...]
    num_groups: int
    verdict: str
    caveat: str | None


@dataclass(frozen=True)
class TrialFigures:
    """`primary` is (what, metric). `detectable` is what this trial's own spread lets it find in the primary outcome;
    None where no pair has two seeds and two groups."""

    primary: Name
    arms: tuple[ArmEstimate, ...]
    pairs: tuple[PairEstimate, ...]
    detectable: Detectable | None


def summarise(runs: Sequence[ArmRun], arms: Sequence[str], primary: Name) -> TrialFigures:
    """The figures of every arm, in the order of `arms`, and of every two arms; runs that are missing are left out.

    Raises InputError where two runs were scored on different items, and where no run has the primary outcome.
    """
    table = _by_arm(runs, arms)
    _check_primary(table, primary)
    of_arms = tuple(_arm_figure(arm, table[arm][name]) for arm in arms for name in table[arm])
    measured = list(_pairs(table, arms, primary))
    pairs = tuple(pair for pair, _ in measured)
    errors = [found for pair, found in measured if pair.primary and found is not None]
    return TrialFigures(primary, of_arms, _correct(pairs), detectable_after(errors))


def spread_so_far(runs: Sequence[ArmRun], arms: Sequence[str], primary: Name) -> Spread | None:
    """The spread of the primary outcome's differences among the runs that are there; None for no pair with two seeds.

    It takes the place of what is assumed as soon as a trial has runs.
    """
    measured = _pairs(_by_arm(runs, arms), arms, primary)
    found = detectable_after([crossed for pair, crossed in measured if pair.primary and crossed is not None])
    return None if found is None else found.spread


def seed_mean(values: Sequence[float]) -> tuple[float, Interval | None]:
    """The mean of one number per seed, such as seconds or bytes, with Student's 95% interval; None for one seed."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None
    reach = student_quantile(len(values) - 1) * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return mean, (mean - reach, mean + reach)


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected for all of them (Holm 1979, Scandinavian Journal of Statistics 6), in the order given."""
    order = sorted(range(len(p_values)), key=lambda at: p_values[at])
    found, least = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[at]))
        found[at] = least
    return found


_Table = dict[str, dict[Name, dict[int, Figure]]]


def _by_arm(runs: Sequence[ArmRun], arms: Sequence[str]) -> _Table:
    """Arm, then figure, then seed; figures and seeds in the order of the runs."""
    table: _Table = {arm: {} for arm in arms}
    for run in runs:
        for figure in run.figures:
            by_seed = table[run.arm].setdefault((figure.what, figure.metric), {})
            assert run.seed not in by_seed, f"two runs of '{run.arm}' with seed {run.seed}"
            by_seed[run.seed] = figure
    return table


def _check_primary(table: _Table, primary: Name) -> None:
    known = {name for figures in table.values() for name in figures}
    if primary not in known:
        what = f"no run has the primary outcome '{primary[1]}' of '{primary[0]}'."
        raise InputError(Problem("trial", what, DidYouMean(" ".join(primary), [" ".join(name) for name in known])))


def _sums(arm: str, by_seed: dict[int, Figure]) -> tuple[Array, Array]:
    """(seeds, groups) sums of values, and (groups,) of sizes."""
    first = next(iter(by_seed.values()))
    for seed, figure in by_seed.items():
        check_same_items(arm, first, f"{arm}, seed {seed}", figure)
    sums = np.stack([sum_groups(figure) for figure in by_seed.values()])
    return sums[:, 0], sums[0, 1]


def _arm_figure(arm: str, by_seed: dict[int, Figure]) -> ArmEstimate:
    values, sizes = _sums(arm, by_seed)
    first, count = next(iter(by_seed.values())), len(sizes)
    spread = None
    if len(by_seed) > 1:
        found = measure_crossed(values, sizes)
        share = all(figure.is_share for figure in by_seed.values())
        spread = _share_interval(found, float(sizes.sum())) if share else crossed_interval(found)
    value = float(values.sum() / (len(values) * sizes.sum()))
    of_seeds = tuple((seed, figure.value) for seed, figure in by_seed.items())
    about = (first.chance, first.lower_is_better, len(first.values), count, of_seeds)
    return ArmEstimate(arm, first.what, first.metric, value, spread, *about, _caveat(len(by_seed), count))


def _share_interval(found: Crossed, num_items: float) -> Interval:
    """Wilson's, for as many independent items as the error is worth, at most their number."""
    variance, error = found.value * (1 - found.value), found.squared_error
    size = min(num_items, variance / error) if error and variance > 0 else num_items
    return wilson_interval(found.value, size, critical_distance(found))


def _pairs(table: _Table, arms: Sequence[str], primary: Name) -> Iterator[tuple[PairEstimate, Crossed | None]]:
    """Every two arms in every figure that both have on a common seed, with their errors; p_holm is not in yet."""
    for a, b in combinations(arms, 2):
        for name, left in table[a].items():
            right = table[b].get(name, {})
            if seeds := [seed for seed in left if seed in right]:
                ours, theirs = ({seed: side[seed] for seed in seeds} for side in (left, right))
                check_same_items(a, ours[seeds[0]], b, theirs[seeds[0]])
                (first, sizes), (second, _) = _sums(a, ours), _sums(b, theirs)
                yield _pair(a, b, ours[seeds[0]], name == primary, tuple(seeds), second - first, sizes)


def _pair(
    a: str, b: str, figure: Figure, primary: bool, seeds: tuple[int, ...], values: Array, sizes: Array
) -> tuple[PairEstimate, Crossed | None]:
    found = measure_crossed(values, sizes) if len(seeds) > 1 else None
    difference = float(values.sum() / (len(values) * sizes.sum()))
    ends, p = (None, None) if found is None else (crossed_interval(found), p_value(found))
    can_tell = len(seeds) >= LEAST_SEEDS and len(sizes) >= LEAST_DOCUMENTS
    better = B_BETTER if (difference < 0) == figure.lower_is_better else A_BETTER
    caveat = _caveat(len(seeds), len(sizes))
    made = (a, b, figure.what, figure.metric, primary, difference, ends, p, None, seeds, len(sizes))
    return PairEstimate(*made, better if can_tell else UNTOLD, caveat), found


def _correct(pairs: Sequence[PairEstimate]) -> tuple[PairEstimate, ...]:
    """The pairs with p_holm, primary and secondary outcomes apart, and the verdict that follows from it."""
    found = list(pairs)
    for primary in (True, False):
        family = [(at, pair.p) for at, pair in enumerate(pairs) if pair.primary is primary and pair.p is not None]
        for (at, _), p in zip(family, holm([p for _, p in family]), strict=True):
            found[at] = replace(found[at], p_holm=p)
    return tuple(pair if _is_told(pair) else replace(pair, verdict=UNTOLD) for pair in found)


def _is_told(pair: PairEstimate) -> bool:
    return pair.p_holm is not None and pair.p_holm < 1 - LEVEL


def _caveat(num_seeds: int, num_groups: int) -> str | None:
    if num_seeds == 1:
        return "one seed: what another seed would change is not known, so that there is no interval"
    if num_seeds < LEAST_SEEDS:
        return f"{num_seeds} seeds cannot show a difference: the interval is unreliable"
    if num_groups == 1:
        return "one group: the interval is that of the seeds alone"
    if num_groups < LEAST_DOCUMENTS:
        return f"{num_groups} groups cannot show a difference at 95%"
    return f"only {num_groups} groups: the interval is unreliable" if num_groups < FEW_DOCUMENTS else None
