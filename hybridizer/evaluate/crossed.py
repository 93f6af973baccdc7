"""A figure over crossed seeds and documents: its error, p value and interval where the seeds are few.

Every run of a trial is scored on the same documents. A document that is hard is hard for every seed, so that seeds and
documents are crossed, not nested: more seeds do not make up for few documents, nor more documents for few seeds.

The error is the sum of both parts (two-way analysis of variance). What is divided by it is not normal, as the part of
the seeds is known from 2 degrees of freedom at 3 seeds. The p value is the larger of two: Student's t with
Satterthwaite's degrees of freedom, and the t distributions of each part, weighted by their shares. The first alone is
too small where the seeds dominate. What seeds and documents share by chance stays in both shares, though not in the
error: without it five equal arms are told apart in up to 13% of trials, not 5%. [ours]

Why not percentiles of a bootstrap over seeds and documents: with 3 seeds they cover 75 to 95%, see
scripts/coverage_trial.py for both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hybridizer.core.bootstrap import LEVEL, Array, Interval
from hybridizer.core.student import student_tails

_MOST_STEPS, _CLOSE = 60, 1e-9


@dataclass(frozen=True)
class Crossed:
    """A mean and its squared error by parts, each as an estimate from the data, in the figure's unit squared.

    `by_seed` is the variance of the seeds' means over their number, `by_group` that of the groups' means over theirs;
    both hold `by_chance`, the variance of what is left over the number of both.
    """

    value: float
    by_seed: float
    by_group: float
    by_chance: float
    num_seeds: int
    num_groups: int

    @property
    def squared_error(self) -> float:
        """The squared standard error, never below the larger part."""
        return float(squared_errors(*(np.array(part) for part in (self.by_seed, self.by_group, self.by_chance))))


def measure_crossed(values: Array, sizes: Array) -> Crossed:
    """The sum of `values` (seeds, groups) over that of `sizes` (groups,), which all seeds share, with its error.

    2 seeds or more. For one group the error is that of the seeds alone.
    """
    num_seeds, num_groups = values.shape
    assert num_seeds > 1 and sizes.shape == (num_groups,), (values.shape, sizes.shape)
    value = float(values.sum() / (num_seeds * sizes.sum()))
    deviations = (values - value * sizes) / sizes.mean()  # the ratio's influence function, as in a bootstrap of sums
    seeds, groups = deviations.mean(axis=1), deviations.mean(axis=0)
    by_seed = float(seeds.var(ddof=1)) / num_seeds
    if num_groups < 2:
        return Crossed(value, by_seed, 0.0, 0.0, num_seeds, num_groups)
    rest = deviations - seeds[:, None] - groups
    freedom = (num_seeds - 1) * (num_groups - 1)
    by_chance = float((rest**2).sum()) / freedom / (num_seeds * num_groups)
    return Crossed(value, by_seed, float(groups.var(ddof=1)) / num_groups, by_chance, num_seeds, num_groups)


def p_value(found: Crossed, away: float = 0.0) -> float:
    """The two-sided p value of the hypothesis that the figure is `away`; 1 where it is so without any spread."""
    error, distance = found.squared_error**0.5, abs(found.value - away)
    if error == 0:
        return 1.0 if distance == 0 else 0.0
    return float(tail_values(distance / error, *_parts(found)))


def critical_distance(found: Crossed, tails: float = 1 - LEVEL) -> float:
    """How many standard errors an interval reaches to each side that misses the truth with probability `tails`."""
    return float(critical_distances(*_parts(found), tails))


def crossed_interval(found: Crossed) -> Interval:
    """The 95% interval: all values whose p value is at least 5%."""
    reach = critical_distance(found) * found.squared_error**0.5
    return found.value - reach, found.value + reach


def squared_errors(by_seed: Array, by_group: Array, by_chance: Array) -> Array:
    """`Crossed.squared_error` of many figures at once."""
    return np.maximum(np.maximum(by_seed, by_group), by_seed + by_group - by_chance)


def tail_values(
    distance: Array | float, by_seed: Array, by_group: Array, by_chance: Array, num_seeds: int, num_groups: int
) -> Array:
    """The p values of figures with these parts that are `distance` standard errors off."""
    either = by_seed + by_group
    share = np.where(either > 0, by_seed / np.where(either > 0, either, 1.0), 0.0)
    whole = np.where(either > 0, squared_errors(by_seed, by_group, by_chance) / np.where(either > 0, either, 1.0), 1.0)
    of_seeds, of_groups = np.full_like(share, num_seeds - 1), np.full_like(share, max(1, num_groups - 1))
    pooled = whole**2 / (share**2 / of_seeds + (1 - share) ** 2 / of_groups)
    tails = student_tails(distance, np.stack([pooled, of_seeds, of_groups]))
    return np.asarray(np.maximum(tails[0], share * tails[1] + (1 - share) * tails[2]))


def critical_distances(
    by_seed: Array, by_group: Array, by_chance: Array, num_seeds: int, num_groups: int, tails: float
) -> Array:
    """The distance at which `tail_values` is `tails`, to 9 digits, by the Illinois method on the logarithm."""

    def above(distance: Array) -> Array:
        return np.asarray(np.log(tail_values(distance, by_seed, by_group, by_chance, num_seeds, num_groups) / tails))

    low, high = np.zeros_like(by_seed), np.ones_like(by_seed)
    at_low, at_high = above(low), above(high)
    while (at_high > 0).any():
        low, at_low = np.where(at_high > 0, high, low), np.where(at_high > 0, at_high, at_low)
        high = np.where(at_high > 0, 2 * high, high)
        at_high = above(high)
    last = np.zeros_like(by_seed)
    for _ in range(_MOST_STEPS):
        middle = high - at_high * (high - low) / (at_high - at_low)
        found = above(middle)
        if (np.abs(found) < _CLOSE).all():
            return middle
        side = np.where(found > 0, 1.0, -1.0)
        repeated = side == last
        at_high = np.where(side < 0, found, np.where(repeated, at_high / 2, at_high))
        at_low = np.where(side > 0, found, np.where(repeated, at_low / 2, at_low))
        high, low, last = np.where(side < 0, middle, high), np.where(side > 0, middle, low), side
    raise AssertionError(f"no critical distance: {by_seed}, {by_group}, {num_seeds}, {num_groups}, {tails}")


def _parts(found: Crossed) -> tuple[Array, Array, Array, int, int]:
    by_seed, by_group, by_chance = (np.array(part) for part in (found.by_seed, found.by_group, found.by_chance))
    return by_seed, by_group, by_chance, found.num_seeds, found.num_groups
