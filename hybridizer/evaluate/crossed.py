"""A figure over crossed seeds and documents: its error, p value and interval where the seeds are few.

Every run of a trial is scored on the same documents. A document that is hard is hard for every seed, so that seeds and
documents are crossed, not nested: more seeds do not make up for few documents, nor more documents for few seeds.

The error is the sum of both parts (two-way analysis of variance, documents weighted by their sizes). What is divided
by it is not normal, as the part of the seeds is known from 2 degrees of freedom at 3 seeds. No test is exact here (the
problem of Behrens and Fisher, with a third part). The p value is the mean of the t distributions of both parts,
weighted by powers of their variances. Powers that fit at 5% give a weight too small far out, where Holm's correction
looks; so they fall with the p value. [ours]

The constants are those that come closest to the level for normal data, whatever the shares of both parts, with 2 to 5
seeds; what they reach otherwise is in docs/trial.md, by scripts/coverage_trial.py. Percentiles of a bootstrap over
seeds and documents cover 53 to 97% there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hybridizer.core.bootstrap import LEVEL, Array, Interval
from hybridizer.core.student import student_tails

_MOST_STEPS, _CLOSE = 60, 1e-9
_HALVINGS, _LEAST = 60, 1e-300
_FACTOR, _TWO_SEEDS = 2.5, 4.0  # of the seeds' weight: over their degrees of freedom, and times 4 with one


@dataclass(frozen=True)
class Parts:
    """The squared errors of means by parts, in the figure's unit squared, all of one shape.

    `by_seed` is the variance of the seeds' means over their number, `by_group` that of the groups' means over theirs;
    both hold `by_chance`, the variance of what is left over the number of both. `of_seeds` and `of_groups` are degrees
    of freedom, at least 1 each.
    """

    by_seed: Array
    by_group: Array
    by_chance: Array
    of_seeds: Array
    of_groups: Array

    @property
    def squared_error(self) -> Array:
        """The squared standard errors: both parts less chance, which both hold.

        Two limits hold: what chance alone leaves, and the larger part. With many groups the first is too low, with few
        the second too high; where they differ, two thirds of the first and one third of the second are taken. [ours]
        """
        both = self.by_seed + self.by_group - self.by_chance
        larger = np.maximum(self.by_seed, self.by_group)
        return np.asarray((2 * np.maximum(both, self.by_chance) + np.maximum(both, larger)) / 3)


@dataclass(frozen=True)
class Crossed:
    """A mean and its squared error by parts, as `Parts` has them, for one figure.

    `freedom` is the degrees of freedom of the groups' part: their number less one where all have one size, and fewer
    where sizes are uneven.
    """

    value: float
    by_seed: float
    by_group: float
    by_chance: float
    num_seeds: int
    num_groups: int
    freedom: float

    @property
    def squared_error(self) -> float:
        """The squared standard error, as `Parts` has it."""
        return float(self.parts.squared_error)

    @property
    def parts(self) -> Parts:
        """The same as arrays without axes."""
        sizes = (self.by_seed, self.by_group, self.by_chance, self.num_seeds - 1, self.freedom)
        return Parts(*(np.array(float(size)) for size in sizes))


def measure_crossed(values: Array, sizes: Array) -> Crossed:
    """The sum of `values` (seeds, groups) over that of `sizes` (groups,), which all seeds share, with its error.

    2 seeds or more. For one group the error is that of the seeds alone.
    """
    num_seeds, num_groups = values.shape
    assert num_seeds > 1 and sizes.shape == (num_groups,), (values.shape, sizes.shape)
    value, parts = measure_parts(values, sizes)
    by_seed, by_group, by_chance = (float(part) for part in (parts.by_seed, parts.by_group, parts.by_chance))
    freedom = float(parts.of_groups)
    return Crossed(float(value), by_seed, by_group, by_chance, num_seeds, num_groups, freedom)


def measure_parts(values: Array, sizes: Array) -> tuple[Array, Parts]:
    """`measure_crossed` of many figures at once: `values` (..., seeds, groups) and `sizes` (..., groups).

    Squared deviations of few groups are too small, most of all those of large groups, which the mean follows; each is
    divided by what the mean leaves of it (HC2; MacKinnon and White 1985, Journal of Econometrics 29). The degrees of
    freedom are Kish's effective number of groups less one: 1 / sum of squared shares of all sizes. [ours]
    """
    num_seeds, num_groups = values.shape[-2:]
    total = sizes.sum(axis=-1)
    mean = values.sum(axis=(-2, -1)) / (num_seeds * total)
    shares = sizes / total[..., None]
    deviations = values / total[..., None, None] - mean[..., None, None] * shares[..., None, :]
    seeds, groups = deviations.sum(axis=-1), deviations.mean(axis=-2)
    by_seed = seeds.var(axis=-1, ddof=1) / num_seeds
    of_seeds = np.full_like(by_seed, num_seeds - 1)
    if num_groups < 2:
        none = np.zeros_like(by_seed)
        return mean, Parts(by_seed, none, none, of_seeds, none + 1)
    left = 1 - shares
    rest = deviations - groups[..., None, :] - seeds[..., :, None] * shares[..., None, :]
    by_group = (groups**2 / left).sum(axis=-1)
    by_chance = ((rest**2).sum(axis=-2) / left).sum(axis=-1) / (num_seeds * (num_seeds - 1))
    of_groups = np.broadcast_to(np.maximum(1.0, 1 / (shares**2).sum(axis=-1) - 1), by_seed.shape)
    return mean, Parts(by_seed, by_group, by_chance, of_seeds, of_groups)


def p_value(found: Crossed, away: float = 0.0) -> float:
    """The two-sided p value of the hypothesis that the figure is `away`; 1 where it is so without any spread."""
    error, distance = found.squared_error**0.5, abs(found.value - away)
    if error == 0:
        return 1.0 if distance == 0 else 0.0
    return float(tail_values(np.array(distance / error), found.parts))


def critical_distance(found: Crossed) -> float:
    """How many standard errors a 95% interval reaches to each side."""
    return float(critical_distances(found.parts, 1 - LEVEL))


def crossed_interval(found: Crossed) -> Interval:
    """The 95% interval: all values whose p value is at least 5%."""
    reach = critical_distance(found) * found.squared_error**0.5
    return found.value - reach, found.value + reach


def tail_values(distance: Array, parts: Parts) -> Array:
    """The p values of figures with these parts that are `distance` standard errors off, in the shape of the parts."""
    tails = student_tails(distance, _freedoms(parts))
    low, high = (np.log(np.maximum(_LEAST, end)) for end in (tails.min(axis=0), tails.max(axis=0)))
    for _ in range(_HALVINGS):  # the p value is between both tails, and the weights depend on it
        middle = (low + high) / 2
        above = np.log(np.maximum(_LEAST, _mixed(tails, parts, np.exp(middle)))) > middle
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return _mixed(tails, parts, np.exp(high))


def critical_distances(parts: Parts, tails: float) -> Array:
    """The distance at which `tail_values` is `tails`, to 9 digits, by the Illinois method on the logarithm.

    Far out with one degree of freedom it may take more steps than it has; halvings of what is left end it.
    """
    freedoms, level = _freedoms(parts), np.full_like(parts.by_seed, tails)

    def above(distance: Array) -> Array:
        return np.asarray(np.log(_mixed(student_tails(distance, freedoms), parts, level) / tails))

    low, high = np.zeros_like(parts.by_seed), np.ones_like(parts.by_seed)
    at_low, at_high = above(low), above(high)
    while (at_high > 0).any():
        low, at_low = np.where(at_high > 0, high, low), np.where(at_high > 0, at_high, at_low)
        high = np.where(at_high > 0, 2 * high, high)
        at_high = above(high)
    last = np.zeros_like(parts.by_seed)
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
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        beyond = above(middle) > 0
        low, high = np.where(beyond, middle, low), np.where(beyond, high, middle)
    return high


def _freedoms(parts: Parts) -> Array:
    """Degrees of freedom, (2, ...): the seeds', and the groups' or, where that is more, Satterthwaite's of both."""
    spread = parts.by_seed**2 / parts.of_seeds + parts.by_group**2 / parts.of_groups
    both = parts.squared_error**2 / np.where(spread > 0, spread, 1.0)
    return np.stack([parts.of_seeds, np.maximum(parts.of_groups, both)])


