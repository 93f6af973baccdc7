"""Whether the best of many candidates is better than the host: search on one half of the items, test on the other.

A figure is a sum over items divided by the sum of their sizes: bits over bytes of documents, hits over prompts of
groups of prompts. A change is a candidate's figure less the host's on the same items.

The test half decides. Its intervals are those of the studentised bootstrap, which allows for skewed changes, and hold
for all candidates tested together: the limits are quantiles of the largest and of the smallest deviation of any
candidate. The search half shows what chance alone would find: each item's deviation gets a random sign, the same signs
for all candidates, so that what they have in common counts once. Source of both: the max-statistic of Westfall and
Young (Resampling-Based Multiple Testing, 1993).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from hybridizer.core.bootstrap import LEVEL, Array, Interval, resampling_weights

NUM_FLIPS = 2000
NUM_RESAMPLES = 2000
LEAST_ITEMS = 6  # five deviations of one sign have a probability of 1/16, more than 5%
LEAST_TO_SCREEN = 36  # a screen of four items
BLOCK_BYTES = 64 << 20
BETTER, WORSE, NO_DIFFERENCE = "better", "worse", "no difference shown"

Indices: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Decision:
    """One candidate against the host on the same items.

    `change` is the candidate's figure less the host's; `change_ci` is 95% for all candidates of one test together, None
    where the items cannot bound it (a single one, or too few that differ). `verdict` is "better" or "worse" where the
    interval excludes 0 and there are LEAST_ITEMS.
    """

    change: float
    change_ci: Interval | None
    verdict: str


@dataclass(frozen=True)
class Null:
    """What the search half would show if no candidate differed from the host.

    Attributes:
        num_tried: candidates.
        threshold: a candidate is counted where its change is better than 0 by this many standard errors: the 97.5%
            point of what all candidates show by chance, taken together.
        num_found: candidates counted.
        num_expected: how many would be counted by chance, on average over the sign flips.
        best_found: the largest number of standard errors by which a candidate is better; negative where none is.
        best_by_chance: the number that the best of all candidates exceeds by chance in 5% of the flips.
    """

    num_tried: int
    threshold: float
    num_found: int
    num_expected: float
    best_found: float
    best_by_chance: float

    @property
    def false_discovery_rate(self) -> float | None:
        """The share of the candidates found that would be found by chance, at most 1; None where none is found."""
        return min(1.0, self.num_expected / self.num_found) if self.num_found else None


def divide(num_items: int, seed: int) -> tuple[Indices, Indices, Indices]:
    """Items to screen on, to search on and to test on: a ninth, and halves of the rest, drawn at random, each in order.

    Fewer than LEAST_TO_SCREEN items are halved and none is left for a screen; of an odd number the search has one more.
    """
    order = np.random.default_rng(seed).permutation(num_items)
    first = num_items // 9 if num_items >= LEAST_TO_SCREEN else 0
    middle = first + (num_items - first + 1) // 2
    return np.sort(order[:first]), np.sort(order[first:middle]), np.sort(order[middle:])


def sum_groups(values: Array, groups: Sequence[int]) -> Array:
    """The sums of `values` (..., items) over the items of each group, in the order of the groups' numbers."""
    numbers = np.unique(np.asarray(groups))
    return np.stack([values[..., np.asarray(groups) == number].sum(axis=-1) for number in numbers], axis=-1)


def decide(
    differences: Array, sizes: Array, *, lower_is_better: bool, seed: int, num_resamples: int = NUM_RESAMPLES
) -> list[Decision]:
    """Each candidate against the host: `differences` (candidates, items) are candidate less host, `sizes` (items,).

    The intervals and verdicts hold for all of these candidates together: the chance that any candidate without a
    difference is called better or worse is 5%, however many there are.
    """
    changes, deviations = _linearised(differences, sizes)
    num_items = len(sizes)
    if num_items < 2:
        return [Decision(float(change), None, NO_DIFFERENCE) for change in changes]
    errors = _standard_errors(deviations)
    drawn = _studentised(differences, sizes, resampling_weights(num_items, num_resamples, seed))
    tail = (1 - LEVEL) / 2
    lowest = float(np.quantile(drawn.min(axis=1), tail, method="lower"))
    highest = float(np.quantile(drawn.max(axis=1), 1 - tail, method="higher"))
    decisions = []
    for change, error in zip(changes, errors, strict=True):
        band = _band(float(change), float(error), lowest, highest)
        decisions.append(Decision(float(change), band, _verdict(band, num_items, lower_is_better)))
    return decisions


