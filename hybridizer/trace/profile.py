"""Two traces of one model, before and after training: did the deep side keep its profile?

The profile of a side is dJS over its layers. A frozen layer computes the same function, yet its profile can change: its
input changes, and the lens reads every layer through the model's own final norm and head, so that its JS and P describe
the layer as the model now uses it. target_prob also changes because the target is the model's own answer.

The criterion is ours. `delta_js_moved` is how far dJS moved, as a mean of absolute values over the deep layers;
`delta_js_spread` how far these layers lay from their own mean before. At moved = spread the old profile predicts the
new one no better than a constant. Of the spread, SmolLM2-135M moved by 0.05, 0.15 and 0.40 when its shallow half got
noise of 1%, 3% and 10% of its weights, and by 1.0 when its deep half was shuffled (100 prompts). The profile is kept
where moved is at most half the spread, not kept where it is more, each with its whole 95% interval over prompts, else
undecided. It does not compare with the shallow side, which little training moves little, nor with the noise of the
first trace, which more prompts make smaller until any change counts. Absolute values add what noise there is: few
prompts make `moved` too large, never too small, and speak against "kept".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hybridizer.core.bootstrap import (
    Array,
    Interval,
    count_clusters,
    debiased_abs,
    interval,
    intervals,
    recentred,
    resampled_means,
    symmetric_intervals,
)
from hybridizer.core.errors import InputError, Problem
from hybridizer.core.records import to_jsonable
from hybridizer.trace.record import TraceRun
from hybridizer.trace.sensitivity import boundary_contrasts, change_errors, delta_js

SCHEMA = "hybridizer.profile/2"
KEPT_SHARE = 0.5
KEPT, NOT_KEPT, UNDECIDED = "kept", "not kept", "undecided"
_FREE = ("tuned_lens",)  # the key of maps that are fitted to each model separately


@dataclass(frozen=True)
class LayerChange:
    """One layer: means over prompts before and after, and after less before, in bits or as a probability."""

    layer: int
    js_change: float
    js_change_ci: Interval | None
    delta_js_before: float
    delta_js_after: float
    delta_js_change: float
    delta_js_change_ci: Interval | None
    target_prob_before: float
    target_prob_after: float
    target_prob_change: float
    target_prob_change_ci: Interval | None


@dataclass(frozen=True)
class SideChange:
    """Layers first_layer..last_layer together, as means over layers.

    moved: of the absolute changes. delta_js_before, delta_js_spread: of dJS before, and of how far it lies from that
    mean. correlation: of dJS before with dJS after; None for fewer than three layers, or layers that are all alike.
    """

    first_layer: int
    last_layer: int
    delta_js_before: float
    delta_js_spread: float
    delta_js_moved: float
    delta_js_moved_ci: Interval | None
    target_prob_moved: float
    target_prob_moved_ci: Interval | None
    correlation: float | None
    correlation_ci: Interval | None


@dataclass(frozen=True)
class ProfileChange:
    """What training did to a trace of n prompts. `boundary` is the first deep layer, S the debiased S(boundary).

    `verdict` is of the deep side, see the module; `sentence` states it with its numbers. Every `x_ci` is a 95% interval
    by the bootstrap over clusters of prompts, the same resamples before and after; None for a single cluster. What
    debiasing leaves of the bias of S is in both traces alike where layers are, and is not in `s_change_ci`.
    """

    boundary: int
    n: int
    verdict: str
    sentence: str
    shallow: SideChange
    deep: SideChange
    s_before: float
    s_after: float
    s_change: float
    s_change_ci: Interval | None
    layers: tuple[LayerChange, ...]

    def to_json(self) -> dict[str, Any]:
        """The plain JSON object of schema "hybridizer.profile/2"."""
        return {"schema": SCHEMA, **to_jsonable(self)}


@dataclass(frozen=True)
class _Figure:
    """A figure of every layer or state before and after: means (k,) and the means of each bootstrap sample (m, k)."""

    before: Array
    after: Array
    before_samples: Array
    after_samples: Array

    @property
    def change(self) -> Array:
        return self.after - self.before

    @property
    def change_samples(self) -> Array:
        return self.after_samples - self.before_samples


def compare_profiles(before: TraceRun, after: TraceRun, boundary: int) -> ProfileChange:
    """What happened between two traces of the same probes and settings; `boundary` is the first deep layer.

    Raises InputError for traces of other probes, settings or depth, naming the first difference.
    """
    _refuse_unlike(before, after)
    first, second = _js(before), _js(after)
    clusters, num_layers = before.readings.clusters, first.shape[1] - 1
    n = count_clusters(len(first), clusters)
    assert 1 <= boundary < num_layers, boundary
    settings = before.record.settings
    one, other = before.readings.target_prob, after.readings.target_prob
    drawn = resampled_means((first, second, one, other), settings.num_resamples, settings.seed, clusters)
    js = _Figure(first.mean(axis=0), second.mean(axis=0), *drawn[:2])
    delta = _Figure(*(delta_js(values) for values in vars(js).values()))
    score = _scores(js, change_errors(first, clusters), change_errors(second, clusters), boundary)
    prob = _Figure(one.mean(axis=0), other.mean(axis=0), *drawn[2:])
    deep = _side(delta, prob, range(boundary, num_layers), n)
    verdict = _verdict(deep)
    return ProfileChange(
        boundary=boundary,
        n=len(first),
        verdict=verdict,
        sentence=_sentence(deep, verdict),
        shallow=_side(delta, prob, range(boundary), n),
        deep=deep,
        s_before=float(score.before[0]),
        s_after=float(score.after[0]),
        s_change=float(score.change[0]),
        s_change_ci=symmetric_intervals(score.change, score.change_samples, n)[0],
        layers=_layers(js, delta, prob, n),
    )


def _scores(js: _Figure, errors_before: Array, errors_after: Array, boundary: int) -> _Figure:
    """The debiased S(boundary) of both traces, from their JS and the errors (L,) of the changes between its states."""
    contrast = boundary_contrasts(np.ones(js.before.shape[0] - 1, np.bool_))[[boundary - 1]].T
    rows = zip(vars(js).values(), (errors_before, errors_after) * 2, strict=True)
    return _Figure(*(debiased_abs(np.diff(values), errors) @ contrast for values, errors in rows))


def _js(traced: TraceRun) -> Array:
    by_layer = traced.record.settings.perturb == "layer"
    found = traced.readings.layer_js if by_layer else traced.readings.js
    assert found is not None
    return found


def _refuse_unlike(before: TraceRun, after: TraceRun) -> None:
    def facts(traced: TraceRun) -> dict[str, Any]:
        record = traced.record
        kept = {name: value for name, value in vars(record.settings).items() if name not in _FREE}
        return {"probes": record.probes.sha256, "layers": record.donor.num_layers, **kept}

    one, other = facts(before), facts(after)
    for name in one:
        if one[name] != other.get(name):
            what = f"{name} was {one[name]} in the first and is {other.get(name)} in the second."
            fix = "Trace both with the same probes and settings."
            raise InputError(Problem(f"traces of '{before.donor}' and '{after.donor}'", what, fix))


def _layers(js: _Figure, delta: _Figure, prob: _Figure, n: int) -> tuple[LayerChange, ...]:
    spreads = [intervals(figure.change_samples, n) for figure in (js, delta, prob)]
    return tuple(
        LayerChange(
            layer=layer,
            js_change=float(js.change[layer + 1]),
            js_change_ci=spreads[0][layer + 1],
            delta_js_before=float(delta.before[layer]),
            delta_js_after=float(delta.after[layer]),
            delta_js_change=float(delta.change[layer]),
            delta_js_change_ci=spreads[1][layer],
            target_prob_before=float(prob.before[layer + 1]),
            target_prob_after=float(prob.after[layer + 1]),
            target_prob_change=float(prob.change[layer + 1]),
            target_prob_change_ci=spreads[2][layer + 1],
        )
        for layer in range(len(delta.before))
    )


def _side(delta: _Figure, prob: _Figure, layers: range, n: int) -> SideChange:
    at = np.array(layers)
    outputs = at + 1  # of these layers, among the states
    profile = delta.before[at]
    moved, moved_ci = _moved(delta.change[at], delta.change_samples[:, at], n)
    prob_moved, prob_moved_ci = _moved(prob.change[outputs], prob.change_samples[:, outputs], n)
    likeness = _correlation(profile[None], delta.after[None, at])
    samples = _correlation(delta.before_samples[:, at], delta.after_samples[:, at])
    return SideChange(
        first_layer=layers[0],
        last_layer=layers[-1],
        delta_js_before=float(profile.mean()),
        delta_js_spread=float(np.abs(profile - profile.mean()).mean()),
        delta_js_moved=moved,
        delta_js_moved_ci=moved_ci,
        target_prob_moved=prob_moved,
        target_prob_moved_ci=prob_moved_ci,
        correlation=None if likeness is None else float(likeness[0]),
        correlation_ci=None if likeness is None or samples is None or n < 2 else interval(samples),
    )


def _moved(change: Array, samples: Array, n: int) -> tuple[float, Interval | None]:
    """The mean absolute change, and its interval, from `recentred` samples."""
    moved = float(np.abs(change).mean())
    return moved, None if n < 2 else interval(np.maximum(0, recentred(np.abs(samples).mean(axis=1), moved)))


def _correlation(one: Array, other: Array) -> Array | None:
    """Of each row of (m, k) with the same row of the other: (m,); None where it has no meaning."""
    x, y = (values - values.mean(axis=1, keepdims=True) for values in (one, other))
    size = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    if one.shape[1] < 3 or not size.all():
        return None
    return np.clip((x * y).sum(axis=1) / size, -1, 1)


def _verdict(deep: SideChange) -> str:
    if deep.delta_js_moved == 0:
        return KEPT
    if deep.delta_js_moved_ci is None or deep.first_layer == deep.last_layer:
        return UNDECIDED
    low, high = deep.delta_js_moved_ci
    limit = KEPT_SHARE * deep.delta_js_spread
    return KEPT if high <= limit else NOT_KEPT if low > limit else UNDECIDED


def _sentence(deep: SideChange, verdict: str) -> str:
    start = {
        KEPT: "The deep side kept its profile",
        NOT_KEPT: "The deep side did not keep its profile",
        UNDECIDED: "Whether the deep side kept its profile is undecided",
    }[verdict]
    if deep.first_layer == deep.last_layer:
        layers, against = f"layer {deep.first_layer}", "one layer alone has no profile"
    else:
        layers = f"layers {deep.first_layer}..{deep.last_layer}"
        share = f"{deep.delta_js_moved / deep.delta_js_spread:.0%} of " if deep.delta_js_spread else ""
        against = f"{share}the {deep.delta_js_spread:.4f} bits by which they lie from their mean"
    band = deep.delta_js_moved_ci
    spread = f" (95% interval {band[0]:.4f} to {band[1]:.4f})" if band else ""
    return f"{start}: dJS of {layers} moved by {deep.delta_js_moved:.4f} bits on average{spread}; {against}."