def _mixed(tails: Array, parts: Parts, level: Array) -> Array:
    """The mean of the tails of the seeds' t and the groups', (2, ...), weighted as fits p values about `level`."""
    weight = _seed_weight(parts, level)
    return np.asarray(weight * tails[0] + (1 - weight) * tails[1])


def _seed_weight(parts: Parts, level: Array) -> Array:
    """The weight of the seeds' t distribution (0..1) in p values about `level`: their part's ratio to the other's.

    The ratio is squared at 5% and above. Below, the power falls, with 2 or 3 seeds to 1, with more by less. Chance
    counts in the seeds' part alone, as what is known as badly as that part should not lower its weight; not
    where the seeds' part is below chance, which then limits the error.
    """
    scale = np.maximum(parts.by_seed, parts.by_group)
    scale = np.where(scale > 0, scale, 1.0)
    seed, group, chance = parts.by_seed / scale, parts.by_group / scale, parts.by_chance / scale
    power = 2 - np.minimum(1.0, 2 / parts.of_seeds) * (1 - np.minimum(1.0, level / (1 - LEVEL)))
    ours = _FACTOR / parts.of_seeds * np.where(parts.of_seeds > 1, 1.0, _TWO_SEEDS) * seed**power
    theirs = group ** (power - 1) * np.maximum(0.0, np.maximum(group - chance, chance - seed))
    either = ours + theirs
    return np.asarray(np.where(either > 0, ours / np.where(either > 0, either, 1.0), 0.0))
