"""Donors ranked by how stable the layers are that would be spliced, and by whether they can do the task at all.

    score       = stability x competence
    stability   = 1 - mean dJS over the layers that would be spliced (LAYERTRACER's measure; dJS as in arXiv 2605.11416)
    competence  = (above_chance(accuracy) + above_chance(target_prob)) / 2
    above_chance(x) = max(0, (x - chance) / (1 - chance)), chance = the share of the commonest target among the probes

All of it is ours, for these reasons. A model that ignores its input is perfectly stable, so stability must not make up
for missing competence: a product, not a sum. A model that always gives the commonest word is right as often as
`chance`, so that share counts as 0. Accuracy alone ignores confidence and changes in steps of 1/n; probability alone
favours sharp models: the mean of both. The drawback: dJS of a layer is a few hundredths of a bit, so that competence
decides between donors that differ in it, and stability between those that do not. The parts are shown.

Both are measured on the same prompts for all donors, competence on those whose target is one token for every donor.
Intervals are 95%, by the bootstrap over prompts, the same resamples for all donors. Overlap means a tie.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybridizer.core.bootstrap import (
    LEVEL,
    Array,
    Interval,
    drawn_interval,
    mean_samples,
    recentred,
    resampling_weights,
)
from hybridizer.core.errors import InputError, Problem
from hybridizer.core.records import to_jsonable
from hybridizer.trace.boundary import Boundary, choose_boundary
from hybridizer.trace.probes import ProbeSet
from hybridizer.trace.readings import Readings
from hybridizer.trace.record import TraceRun
from hybridizer.trace.sensitivity import delta_js

SCHEMA = "hybridizer.ranking/2"


@dataclass(frozen=True)
class Candidate:
    """A donor to be ranked, its readings with the context perturbation, and which of its layers would be spliced."""

    donor: str
    readings: Readings
    layers: range


@dataclass(frozen=True)
class RankedDonor:
    """One donor: `score` and its parts, 0..1, each with its 95% interval.

    `tied_with` names the donors whose score interval overlaps this one's: their order has no meaning.
    """

    donor: str
    score: float
    score_ci: Interval
    stability: float
    stability_ci: Interval
    competence: float
    competence_ci: Interval
    accuracy: float
    accuracy_ci: Interval
    target_prob: float
    target_prob_ci: Interval
    first_layer: int
    last_layer: int
    tied_with: tuple[str, ...]


@dataclass(frozen=True)
class Ranking:
    """Donors, best first. Stability is measured on `n` prompts, competence on `answered_n` of them.

    `boundaries` are those whose deep sides were ranked, by donor; empty where other layers were.
    """

    n: int
    answered_n: int
    chance: float
    seed: int
    num_resamples: int
    ranking: tuple[RankedDonor, ...]
    boundaries: Mapping[str, Boundary] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The ranking as the plain JSON object of the contract, `schema` first."""
        return {"schema": SCHEMA, **to_jsonable(self)}


def rank(traces: Sequence[TraceRun], probes: ProbeSet, choice: str | float, *, seed: int) -> Ranking:
    """The traced donors, best first, by the layers from the boundary on that `choice` gives each of them.

    Raises InputError for traces without the context perturbation, and what `choose_boundary` and `rank_donors` raise.
    """
    candidates, boundaries = [], {}
    for traced in traces:
        if traced.readings.js is None:
            what = "this trace has the layer perturbation alone; ranking needs the context perturbation."
            raise InputError(Problem(f"trace of '{traced.donor}'", what, "Trace with --perturb context, or both."))
        boundaries[traced.donor] = boundary = choose_boundary(choice, traced.record)
        deep = range(boundary.layer, len(traced.record.layers))
        candidates.append(Candidate(traced.donor, traced.readings, deep))
    ranking = rank_donors(candidates, [probe.target for probe in probes.probes], seed=seed)
    return replace(ranking, boundaries=boundaries)


def rank_donors(
    candidates: Sequence[Candidate], targets: Sequence[str | None], *, seed: int = 0, num_resamples: int = 1000
) -> Ranking:
    """The candidates, best first, by the formula above. `targets` are the probes' targets, in order.

    Raises InputError for donors of the same name or traced on other prompts, for layers that a donor does not have, and
    for probes that cannot tell competence from chance: none with a target all donors can give, or all the same one.
    """
    _check(candidates, targets)
    answered = np.array([target is not None for target in targets])
    for candidate in candidates:
        answered &= ~np.isnan(candidate.readings.hit)
    chance = chance_level([target for target, known in zip(targets, answered, strict=True) if known])
    n = len(targets)
    weights = resampling_weights(n, num_resamples, seed)
    scored = [_score(candidate, answered, chance, weights) for candidate in candidates]
    ordered = sorted(scored, key=lambda donor: (-donor.score, donor.donor))
    ranked = tuple(_with_ties(donor, ordered) for donor in ordered)
    return Ranking(n, int(answered.sum()), chance, seed, num_resamples, ranked)


