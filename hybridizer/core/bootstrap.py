"""Uncertainty by the bootstrap over what was drawn: the prompts of a trace, the documents of a text.

One matrix of resampling weights serves every figure of a measurement, so that figures that depend on each other are
resampled together; the same seed and number of items give two models the same weights, so that they can be paired.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
Interval: TypeAlias = tuple[float, float]

LEVEL = 0.95
MAX_WEIGHT_BYTES = 8 * 2**20  # 2,000 resamples of 524 items


def resampling_weights(num_items: int, num_resamples: int, seed: int) -> Array:
    """Weights (num_resamples, num_items), each row summing to 1: how often a bootstrap sample drew each item."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(num_items, np.full(num_items, 1 / num_items), size=num_resamples) / num_items


def weight_blocks(num_items: int, num_resamples: int, seed: int, max_bytes: int = MAX_WEIGHT_BYTES) -> Iterator[Array]:
    """The rows of `resampling_weights` in order, in blocks of at most `max_bytes` (but at least one row).

    For memory that does not grow with the number of items.
    """
    generator = np.random.default_rng(seed)
    shares = np.full(num_items, 1 / num_items)
    step = max(1, max_bytes // (8 * num_items))
    for start in range(0, num_resamples, step):
        yield generator.multinomial(num_items, shares, size=min(step, num_resamples - start)) / num_items


def interval(samples: Array) -> Interval:
    """The middle 95% of bootstrap samples (num_resamples,)."""
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def intervals(samples: Array, num_items: int) -> list[Interval | None]:
    """`interval` of each column of (num_resamples, k); None for a single item, which has no spread."""
    if num_items < 2:
        return [None] * samples.shape[1]
    return [interval(column) for column in samples.T]


def folded_interval(signed: Array) -> Interval:
    """A 95% interval for |x| from bootstrap samples of the signed x.

    The interval of x is taken first and folded at 0 afterwards: absolute values of samples are pushed away from 0 by
    their own noise, and their quantiles may not even hold the estimate.
    """
    low, high = interval(signed)
    nearest = 0.0 if low <= 0 <= high else min(abs(low), abs(high))
    return nearest, max(abs(low), abs(high))


def mean_samples(values: Array, weights: Array) -> Array:
    """The mean of `values` (n,) in each bootstrap sample, (num_resamples,), NaN entries left out.

    NaN for a sample that drew none of the others.
    """
    known = ~np.isnan(values)
    mass = weights[:, known].sum(axis=1)
    return (weights[:, known] @ values[known]) / np.where(mass > 0, mass, np.nan)


def mean_interval(values: Array, weights: Array) -> Interval | None:
    """A 95% interval for the mean of `values` (n,), NaN entries left out; None for fewer than two entries."""
    return drawn_interval(mean_samples(values, weights)) if (~np.isnan(values)).sum() > 1 else None


def drawn_interval(samples: Array) -> Interval:
    """`interval` of what `mean_samples` gives, and of what is computed from it: NaN left out."""
    return interval(samples[~np.isnan(samples)])


def recentred(samples: Array, estimate: float) -> Array:
    """Bootstrap samples (num_resamples,) of a mean of absolute values, shifted so that their mean is the estimate.

    Noise pushes an absolute value away from 0, in the samples once more than in the estimate.
    """
    return np.asarray(samples - samples.mean() + estimate)
