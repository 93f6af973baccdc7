"""Spearman's rank correlation with exact p values, and given a third variable.

Not a command; trace_outcome.py imports it.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from hybridizer.core.bootstrap import Array

MOST_POINTS = 8  # 40,320 orders
CLOSE = 1e-9


def ranks(values: Array) -> Array:
    """Ranks 1..n along the last axis, equal values sharing the mean of theirs."""
    below = (values[..., :, None] > values[..., None, :]).sum(axis=-1)
    equal = (values[..., :, None] == values[..., None, :]).sum(axis=-1)
    return np.asarray(below + (equal + 1) / 2)


def correlate(x: Array, y: Array) -> Array:
    """Spearman's rho along the last axis, broadcast; NaN where one of the two is constant."""
    first, second = ranks(x), ranks(y)
    first = first - first.mean(axis=-1, keepdims=True)
    second = second - second.mean(axis=-1, keepdims=True)
    size = np.sqrt((first**2).sum(axis=-1) * (second**2).sum(axis=-1))
    return np.asarray((first * second).sum(axis=-1) / np.where(size > 0, size, np.nan))


def permutation_p(x: Array, y: Array) -> float:
    """The two-sided p value of rho among all orders of `y`; at most MOST_POINTS points, NaN where rho is."""
    assert len(x) == len(y) <= MOST_POINTS, (len(x), len(y))
    orders = np.array(list(itertools.permutations(range(len(y)))))
    found = abs(float(correlate(x, y)))
    return math.nan if math.isnan(found) else float((np.abs(correlate(x, y[orders])) >= found - CLOSE).mean())


def partial(x: Array, y: Array, given: Array) -> Array:
    """Spearman's rho of x and y given a third variable; NaN where it has the same order as x or y."""
    xy, xg, yg = correlate(x, y), correlate(x, given), correlate(y, given)
    left = (1 - xg**2) * (1 - yg**2)
    return np.asarray((xy - xg * yg) / np.sqrt(np.where(left > CLOSE, left, np.nan)))
