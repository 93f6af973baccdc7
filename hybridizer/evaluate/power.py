"""The smallest difference between two arms that a trial can be expected to show, before it runs and after."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hybridizer.core.bootstrap import LEVEL
from hybridizer.evaluate.crossed import Crossed, Parts, critical_distances

POWER = 0.8
_NUM_DRAWS, _SEED = 4000, 0  # the difference found has an error of 2%


@dataclass(frozen=True)
class Spread:
    """Standard deviations of the difference of two arms, in the figure's unit: what another seed, and what another
    document, would change, and what one seed changes on one document beyond both.

    `by_group` and `by_chance` are those of a document of mean size.
    """

    by_seed: float
    by_group: float
    by_chance: float


@dataclass(frozen=True)
class Detectable:
    """`difference` is found with probability `power` by a test at `tails`: 5% over the number of pairs, the first step
    of Holm's correction. `assumed` where `spread` is not measured on the trial's own runs.
    """

    difference: float
    power: float
    tails: float
    num_seeds: int
    num_groups: int
    num_pairs: int
    spread: Spread
    assumed: bool


# Assumed before a trial has runs. Bits per byte: how the change of held-out text varied in 2 runs of SmolLM2-135M
# (layers 0..7 trained for 5 steps of 4 x 256 tokens, 8 documents; the seed's part has one degree of freedom), by
# scripts/trace_outcome.py. A difference of two arms is taken to vary like one change. Accuracy is a guess: two arms
# differ in one answer in four.
ASSUMED: Mapping[str, Spread] = {
    "bits_per_byte": Spread(by_seed=0.0021, by_group=0.013, by_chance=0.007),
    "accuracy": Spread(by_seed=0.01, by_group=0.4, by_chance=0.3),
}


def detectable_before(
    metric: str, num_seeds: int, num_groups: int, num_pairs: int, spread: Spread | None = None
) -> Detectable | None:
    """The smallest detectable difference of a planned trial, under the measured `spread` or that of ASSUMED.

    None where nothing is assumed for the metric, and for fewer than two seeds or groups.
    """
    stated = spread or ASSUMED.get(metric)
    if stated is None or num_seeds < 2 or num_groups < 2:
        return None
    return detectable(stated, num_seeds, num_groups, num_pairs, assumed=spread is None)


def detectable_after(pairs: Sequence[Crossed]) -> Detectable | None:
    """The same from the differences of a trial's own pairs: their mean variances, and their fewest seeds and groups."""
    if not pairs:
        return None
    spreads = [measured_spread(pair) for pair in pairs]
    means = (
        math.sqrt(math.fsum(getattr(spread, part) ** 2 for spread in spreads) / len(spreads))
        for part in ("by_seed", "by_group", "by_chance")
    )
    num_seeds, num_groups = min(pair.num_seeds for pair in pairs), min(pair.num_groups for pair in pairs)
    if num_groups < 2:
        return None
    freedom = min(pair.freedom for pair in pairs)
    return detectable(Spread(*means), num_seeds, num_groups, len(pairs), assumed=False, freedom=freedom)


def measured_spread(found: Crossed) -> Spread:
    """The standard deviations behind a measured error; parts that chance explains are 0."""
    by_seed = max(0.0, found.by_seed - found.by_chance) * found.num_seeds
    by_group = max(0.0, found.by_group - found.by_chance) * found.num_groups
    by_chance = found.by_chance * found.num_seeds * found.num_groups
    return Spread(math.sqrt(by_seed), math.sqrt(by_group), math.sqrt(by_chance))


def detectable(
    spread: Spread, num_seeds: int, num_groups: int, num_pairs: int, assumed: bool, freedom: float | None = None
) -> Detectable:
    """By simulating the test itself: errors drawn as analysis of variance draws them from normal data.

    `freedom` is the groups' degrees of freedom; None for groups of one size.
    """
    generator = np.random.default_rng(_SEED)
    both = num_seeds * num_groups
    chance = spread.by_chance**2 / both
    of_groups = num_groups - 1 if freedom is None else freedom
    squared = (
        (spread.by_seed**2 / num_seeds + chance, num_seeds - 1),
        (spread.by_group**2 / num_groups + chance, of_groups),
        (chance, (num_seeds - 1) * of_groups),
    )
    by_seed, by_group, by_chance = (
        mean * generator.chisquare(degrees, _NUM_DRAWS) / degrees for mean, degrees in squared
    )
    freedoms = np.full(_NUM_DRAWS, num_seeds - 1.0), np.full(_NUM_DRAWS, float(of_groups))
    parts = Parts(by_seed, by_group, by_chance, *freedoms)
    error = math.sqrt(squared[0][0] + squared[1][0] - chance)
    tails = (1 - LEVEL) / num_pairs
    reach = critical_distances(parts, tails) * np.sqrt(parts.squared_error)
    difference = float(np.quantile(reach - error * generator.normal(size=_NUM_DRAWS), POWER)) if error else 0.0
    return Detectable(difference, POWER, tails, num_seeds, num_groups, num_pairs, spread, assumed)
