"""From readings to the figures of a record: plain functions of arrays, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybridizer.core.bootstrap import (
    Array,
    Clusters,
    Interval,
    bias_left,
    count_clusters,
    debiased_abs,
    drawn_interval,
    folded_interval,
    interval,
    intervals,
    mean_samples,
    proportion_interval,
    symmetric_intervals,
    weight_blocks,
)
from hybridizer.recipe.layers import first_deep_layer
from hybridizer.trace.licence import find_blind, score_settings
from hybridizer.trace.readings import Readings
from hybridizer.trace.record import (
    BestBoundary,
    BoundaryFigure,
    EmbeddingFigures,
    LayerFigures,
    RecordedDonor,
    RecordedProbes,
    RecordedSettings,
    TaskParticle,
    TraceRecord,
    VulnerableLayer,
)
from hybridizer.trace.sensitivity import (
    NO_PARTICLE,
    boundary_contrasts,
    boundary_scores,
    change_errors,
    change_ratios,
    delta_js,
    task_particles,
)

MARKS = {"33%": 0.33, "50%": 0.50, "66%": 0.66}


@dataclass(frozen=True)
class _Samples:
    """Means over the prompts of each bootstrap sample: (m,), or (m, L+1) over the states; `particle` has its median.

    `embedding_js` is the first column of `js`, by a product of its own, which rounds its last bit in another way;
    `disturbed_js` is `layer_js` without its first column. `particle` leaves samples without a particle out.
    """

    answer_prob: Array
    target_prob: Array
    js: Array
    embedding_js: Array
    kl: Array
    kl_uniform: Array
    layer_js: Array | None
    disturbed_js: Array | None
    particle: Array


def summarise(
    readings: Readings,
    donor: RecordedDonor,
    probes: RecordedProbes,
    settings: RecordedSettings,
    templates: Sequence[str | None],
) -> TraceRecord:
    """The record of a trace: every figure with its bootstrap interval over the prompts, drawn by cluster."""
    js = readings.layer_js if settings.perturb == "layer" else readings.js
    assert js is not None
    particles = task_particles(readings.target_prob, settings.tau, settings.p_min, settings.epsilon)
    clusters = readings.clusters
    blocks = weight_blocks(readings.num_prompts, settings.num_resamples, settings.seed, clusters=clusters)
    samples = _joined([_sample(readings, js, particles, weights) for weights in blocks])
    boundary, best = _boundaries(js, samples, clusters)
    embedding, layers = _layers(readings, js, particles, samples, settings.epsilon)
    return TraceRecord(
        donor=donor,
        probes=probes,
        settings=settings,
        accuracy=_known_mean(readings.hit),
        accuracy_ci=proportion_interval(readings.hit, clusters),
        accuracy_n=int((~np.isnan(readings.hit)).sum()),
        target_prob=_known_mean(readings.answer_prob),
        target_prob_ci=_known_interval(readings.answer_prob, samples.answer_prob),
        embedding=embedding,
        layers=layers,
        task_particle=_task_particle(particles, len(layers), samples),
        vulnerable_layer=_vulnerable_layer(readings.layer_js, samples),
        boundary=boundary,
        boundary_marks={name: first_deep_layer(at, len(layers)) for name, at in MARKS.items()} if boundary else {},
        best_boundary=best,
        licence_settings=score_settings(readings, settings, templates),
    )


def _sample(readings: Readings, js: Array, particles: NDArray[np.int64], weights: Array) -> _Samples:
    """The samples that one block of resampling weights (rows, n) gives."""
    layer_js = readings.layer_js
    return _Samples(
        answer_prob=mean_samples(readings.answer_prob, weights),
        target_prob=weights @ readings.target_prob,
        js=weights @ js,
        embedding_js=mean_samples(js[:, 0], weights),
        kl=weights @ readings.kl,
        kl_uniform=weights @ readings.kl_uniform,
        layer_js=None if layer_js is None else weights @ layer_js,
        disturbed_js=None if layer_js is None else weights @ layer_js[:, 1:],
        particle=_median_samples(particles, weights),
    )


def _joined(blocks: Sequence[_Samples]) -> _Samples:
    columns = {name: [getattr(block, name) for block in blocks] for name in vars(blocks[0])}
    joined: dict[str, Any] = {
        name: None if parts[0] is None else np.concatenate(parts) for name, parts in columns.items()
    }
    return _Samples(**joined)


def _known_interval(values: Array, samples: Array) -> Interval | None:
    """The interval of the mean of `values` (n,) that are known; None for fewer than two of them."""
    return drawn_interval(samples) if (~np.isnan(values)).sum() > 1 else None


def _known_mean(values: Array) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _layers(
    readings: Readings, js: Array, particles: NDArray[np.int64], samples: _Samples, epsilon: float
) -> tuple[EmbeddingFigures, tuple[LayerFigures, ...]]:
    """The figures of the L+1 states: of the embedding output, and of the output of every layer."""
    n = count_clusters(readings.num_prompts, readings.clusters)
    states = _states(readings, js, samples)
    delta = delta_js(js.mean(axis=0))
    signed = np.diff(samples.js, axis=1)
    blind = find_blind(readings.kl, readings.kl_uniform)

    def ratios(layer: int) -> Array:
        return change_ratios(readings.target_prob[:, layer : layer + 2], epsilon)[:, 0]

    layers = tuple(
        LayerFigures(
            layer=layer,
            ratio_median=float(np.median(ratios(layer))),
            ratio_mean=float(ratios(layer).mean()),
            delta_js=float(delta[layer]),
            delta_js_ci=folded_interval(signed[:, layer]) if n > 1 else None,
            task_particles=int((particles == layer).sum()),
            blind=bool(blind[layer]),
            **vars(state),
        )
        for layer, state in enumerate(states[1:])
    )
    return replace(states[0], js_ci=_known_interval(js[:, 0], samples.embedding_js)), layers


def _states(readings: Readings, js: Array, samples: _Samples) -> list[EmbeddingFigures]:
    """The figures of every state, the embedding output first."""
    n = count_clusters(readings.num_prompts, readings.clusters)
    prob_ci = intervals(samples.target_prob, n)
    js_ci = intervals(samples.js, n)
    varies = bool(readings.kl_uniform.sum() > 0)  # nothing to explain in uniform answers
    explained = 1 - readings.kl.sum(axis=0) / readings.kl_uniform.sum() if varies else None
    explained_ci = intervals(1 - samples.kl / samples.kl_uniform[:, None], n) if varies else None
    layer_ci = None if samples.layer_js is None else intervals(samples.layer_js, n)
    return [
        EmbeddingFigures(
            target_prob=float(readings.target_prob[:, state].mean()),
            target_prob_ci=prob_ci[state],
            js=float(js[:, state].mean()),
            js_ci=js_ci[state],
            layer_js=None if readings.layer_js is None else float(readings.layer_js[:, state].mean()),
            layer_js_ci=None if layer_ci is None else layer_ci[state],
            explained=None if explained is None else float(explained[state]),
            explained_ci=None if explained_ci is None else explained_ci[state],
        )
        for state in range(js.shape[1])
    ]


def _task_particle(particles: NDArray[np.int64], num_layers: int, samples: _Samples) -> TaskParticle:
    found = particles[particles != NO_PARTICLE]
    num_without = len(particles) - len(found)
    if not len(found):
        return TaskParticle(None, None, None, 0, num_without)
    layer = float(np.median(found))
    depth = (layer + 1) / num_layers
    return TaskParticle(layer, depth, interval(samples.particle) if len(found) > 1 else None, len(found), num_without)


def _median_samples(particles: NDArray[np.int64], weights: Array) -> Array:
    """The median task particle in each bootstrap sample; samples without a particle are left out."""
    found = particles != NO_PARTICLE
    if not found.any():
        return np.empty(0)
    order = np.argsort(particles[found], kind="stable")
    mass = np.cumsum(weights[:, found][:, order], axis=1)
    drawn = mass[:, -1] > 0
    at_half = (mass[drawn] >= mass[drawn][:, -1:] / 2).argmax(axis=1)
    return particles[found][order][at_half].astype(np.float64)


def _vulnerable_layer(layer_js: Array | None, samples: _Samples) -> VulnerableLayer | None:
    if layer_js is None:
        return None
    assert samples.disturbed_js is not None
    means = layer_js[:, 1:].mean(axis=0)
    worst = int(means.argmax())
    support = float((samples.disturbed_js.argmax(axis=1) == worst).mean())
    ci = intervals(samples.disturbed_js, len(layer_js))[worst]
    return VulnerableLayer(worst, (worst + 1) / len(means), float(means[worst]), ci, support)


def _boundaries(
    js: Array, samples: _Samples, clusters: Clusters | None
) -> tuple[tuple[BoundaryFigure, ...], BestBoundary | None]:
    scores = boundary_scores(js.mean(axis=0))
    if not len(scores):
        return (), None
    cis = intervals(boundary_scores(samples.js), count_clusters(len(js), clusters))
    debiased, s_samples = _debiased(js, samples.js, clusters)
    figures = tuple(
        BoundaryFigure(b, float(s), ci, *others)
        for b, (s, ci, *others) in enumerate(zip(scores, cis, *debiased, strict=True), start=1)
    )
    best = max(figures, key=lambda figure: (figure.s_debiased, -figure.b))
    support = float((s_samples.argmax(axis=1) == best.b - 1).mean())
    return figures, BestBoundary(best.b, best.s_debiased, best.s_debiased_ci, support)


def _debiased(
    js: Array, js_samples: Array, clusters: Clusters | None
) -> tuple[tuple[list[float], list[Interval | None], list[float], list[Interval | None]], Array]:
    """Debiased S(b) and deep stability for b = 1..L-1, each with its intervals; from JS (n, L+1) and its samples.

    Beside them the samples of S(b), (m, L-1).
    """
    contrasts = boundary_contrasts(np.ones(js.shape[1] - 1, np.bool_))
    deep = np.where(contrasts < 0, contrasts, 0.0)  # minus the mean of the deep side
    error = change_errors(js, clusters)
    means, drawn = np.diff(js.mean(axis=0)), np.diff(js_samples, axis=1)
    delta, samples, left = debiased_abs(means, error), debiased_abs(drawn, error), bias_left(means, error)
    num_clusters = count_clusters(len(js), clusters)
    s, stability = delta @ contrasts.T, 1 + delta @ deep.T
    s_samples = samples @ contrasts.T
    s_cis = symmetric_intervals(s, s_samples, num_clusters, left @ np.abs(contrasts).T)
    stability_cis = symmetric_intervals(stability, samples @ deep.T, num_clusters, left @ np.abs(deep).T)
    inside = [None if band is None else (_share(band[0]), _share(band[1])) for band in stability_cis]
    return (s.tolist(), s_cis, [_share(value) for value in stability.tolist()], inside), s_samples


def _share(value: float) -> float:
    """`value`, a debiased estimate, moved into the range 0..1 that the true one is in."""
    return min(1.0, max(0.0, value))