def region_stability(js: Array, layers: range, weights: Array) -> tuple[float, Array]:
    """1 - mean dJS over `layers`, of JS at the states (n, L+1), and its bootstrap samples (m,), `recentred`.

    `weights` (m, n) are resampling weights.
    """
    chosen = np.array(layers)
    estimate = 1 - float(delta_js(js.mean(axis=0))[chosen].mean())
    samples = 1 - delta_js(weights @ js)[:, chosen].mean(axis=1)
    return estimate, np.clip(recentred(samples, estimate), 0, 1)


def chance_level(targets: Sequence[str | None]) -> float:
    """The share of the most frequent target: the accuracy of a model that always answers with it.

    Raises InputError for fewer than two different targets.
    """
    counts = Counter(targets)
    if len(counts) < 2:
        what = "no probe has a target that every donor could give" if not counts else "every probe has the same target"
        fix = "Give probes with different one-token targets; by stability alone a random model would rank first."
        raise InputError(Problem("probes", f"{what}, so that competence cannot be distinguished from chance.", fix))
    return max(counts.values()) / len(targets)


def wilson_interval(hits: int, n: int) -> Interval:
    """The 95% Wilson interval of a proportion, `hits` of `n`, which has a width at 0 of n and n of n too."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    centre, spread = hits + z * z / 2, z * math.sqrt(hits * (n - hits) / n + z * z / 4)
    return max(0.0, (centre - spread) / (n + z * z)), min(1.0, (centre + spread) / (n + z * z))


def above_chance(share: Array, chance: float) -> Array:
    """Shares (...) on a scale on which `chance` and everything below it is 0, and 1 is 1."""
    return np.maximum(0, (share - chance) / (1 - chance))


def _score(candidate: Candidate, answered: NDArray[np.bool_], chance: float, weights: Array) -> RankedDonor:
    seen = candidate.readings
    assert seen.js is not None, "checked before"
    stability, stability_samples = region_stability(seen.js, candidate.layers, weights)
    accuracy, accuracy_samples = _mean(seen.hit, answered, weights)
    prob, prob_samples = _mean(seen.answer_prob, answered, weights)
    competence = (above_chance(accuracy, chance) + above_chance(prob, chance)) / 2
    competence_samples = (above_chance(accuracy_samples, chance) + above_chance(prob_samples, chance)) / 2
    return RankedDonor(
        donor=candidate.donor,
        score=float(stability * competence),
        score_ci=drawn_interval(stability_samples * competence_samples),
        stability=stability,
        stability_ci=drawn_interval(stability_samples),
        competence=float(competence),
        competence_ci=drawn_interval(competence_samples),
        accuracy=float(accuracy),
        accuracy_ci=drawn_interval(accuracy_samples),
        target_prob=float(prob),
        target_prob_ci=drawn_interval(prob_samples),
        first_layer=candidate.layers[0],
        last_layer=candidate.layers[-1],
        tied_with=(),
    )


def _mean(values: Array, answered: NDArray[np.bool_], weights: Array) -> tuple[Array, Array]:
    """The mean of `values` (n,) where `answered`, an array of no axes, and its bootstrap samples."""
    return np.asarray(values[answered].mean()), mean_samples(np.where(answered, values, np.nan), weights)


def _with_ties(donor: RankedDonor, others: Sequence[RankedDonor]) -> RankedDonor:
    tied = tuple(
        other.donor for other in others if other.donor != donor.donor and _overlap(donor.score_ci, other.score_ci)
    )
    return RankedDonor(**{**vars(donor), "tied_with": tied})


def _overlap(one: Interval, other: Interval) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]


def _check(candidates: Sequence[Candidate], targets: Sequence[str | None]) -> None:
    problems = []
    for name, count in Counter(candidate.donor for candidate in candidates).items():
        if count > 1:
            problems.append(Problem("donors", f"'{name}' is named {count} times.", "Name each donor once."))
    for candidate in candidates:
        n, num_layers = candidate.readings.num_prompts, candidate.readings.num_layers
        if n != len(targets):
            what = f"'{candidate.donor}' was traced on {n} prompts, and there are {len(targets)} probes."
            problems.append(Problem("donors", what, "Trace all donors on the same probes."))
        if not candidate.layers or min(candidate.layers) < 0 or max(candidate.layers) >= num_layers:
            what = f"layers {candidate.layers} requested of '{candidate.donor}', which has layers 0..{num_layers - 1}."
            problems.append(Problem("donors", what, "Give layers that the donor has."))
    if not candidates:
        problems.append(Problem("donors", "no donor is given.", "Name at least one."))
    if problems:
        raise InputError(*problems)
