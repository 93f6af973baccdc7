"""Measures of layers and boundaries from the divergences and probabilities of one trace: plain functions of arrays.

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
from jaxtyping import Bool, Float64, Int64

from hybridizer.core.bootstrap import Clusters, standard_errors


def delta_js(js: Float64[np.ndarray, "*batch states"]) -> Float64[np.ndarray, "*batch states-1"]:
    """dJS of layers 0..L-1 from JS of the L+1 states: |JS of the layer's output - JS of its input|.

    Applied to means over prompts, not to single prompts: the mean of absolute differences is larger.
    """
    return np.abs(np.diff(js, axis=-1))


def boundary_scores(js: Float64[np.ndarray, "*batch states"]) -> Float64[np.ndarray, "*batch states-2"]:
    """S(b) for b = 1..L-1 from JS of the L+1 states.

    S(b) is the mean dJS of layers 0..b-1 minus that of layers b..L-1: positive where the shallow side is the sensitive
    one. Our reading of the appendix of arXiv 2605.11416.
    """
    changes = delta_js(js)
    num_layers = changes.shape[-1]
    shallow = np.cumsum(changes, axis=-1)[..., :-1]
    deep = changes.sum(axis=-1, keepdims=True) - shallow
    b = np.arange(1, num_layers)
    return shallow / b - deep / (num_layers - b)


def change_errors(
    js: Float64[np.ndarray, "prompts states"], clusters: Clusters | None
) -> Float64[np.ndarray, "layers"]:
    """The standard errors of mean JS of a layer's output - mean JS of its input, for layers 0..L-1."""
    num_layers = js.shape[1] - 1
    columns = (js[:, layer + 1 : layer + 2] - js[:, layer : layer + 1] for layer in range(num_layers))
    return np.concatenate([standard_errors(column, clusters) for column in columns])


def boundary_contrasts(readable: Bool[np.ndarray, "layers"]) -> Float64[np.ndarray, "boundaries layers"]:
    """What dJS of layers 0..L-1 is multiplied with to give S(b) of b = 1..L-1, over the layers that are `readable`.

    Layers that are not count on neither side. Rows are NaN for a b that leaves a side without a readable layer.
    """
    num_layers = len(readable)
    shallow = np.tri(num_layers - 1, num_layers, dtype=np.bool_)
    sides = [(side & readable).astype(np.float64) for side in (shallow, ~shallow)]
    counts = [side.sum(axis=1, keepdims=True) for side in sides]
    shares = [side / np.where(count > 0, count, np.nan) for side, count in zip(sides, counts, strict=True)]
    return np.asarray(shares[0] - shares[1])


NO_PARTICLE = -1


def change_ratios(
    target_prob: Float64[np.ndarray, "*batch states"], epsilon: float
) -> Float64[np.ndarray, "*batch states-1"]:
    """Ratio of layers 0..L-1 from the target token's probability at the L+1 states.

    |after - before| / (after + epsilon): between 0 and 1 where the probability rises, unbounded where it falls to
    nearly nothing. Aggregate it with the median.
    """
    before, after = target_prob[..., :-1], target_prob[..., 1:]
    return np.abs(after - before) / (after + epsilon)


def task_particles(
    target_prob: Float64[np.ndarray, "prompts states"], tau: float, p_min: float, epsilon: float
) -> Int64[np.ndarray, "prompts"]:
    """Each prompt's task particle, a layer 0..L-1, or NO_PARTICLE, from the probabilities at the L+1 states.

    Ours: the first layer at which the probability rises, by a ratio of at least `tau`, to at least `p_min`.
    """
    particles = np.full(len(target_prob), NO_PARTICLE)
    for layer in range(target_prob.shape[1] - 2, -1, -1):  # one at a time, for the memory of many prompts
        before, after = target_prob[:, layer], target_prob[:, layer + 1]
        steep = change_ratios(target_prob[:, layer : layer + 2], epsilon)[:, 0] >= tau
        particles[(after > before) & steep & (after >= p_min)] = layer
    return particles