def find_null(
    differences: Array, sizes: Array, *, lower_is_better: bool, seed: int, num_flips: int = NUM_FLIPS
) -> Null | None:
    """The null distribution of the search over all candidates; None for no candidate and for fewer than two items."""
    if len(differences) == 0 or len(sizes) < 2:
        return None
    changes, deviations = _linearised(differences, sizes)
    errors = _standard_errors(deviations)
    sign = -1.0 if lower_is_better else 1.0
    found = sign * np.divide(changes, errors, out=np.zeros_like(changes), where=errors > 0)
    tail = 1 - (1 - LEVEL) / 2
    seen = [(flips.max(axis=1), np.quantile(flips, tail)) for flips in _flipped(deviations, seed, num_flips)]
    best = np.concatenate([largest for largest, _ in seen])
    threshold = float(np.mean([point for _, point in seen]))
    expected = np.concatenate([(flips > threshold).sum(axis=1) for flips in _flipped(deviations, seed, num_flips)])
    return Null(
        num_tried=len(differences),
        threshold=threshold,
        num_found=int((found > threshold).sum()),
        num_expected=float(expected.mean()),
        best_found=float(found.max()),
        best_by_chance=float(np.quantile(best, LEVEL)),
    )


def _linearised(differences: Array, sizes: Array) -> tuple[Array, Array]:
    """The change of each ratio (candidates,), and what each item adds to its error (candidates, items), with mean 0."""
    mean_size = sizes.mean()
    changes = differences.sum(axis=1) / sizes.sum()
    return changes, (differences - changes[:, None] * sizes) / mean_size


def _standard_errors(deviations: Array) -> Array:
    num_items = deviations.shape[1]
    return np.asarray(np.sqrt((deviations**2).sum(axis=1) / (num_items * (num_items - 1))))


def _flipped(deviations: Array, seed: int, num_flips: int) -> Iterator[Array]:
    """Studentised means (flips, candidates) of the deviations under random signs, in blocks of flips.

    With normal deviations the values follow Student's t with one degree of freedom less than there are items. A
    candidate that does not deviate anywhere gives 0.
    """
    generator = np.random.default_rng(seed)
    num_candidates, num_items = deviations.shape
    squares = (deviations**2).sum(axis=1)
    step = max(1, BLOCK_BYTES // (8 * max(num_candidates, num_items)))
    for start in range(0, num_flips, step):
        signs = generator.choice([-1.0, 1.0], size=(min(step, num_flips - start), num_items))
        sums = signs @ deviations.T
        left = np.maximum(squares - sums**2 / num_items, 0.0)
        errors = np.sqrt(left * num_items / (num_items - 1))
        yield np.divide(sums, errors, out=np.zeros_like(sums), where=errors > 0)


def _studentised(differences: Array, sizes: Array, weights: Array) -> Array:
    """The error of each resample's change in its own standard errors, (resamples, candidates).

    Infinite for a resample that differs from the sample and has no spread of its own.
    """
    num_items = len(sizes)
    total = (weights @ sizes)[:, None]
    changes = weights @ differences.T / total
    crossed = weights @ (differences * sizes).T
    squares = weights @ (differences**2).T - 2 * changes * crossed + changes**2 * (weights @ sizes**2)[:, None]
    errors = np.sqrt(np.maximum(squares, 0.0) / (num_items - 1)) / total
    found, deviations = _linearised(differences, sizes)
    away, smallest = changes - found, 1e-9 * _standard_errors(deviations)
    none = np.where(np.abs(away) > smallest, np.copysign(np.inf, away), 0.0)
    return np.divide(away, errors, out=none, where=errors > smallest)


def _band(change: float, error: float, lowest: float, highest: float) -> Interval | None:
    if error == 0:
        return change, change
    low, high = change - highest * error, change - lowest * error
    return (low, high) if np.isfinite([low, high]).all() else None


def _verdict(band: Interval | None, num_items: int, lower_is_better: bool) -> str:
    if band is None or num_items < LEAST_ITEMS or band[0] <= 0 <= band[1]:
        return NO_DIFFERENCE
    return BETTER if (band[1] < 0) == lower_is_better else WORSE
