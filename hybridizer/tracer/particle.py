"""The task particle: the layer of a prompt at which the answer comes up.

Sources: the ratio from arXiv 2605.11416; the particle from arXiv 2604.20556, which leaves "significantly" open.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NO_PARTICLE = 0


def change_ratios(target_prob: NDArray[np.float64], epsilon: float) -> NDArray[np.float64]:
    """Ratio(l) = |P(l) - P(l-1)| / (P(l) + epsilon) of the target token, l = 1..L: (..., L) from (..., L+1).

    Between 0 and 1 where the probability rises, unbounded where it falls to nearly nothing: aggregate with the median.
    """
    before, after = target_prob[..., :-1], target_prob[..., 1:]
    return np.abs(after - before) / (after + epsilon)


def task_particles(target_prob: NDArray[np.float64], tau: float, p_min: float, epsilon: float) -> NDArray[np.int64]:
    """Each prompt's task particle, 1..L, or NO_PARTICLE (0): (n,) from the target's probabilities (n, L+1).

    Ours: the first layer at which the probability rises, by a ratio of at least `tau`, to at least `p_min`.
    """
    rises = target_prob[:, 1:] > target_prob[:, :-1]
    steep = change_ratios(target_prob, epsilon) >= tau
    found = rises & steep & (target_prob[:, 1:] >= p_min)
    return np.where(found.any(axis=1), found.argmax(axis=1) + 1, NO_PARTICLE)
