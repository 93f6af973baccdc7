"""Measures of a layer from other papers, to compare with the trace: one number per layer each.

snr                Spectrum, arXiv 2406.06623: how far the weights' singular values are above the noise
block-influence    ShortGPT, arXiv 2403.03853: how much the layer turns the residual stream, over all positions
angular-distance   arXiv 2403.17887: by what angle it turns it at the last position
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from hybridizer.core.bootstrap import Array, Clusters, Interval, count_clusters, intervals, resampled_means
from hybridizer.core.errors import InputError, Problem
from hybridizer.models.batching import make_batches
from hybridizer.models.parts import Parts, first_floating
from hybridizer.models.residual import read_outputs

# The interquartile range of a normal distribution in standard deviations.
IQR_OF_NORMAL = 1.349


@dataclass(frozen=True)
class LayerScores:
    """One measure of every layer: `values[l]` for layers l = 0..L-1, None where it is not defined.

    `intervals` are bootstrap 95% intervals over the prompts, None where no prompt is involved or only one.
    `high_means` describes in words what a large value means.
    """

    name: str
    source: str
    high_means: str
    values: tuple[float | None, ...]
    intervals: tuple[Interval | None, ...]


def signal_to_noise(weight: Float[Tensor, "rows columns"]) -> float | None:
    """Spectrum's ratio for one matrix: the sum of singular values above the noise threshold over the sum of the others.

    Divided by the largest singular value, as arXiv 2406.06623 does to compare matrices. The threshold is the edge of
    the Marchenko-Pastur law in singular values, sigma (1 + sqrt(short side / long side)), with sigma estimated robustly
    as the interquartile range of the singular values over 1.349, and without a factor for the size, as there.
    Computed in float32. None where no singular value is noise, or all are zero: the ratio has no value.
    """
    values = torch.linalg.svdvals(weight.float())
    low, high = torch.quantile(values, torch.tensor([0.25, 0.75], device=values.device))
    sigma = (high - low) / IQR_OF_NORMAL
    threshold = sigma * (1 + math.sqrt(min(weight.shape) / max(weight.shape)))
    signal, noise = values[values > threshold].sum(), values[values <= threshold].sum()
    return float(signal / noise / values.max()) if noise > 0 else None


def score_weights(parts: Parts, advance: Callable[[int], None] = lambda layers: None) -> LayerScores:
    """Spectrum's signal-to-noise ratio of each layer: the median over its weight matrices [ours].

    A mean would be dominated by one matrix: in SmolLM2-135M a single one raises that of layer 27 to 15, others are at
    0.3. The paper ranks each kind of matrix separately and does not combine them. A stack of experts counts as so many
    matrices; vectors are left out, and a depthwise kernel has no ratio. A layer without a matrix that has a ratio gets
    None. Raises InputError for weights that are not in memory.
    """
    if any(parameter.is_meta for layer in parts.layers for parameter in layer.parameters()):
        what = "some weights were left on disk by the device map, and singular values need them all."
        raise InputError(Problem("snr", what, "Load the donor into memory, or choose another baseline."))
    values: list[float | None] = []
    for layer in parts.layers:
        ratios = [ratio for matrix in _matrices(layer) if (ratio := signal_to_noise(matrix)) is not None]
        values.append(statistics.median(ratios) if ratios else None)
        advance(1)
    means = "much in the weights stands out of noise"
    return LayerScores("snr", "Spectrum, arXiv 2406.06623", means, tuple(values), (None,) * len(values))


@torch.no_grad()
def score_activations(
    model: nn.Module,
    parts: Parts,
    prompts: Sequence[Sequence[int]],
    *,
    batch_size: int = 64,
    seed: int = 0,
    num_resamples: int = 2000,
    clusters: Clusters | None = None,
    advance: Callable[[int], None] = lambda prompts: None,
) -> tuple[LayerScores, LayerScores]:
    """Block influence and angular distance of each layer on `prompts`, as token ids: one clean run over each.

    `clusters` are those of the prompts, which intervals are drawn by.

    Block influence is 1 - mean cos(input, output) over all positions of all prompts, 0..2. Angular distance is the mean
    over prompts of arccos(cos(input, output)) / pi at the last position, 0..1: that of arXiv 2403.17887 for blocks of
    one layer. Both papers read the states that transformers returns, the last of which is normed; here it is what the
    last layer gives, so that its value is the layer's own. Several parallel streams count as one long vector.
    """
    n, num_layers = len(prompts), parts.num_layers
    influence, angle = np.zeros((n, num_layers)), np.zeros((n, num_layers))
    lengths = np.array([len(ids) for ids in prompts])
    for batch in make_batches([len(ids) for ids in prompts], batch_size):
        ids = torch.tensor([prompts[index] for index in batch], device=parts.device)
        states = read_outputs(model, parts, ids, lambda output: _stream(parts, output))
        for layer, (before, after) in enumerate(itertools.pairwise(states)):
            angles = _angles(before.to(after.device), after)
            influence[list(batch), layer] = (1 - angles.cos()).sum(dim=1).cpu()
            angle[list(batch), layer] = angles[:, -1].cpu() / math.pi
        advance(len(batch))
    counts = lengths[:, None].astype(np.float64)
    drawn = resampled_means((influence, counts, angle), num_resamples, seed, clusters)
    num_clusters = count_clusters(n, clusters)
    return (
        _scores(
            "block-influence",
            "ShortGPT, arXiv 2403.03853",
            "the layer turns the residual stream much, over all positions",
            influence.sum(axis=0) / lengths.sum(),
            drawn[0] / drawn[1],
            num_clusters,
        ),
        _scores(
            "angular-distance",
            "The Unreasonable Ineffectiveness of the Deeper Layers, arXiv 2403.17887",
            "the layer turns the residual stream much, at the last position",
            angle.mean(axis=0),
            drawn[2],
            num_clusters,
        ),
    )


def _scores(name: str, source: str, high_means: str, values: Array, samples: Array, num_clusters: int) -> LayerScores:
    return LayerScores(name, source, high_means, tuple(values.tolist()), tuple(intervals(samples, num_clusters)))


def _matrices(layer: nn.Module) -> Iterator[Tensor]:
    """The weight matrices of a layer, each expert of a stack by itself."""
    for parameter in layer.parameters():
        if parameter.is_floating_point() and parameter.ndim >= 2:
            yield from parameter.detach().flatten(0, -3) if parameter.ndim > 2 else [parameter.detach()]


def _stream(parts: Parts, output: object) -> Float[Tensor, "batch time features"]:
    """A layer's output as (batch, time, features)."""
    hidden = first_floating(output)
    assert hidden is not None
    return hidden.movedim((parts.batch_axis, parts.time_axis), (0, 1)).flatten(2)


def _angles(a: Float[Tensor, "*batch features"], b: Float[Tensor, "*batch features"]) -> Float64[Tensor, "*batch"]:
    """The angles in radians between vectors, in float64.

    From the tangent of half the angle, which is accurate for small angles too: arccos of a cosine in float32 gives no
    angle between 0 and 0.0003. A zero vector is at a right angle to everything, as in a cosine similarity of 0.
    """
    a, b = (
        x.double() / x.double().norm(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny) for x in (a, b)
    )
    return 2 * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1))
