"""Whether a donor does the probes better than chance: shares of right answers, their chance level and intervals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from hybridizer.core.bootstrap import LEVEL, Array, Interval
from hybridizer.core.errors import InputError, Problem


def chance_level(targets: Sequence[str | None]) -> float:
    """The share of the most frequent target: the accuracy of a model that always answers with it.

    Raises InputError for fewer than two different targets.
    """
    counts = Counter(targets)
    if len(counts) < 2:
        what = "no probe has a target that every donor could give" if not counts else "every probe has the same target"
        fix = "Give probes with different one-token targets; by stability alone a random model would rank first."
        raise InputError(Problem("probes", f"{what}, so that competence cannot be distinguished from chance.", fix))
    return max(counts.values()) / len(targets)


def wilson_interval(hits: int, n: int) -> Interval:
    """The 95% Wilson interval of a proportion, `hits` of `n`, which has a width at 0 of n and n of n too."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    centre, spread = hits + z * z / 2, z * math.sqrt(hits * (n - hits) / n + z * z / 4)
    return max(0.0, (centre - spread) / (n + z * z)), min(1.0, (centre + spread) / (n + z * z))


def is_at_chance(hit: Array, targets: Sequence[str | None]) -> bool:
    """Whether a donor that gave these answers, 1 or 0 and NaN without one, may be no better than chance.

    False where `targets` cannot tell: none that it can give, or all the same.
    """
    known = ~np.isnan(hit)
    given = [target for target, usable in zip(targets, known, strict=True) if usable]
    if len(set(given)) < 2:
        return False
    return wilson_interval(int(hit[known].sum()), len(given))[0] <= chance_level(given)


def above_chance(share: Array, chance: float) -> Array:
    """Shares (...) on a scale on which `chance` and everything below it is 0, and 1 is 1."""
    return np.maximum(0, (share - chance) / (1 - chance))
