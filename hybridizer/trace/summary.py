"""From readings to the figures of a record: plain functions of arrays, no model in sight."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hybridizer.core.bootstrap import (
    Array,
    Interval,
    folded_interval,
    interval,
    intervals,
    mean_interval,
    resampling_weights,
)
from hybridizer.recipe.layers import first_deep_layer
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
    boundary_scores,
    change_ratios,
    delta_js,
    task_particles,
)

MARKS = {"33%": 0.33, "50%": 0.50, "66%": 0.66}


def summarise(
    readings: Readings, donor: RecordedDonor, probes: RecordedProbes, settings: RecordedSettings
) -> TraceRecord:
    """The record of a trace: every figure with its bootstrap interval over the prompts."""
    js = readings.layer_js if settings.perturb == "layer" else readings.js
    assert js is not None
    weights = resampling_weights(readings.num_prompts, settings.num_resamples, settings.seed)
    particles = task_particles(readings.target_prob, settings.tau, settings.p_min, settings.epsilon)
    boundary, best = _boundaries(js, weights)
    embedding, layers = _layers(readings, js, particles, weights, settings.epsilon)
    return TraceRecord(
        donor=donor,
        probes=probes,
        settings=settings,
        accuracy=_known_mean(readings.hit),
        accuracy_ci=mean_interval(readings.hit, weights),
        accuracy_n=int((~np.isnan(readings.hit)).sum()),
        target_prob=_known_mean(readings.answer_prob),
        target_prob_ci=mean_interval(readings.answer_prob, weights),
        embedding=embedding,
        layers=layers,
        task_particle=_task_particle(particles, len(layers), weights),
        vulnerable_layer=_vulnerable_layer(readings.layer_js, weights),
        boundary=boundary,
        boundary_marks={name: first_deep_layer(at, len(layers)) for name, at in MARKS.items()} if boundary else {},
        best_boundary=best,
    )


def _known_mean(values: Array) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _layers(
    readings: Readings, js: Array, particles: NDArray[np.int64], weights: Array, epsilon: float
) -> tuple[EmbeddingFigures, tuple[LayerFigures, ...]]:
    """The figures of the L+1 states: of the embedding output, and of the output of every layer."""
    n = readings.num_prompts
    states = _states(readings, js, weights)
    delta = delta_js(js.mean(axis=0))
    signed = np.diff(weights @ js, axis=1)
    ratios = change_ratios(readings.target_prob, epsilon)
    layers = tuple(
        LayerFigures(
            layer=layer,
            ratio_median=float(np.median(ratios[:, layer])),
            ratio_mean=float(ratios[:, layer].mean()),
            delta_js=float(delta[layer]),
            delta_js_ci=folded_interval(signed[:, layer]) if n > 1 else None,
            task_particles=int((particles == layer).sum()),
            **vars(state),
        )
        for layer, state in enumerate(states[1:])
    )
    # By itself, as ever: a product of the whole matrix rounds the last bit in another way.
    return replace(states[0], js_ci=mean_interval(js[:, 0], weights)), layers


def _states(readings: Readings, js: Array, weights: Array) -> list[EmbeddingFigures]:
    """What can be said of every state, the embedding output first."""
    n = readings.num_prompts
    prob_ci = intervals(weights @ readings.target_prob, n)
    js_ci = intervals(weights @ js, n)
    knows = bool(readings.kl_uniform.sum() > 0)  # a model that answers evenly has nothing to be explained
    explained = 1 - readings.kl.sum(axis=0) / readings.kl_uniform.sum() if knows else None
    samples = 1 - (weights @ readings.kl) / (weights @ readings.kl_uniform)[:, None] if knows else None
    explained_ci = None if samples is None else intervals(samples, n)
    layer_ci = None if readings.layer_js is None else intervals(weights @ readings.layer_js, n)
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


def _task_particle(particles: NDArray[np.int64], num_layers: int, weights: Array) -> TaskParticle:
    found = particles[particles != NO_PARTICLE]
    num_without = len(particles) - len(found)
    if not len(found):
        return TaskParticle(None, None, None, 0, num_without)
    layer = float(np.median(found))
    depth = (layer + 1) / num_layers
    return TaskParticle(layer, depth, _median_interval(particles, weights), len(found), num_without)


def _median_interval(particles: NDArray[np.int64], weights: Array) -> Interval | None:
    """The bootstrap interval of the median layer among resampled prompts that have a particle."""
    found = particles != NO_PARTICLE
    if found.sum() < 2:
        return None
    order = np.argsort(particles[found], kind="stable")
    mass = np.cumsum(weights[:, found][:, order], axis=1)
    drawn = mass[:, -1] > 0
    at_half = (mass[drawn] >= mass[drawn][:, -1:] / 2).argmax(axis=1)
    return interval(particles[found][order][at_half].astype(np.float64))


def _vulnerable_layer(layer_js: Array | None, weights: Array) -> VulnerableLayer | None:
    if layer_js is None:
        return None
    means = layer_js[:, 1:].mean(axis=0)
    samples = weights @ layer_js[:, 1:]
    worst = int(means.argmax())
    support = float((samples.argmax(axis=1) == worst).mean())
    ci = intervals(samples, len(layer_js))[worst]
    return VulnerableLayer(worst, (worst + 1) / len(means), float(means[worst]), ci, support)


def _boundaries(js: Array, weights: Array) -> tuple[tuple[BoundaryFigure, ...], BestBoundary | None]:
    scores = boundary_scores(js.mean(axis=0))
    if not len(scores):
        return (), None
    samples = boundary_scores(weights @ js)
    cis = intervals(samples, len(js))
    figures = tuple(BoundaryFigure(b, float(s), ci) for b, (s, ci) in enumerate(zip(scores, cis, strict=True), start=1))
    best = int(scores.argmax())
    support = float((samples.argmax(axis=1) == best).mean())
    return figures, BestBoundary(best + 1, float(scores[best]), cis[best], support)
