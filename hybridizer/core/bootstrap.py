"""Uncertainty by the bootstrap over what was drawn: the prompts of a trace, the documents of a text.

One matrix of resampling weights serves every figure of a measurement, so that figures that depend on each other are
resampled together; the same seed and number of items give two models the same weights, so that they can be paired.

Items that are not independent, such as a pair of words asked both ways, form a *cluster*: whole clusters are drawn.
`clusters` is always an array (n,) of numbers 0..m-1, the cluster of each item, or None where every item is its own.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from hybridizer.core.student import student_quantile

Array: TypeAlias = NDArray[np.float64]
Clusters: TypeAlias = NDArray[np.int64]
Interval: TypeAlias = tuple[float, float]

LEVEL = 0.95
Z: float = NormalDist().inv_cdf((1 + LEVEL) / 2)  # normal standard errors of a 95% interval
MAX_WEIGHT_BYTES = 8 * 2**20  # 2,000 resamples of 524 items


def number_clusters(names: Sequence[Hashable | None]) -> Clusters | None:
    """The cluster of each item from its name, numbered in order of appearance; None where every item is its own.

    An item without a name (None) is a cluster of its own.
    """
    numbers: dict[Hashable, int] = {}
    keys = [("item", index) if name is None else ("name", name) for index, name in enumerate(names)]
    found = [numbers.setdefault(key, len(numbers)) for key in keys]
    return np.array(found, np.int64) if len(numbers) < len(names) else None


def count_clusters(num_items: int, clusters: Clusters | None) -> int:
    """How many independent draws `num_items` items are."""
    return num_items if clusters is None else int(clusters.max()) + 1


def resampling_weights(num_items: int, num_resamples: int, seed: int, clusters: Clusters | None = None) -> Array:
    """Weights (num_resamples, num_items), each row summing to 1: how often a bootstrap sample drew each item."""
    generator = np.random.default_rng(seed)
    return _draw(generator, num_items, num_resamples, clusters)


def weight_blocks(
    num_items: int, num_resamples: int, seed: int, max_bytes: int = MAX_WEIGHT_BYTES, clusters: Clusters | None = None
) -> Iterator[Array]:
    """The rows of `resampling_weights` in order, in blocks of at most `max_bytes` (but at least one row).

    For memory that does not grow with the number of items.
    """
    generator = np.random.default_rng(seed)
    step = max(1, max_bytes // (8 * num_items))
    for start in range(0, num_resamples, step):
        yield _draw(generator, num_items, min(step, num_resamples - start), clusters)


def _draw(generator: np.random.Generator, num_items: int, num_rows: int, clusters: Clusters | None) -> Array:
    """Rows of weights. A sample draws as many clusters as there are; its items weigh alike, however many they are."""
    num_clusters = count_clusters(num_items, clusters)
    counts = generator.multinomial(num_clusters, np.full(num_clusters, 1 / num_clusters), size=num_rows)
    if clusters is None:
        return counts / num_items
    drawn = counts[:, clusters].astype(np.float64)
    drawn /= drawn.sum(axis=1, keepdims=True)
    return drawn


def resampled_means(
    arrays: Sequence[Array], num_resamples: int, seed: int, clusters: Clusters | None = None
) -> list[Array]:
    """The mean over the items of each array (n, k) in every bootstrap sample, (num_resamples, k), drawn together."""
    found: list[list[Array]] = [[] for _ in arrays]
    for weights in weight_blocks(len(arrays[0]), num_resamples, seed, clusters=clusters):
        for rows, array in zip(found, arrays, strict=True):
            rows.append(weights @ array)
    return [np.concatenate(rows) for rows in found]


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


def drawn_interval(samples: Array) -> Interval:
    """`interval` of what `mean_samples` gives, and of what is computed from it: NaN left out."""
    return interval(samples[~np.isnan(samples)])


def recentred(samples: Array, estimate: float) -> Array:
    """Bootstrap samples (num_resamples,) of a mean of absolute values, shifted so that their mean is the estimate.

    Noise pushes an absolute value away from 0, in the samples once more than in the estimate.
    """
    return np.asarray(samples - samples.mean() + estimate)


def standard_errors(values: Array, clusters: Clusters | None = None) -> Array:
    """The standard error (k,) of the means of `values` (n, k) over items drawn by cluster; 0 for a single cluster.

    The sandwich estimate with the factor m / (m - 1) for m clusters: that of the sample mean where each is one item.
    """
    n = len(values)
    deviations = values - values.mean(axis=0)
    num_clusters = count_clusters(n, clusters)
    if num_clusters < 2:
        return np.zeros(values.shape[1])
    if clusters is not None:
        sums = np.zeros((num_clusters, values.shape[1]))
        np.add.at(sums, clusters, deviations)
        deviations = sums
    return np.asarray(np.sqrt((deviations**2).sum(axis=0) * num_clusters / (num_clusters - 1)) / n)


# f(z) = |z| - exp(-z^2 / (2 w^2)) (p + q (z / w)^2), for z normal with mean m and variance 1. |z| is too large by up to
# 0.80; p and q minimise the largest bias over m. A narrower bump, or a power more, has less bias and more variance:
# w = 0.7 has bias up to 0.15 and variance up to 3.3; a third coefficient 0.12 and 17. See scripts/coverage.py.
BUMP_WIDTH, BUMP = 0.7, (2.62, -2.22)
BIAS_LEFT = 0.15  # in errors; none from about 4 errors on


def debiased_abs(means: Array, errors: Array) -> Array:
    """Estimates (..., k) of |m| from `means` (..., k) that are normal about m with standard `errors` (k,).

    The absolute value of a noisy mean is too large, near 0 by 0.80 errors. This one is within 0.15 errors of |m| on
    average, whatever m is; single values may be negative. It is |mean| itself from three errors on.
    Source: no unbiased estimate exists; Cai and Low (2011, Annals of Statistics 39) use Hermite polynomials near 0, and
    the smooth bump in their place is ours.
    """
    z = means / np.where(errors > 0, errors, 1)
    u2 = (z / BUMP_WIDTH) ** 2
    return np.asarray(np.abs(means) - errors * np.exp(-u2 / 2) * (BUMP[0] + BUMP[1] * u2))


def bias_left(means: Array, errors: Array) -> Array:
    """The most that `debiased_abs` of `means` (k,) may be off on average, (k,): nothing 4 errors or more from 0."""
    return np.where(np.abs(means) < 4 * errors, BIAS_LEFT * errors, 0.0)


def critical_value(samples: Array, num_clusters: int) -> float:
    """How many standard errors make 95% intervals that hold for all k figures at once, as a search over them needs.

    `samples` (num_resamples, k) are bootstrap samples; their standard deviations are the errors. It is the quantile of
    the largest deviation among the k (max-statistic), never below Student's, which is also that of k = 0.
    """
    least = student_quantile(max(1, num_clusters - 1))
    if not samples.size:
        return least
    spread = samples.std(axis=0)
    largest = (np.abs(samples - samples.mean(axis=0)) / np.where(spread > 0, spread, 1)).max(axis=1)
    return max(least, least / Z * float(np.quantile(largest, LEVEL)))  # a normal quantile becomes Student's


def symmetric_intervals(
    estimates: Array, samples: Array, num_clusters: int, biases: Array | None = None
) -> list[Interval | None]:
    """Student intervals of `estimates` (k,), with the spread of their bootstrap samples (num_resamples, k) as errors.

    For estimates that the middle of the samples does not estimate, such as debiased ones. `biases` (k,) is how far each
    may be off on average, 0 by default; an interval reaches further by what that costs. None for one cluster.
    """
    if num_clusters < 2:
        return [None] * len(estimates)
    errors = samples.std(axis=0)
    ratios = np.zeros_like(errors) if biases is None else biases / np.where(errors > 0, errors, np.inf)
    student = student_quantile(num_clusters - 1) / Z  # a normal quantile becomes Student's
    reach = np.array([student * biased_quantile(float(ratio)) for ratio in ratios]) * errors
    return [(float(e - r), float(e + r)) for e, r in zip(estimates, reach, strict=True)]


def biased_quantile(bias: float) -> float:
    """How many errors a 95% interval reaches on either side of a normal estimate that is off by at most `bias` errors.

    The 95% quantile of |N(bias, 1)|: 1.96 without a bias, and less than `bias` more. Source: Armstrong and Kolesar
    (2018, Econometrica 86).
    """
    normal, low, high = NormalDist(), Z, Z + abs(bias)
    while high - low > 1e-6:
        middle = (low + high) / 2
        inside = normal.cdf(middle - bias) - normal.cdf(-middle - bias)
        low, high = (middle, high) if inside < LEVEL else (low, middle)
    return high


def proportion_interval(hits: Array, clusters: Clusters | None = None) -> Interval | None:
    """Wilson's 95% interval for the share of 1 among `hits` (n,) of 0, 1 and NaN (left out); None without any.

    Not a point at 0 of n or n of n: 0 of 10 is [0, 0.28]. With clusters, n is divided by the design effect, the
    variance by clusters over that of independent items, at least 1; it cannot be estimated where all hits are alike,
    and n is then the number of clusters.
    """
    known = ~np.isnan(hits)
    values = hits[known]
    n = len(values)
    if not n:
        return None
    share = float(values.mean())
    size = float(n)
    if clusters is not None:
        names = number_clusters(clusters[known].tolist())
        alone = share * (1 - share) / n
        error = float(standard_errors(values[:, None], names)[0])
        size = n / max(1.0, error**2 / alone) if alone > 0 else float(count_clusters(n, names))
    return wilson_interval(share, size)


def wilson_interval(share: float, size: float, z: float = Z) -> Interval:
    """Wilson's 95% interval of a share of `size` independent items; `z` is larger where clusters are few."""
    centre = (share + z**2 / (2 * size)) / (1 + z**2 / size)
    reach = z / (1 + z**2 / size) * math.sqrt(share * (1 - share) / size + z**2 / (4 * size**2))
    return max(0.0, centre - reach), min(1.0, centre + reach)
