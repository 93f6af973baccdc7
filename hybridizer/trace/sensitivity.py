"""What the divergences and probabilities of one trace say about layers and boundaries: plain functions of arrays.

Sources: layer sensitivity of arXiv 2605.11416, task particle of arXiv 2604.20556; the boundary score is our reading of
the appendix of the first.

How layers are counted, here and in everything that a trace writes: from 0, layers 0..L-1. Both papers count them 1..L
and write h(0) for the embedding output and h(l) for the output of their layer l. An array over the residual stream
therefore has L+1 columns, the *states*: column 0 is the embedding output, column l + 1 the output of layer l, so that
column s is the papers' h(s), P(s) or JS(s), and our layer l is their layer l + 1. A boundary b, 1..L-1, is the first
deep layer, and at the same time the number of shallow layers: the papers' split after layer b.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def delta_js(js: NDArray[np.float64]) -> NDArray[np.float64]:
    """dJS of layers 0..L-1, (..., L), from JS of the states, (..., L+1): |JS of the layer's output - JS of its input|.

    Applied to means over prompts, never to single prompts: the mean of absolute differences is another, larger number.
    """
    return np.abs(np.diff(js, axis=-1))


def boundary_scores(js: NDArray[np.float64]) -> NDArray[np.float64]:
    """S(b) for b = 1..L-1, (..., L-1), from JS of the states, (..., L+1).

    S(b) is the mean dJS of layers 0..b-1 minus that of layers b..L-1: positive where the shallow side is the sensitive
    one. Our reading of the appendix of arXiv 2605.11416.
    """
    changes = delta_js(js)
    num_layers = changes.shape[-1]
    shallow = np.cumsum(changes, axis=-1)[..., :-1]
    deep = changes.sum(axis=-1, keepdims=True) - shallow
    b = np.arange(1, num_layers)
    return shallow / b - deep / (num_layers - b)


NO_PARTICLE = -1


def change_ratios(target_prob: NDArray[np.float64], epsilon: float) -> NDArray[np.float64]:
    """Ratio of layers 0..L-1, (..., L), from the target token's probability at the states, (..., L+1).

    |after - before| / (after + epsilon): between 0 and 1 where the probability rises, unbounded where it falls to
    nearly nothing. Aggregate it with the median.
    """
    before, after = target_prob[..., :-1], target_prob[..., 1:]
    return np.abs(after - before) / (after + epsilon)


def task_particles(target_prob: NDArray[np.float64], tau: float, p_min: float, epsilon: float) -> NDArray[np.int64]:
    """Each prompt's task particle, a layer 0..L-1, or NO_PARTICLE: (n,) from the probabilities at the states (n, L+1).

    Ours: the first layer at which the probability rises, by a ratio of at least `tau`, to at least `p_min`.
    """
    rises = target_prob[:, 1:] > target_prob[:, :-1]
    steep = change_ratios(target_prob, epsilon) >= tau
    found = rises & steep & (target_prob[:, 1:] >= p_min)
    return np.where(found.any(axis=1), found.argmax(axis=1), NO_PARTICLE)
