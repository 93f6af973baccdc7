"""Donors ranked for one side of a splice, by one of several measures.

    transplant             bytes per bit: text bytes over the bits that the host with the donor's side needs for them
    transplant-competence  competence of the host with the donor's side
    stability-competence   stability x that competence
    stability              1 - mean dJS over the donor's layers of that side (dJS as in arXiv 2605.11416)

    competence      = (above_chance(accuracy) + above_chance(target_prob)) / 2
    above_chance(x) = max(0, (x - chance) / (1 - chance)), chance = the share of the commonest target among the probes

`transplant` is the default because it decides best where the truth is known: docs/evidence.md has the table of these
measures and others. Stability, the paper's measure, rises when a model is damaged, because a damaged model reacts less
to its context. All of this is ours except dJS.

All donors are judged on the same share of their layers. Intervals are 95%, by the bootstrap over prompts and documents,
the same resamples for all donors; of accuracies Wilson's. Two donors tie where the interval of the *difference* of
their scores contains 0. A donor whose accuracy is not above chance beyond doubt is not competent: it ranks below those
that are, except by plain stability, and `deep: auto` does not take it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hybridizer.core.bootstrap import (
    Array,
    Interval,
    drawn_interval,
    mean_samples,
    recentred,
    resampling_weights,
)
from hybridizer.core.errors import InputError, Problem, nearest
from hybridizer.core.records import to_jsonable
from hybridizer.trace.boundary import Boundary, choose_boundary
from hybridizer.trace.competence import above_chance, chance_level, wilson_interval
from hybridizer.trace.probes import ProbeSet
from hybridizer.trace.readings import Readings
from hybridizer.trace.record import TraceRun
from hybridizer.trace.sensitivity import delta_js

SCHEMA = "hybridizer.ranking/3"
DEFAULT = "transplant"


class Scored(Protocol):
    """Scores of one model: `bits` of each document; `hit` and `target_prob` of each prompt, NaN without an answer."""

    @property
    def bits(self) -> Array: ...
    @property
    def hit(self) -> Array: ...
    @property
    def target_prob(self) -> Array: ...


@dataclass(frozen=True)
class Graft:
    """The side of a donor, measured on the host: its scores, the bytes of each document, the target of each prompt.

    `why_whole` is None, or why the donor was measured whole, on its own.
    """

    score: Scored
    num_bytes: Array
    targets: tuple[str | None, ...]
    why_whole: str | None = None


@dataclass(frozen=True)
class Candidate:
    """A donor to be ranked, its readings with the context perturbation, and which of its layers would be spliced."""

    donor: str
    readings: Readings
    layers: range
    graft: Graft | None = None


@dataclass(frozen=True)
class RankedDonor:
    """One donor: `score` and its parts, each with its 95% interval; all 0..1 except bits per byte.

    `competence`, `accuracy`, `target_prob` and `bits_per_byte` are those of the host with the donor's side in place of
    its own (`measured` "side"), or of the donor itself ("whole", for the reason in `why_whole`). `tied_with` names the
    donors from which the score does not differ beyond doubt.
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
    bits_per_byte: float | None
    bits_per_byte_ci: Interval | None
    first_layer: int
    last_layer: int
    tied_with: tuple[str, ...]
    competent: bool
    measured: str
    why_whole: str | None


@dataclass(frozen=True)
class Ranking:
    """Donors, best first, by the measure `by`, for one `side` of a splice on `host`.

    Stability is measured on `n` prompts, competence on `answered_n` and bits on `num_documents` of `num_bytes` bytes.
    `boundaries` are where that side begins or ends, by donor; `probes` and `settings` those of the traces.
    """

    n: int
    answered_n: int
    num_documents: int
    num_bytes: int
    chance: float
    seed: int
    num_resamples: int
    by: str
    side: str
    ranking: tuple[RankedDonor, ...]
    host: str | None = None
    probes: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    boundaries: Mapping[str, Boundary] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The ranking as the plain JSON object of the contract, `schema` first."""
        return {"schema": SCHEMA, **to_jsonable(self)}


def rank(
    traces: Sequence[TraceRun],
    probes: ProbeSet,
    choice: str | float,
    *,
    seed: int,
    by: str | None = None,
    side: str = "deep",
    host: str | None = None,
    reference: str | None = None,
    grafts: Mapping[str, Graft] | None = None,
) -> Ranking:
    """The traced donors, best first, by one `side` ("deep" or "shallow") of each.

    `choice` is a boundary. A strategy looks at the trace of `reference`, else of `host`, else of the first donor, and
    its choice holds for all as a share of the depth. Raises InputError for traces without the context perturbation, and
    what `choose_boundary` and `rank_donors` raise.
    """
    host = traces[0].donor if host is None and traces else host
    for traced in traces:
        if traced.readings.js is None:
            what = "this trace has the layer perturbation alone; ranking needs the context perturbation."
            raise InputError(Problem(f"trace of '{traced.donor}'", what, "Trace with --perturb context, or both."))
    boundaries = common_boundary(traces, choice, reference or host)
    candidates = []
    for traced in traces:
        cut, depth = boundaries[traced.donor].layer, len(traced.record.layers)
        layers = range(cut, depth) if side == "deep" else range(cut)
        candidates.append(Candidate(traced.donor, traced.readings, layers, (grafts or {}).get(traced.donor)))
    ranking = rank_donors(candidates, [probe.target for probe in probes.probes], seed=seed, by=by)
    record = traces[0].record
    about = {"probes": to_jsonable(record.probes), "settings": to_jsonable(record.settings)}
    return replace(ranking, boundaries=boundaries, host=host, side=side, **about)


def common_boundary(traces: Sequence[TraceRun], choice: str | float, reference: str | None) -> dict[str, Boundary]:
    """The boundary of each traced donor, at one share of the depth for all.

    A strategy chooses in the trace of `reference`; the other donors get the same layer, or the same share of their
    depth where that differs. Raises what `choose_boundary` raises.
    """
    found: dict[str, Boundary] = {}
    by_name = {traced.donor: traced.record for traced in traces}
    if isinstance(choice, str) and reference in by_name:
        chosen = choose_boundary(choice, by_name[reference])
        depth = len(by_name[reference].layers)
        for name, record in by_name.items():
            at = chosen.layer if len(record.layers) == depth else chosen.layer / depth
            found[name] = chosen if name == reference else choose_boundary(at, record)
        return found
    return {name: choose_boundary(choice, record) for name, record in by_name.items()}


def rank_donors(
    candidates: Sequence[Candidate],
    targets: Sequence[str | None],
    *,
    seed: int = 0,
    num_resamples: int = 1000,
    by: str | None = None,
) -> Ranking:
    """The candidates, best first, by the measure `by` of MEASURES. `targets` are the probes' targets, in order.

    By default that is DEFAULT, and stability-competence for candidates of which no side was measured.

    Competence is that of the grafts where every candidate has one, else that of the traced donors. Raises InputError
    for donors of the same name or traced on other prompts, for layers that a donor does not have, for an unknown
    measure or one whose evidence is missing, and for probes that cannot tell competence from chance: none with a target
    all donors can give, or all the same one.
    """
    grafted = bool(candidates) and all(candidate.graft is not None for candidate in candidates)
    by = by or (DEFAULT if any(one.graft is not None for one in candidates) else "stability-competence")
    _check(candidates, targets, by, grafted)
    answers = _answers(candidates, targets, grafted)
    answered = np.array([target is not None for target in answers[0][2]])
    for hit, _, _ in answers:
        answered &= ~np.isnan(hit)
    chance = chance_level([target for target, known in zip(answers[0][2], answered, strict=True) if known])
    weights = resampling_weights(len(targets), num_resamples, seed)
    of_answers = weights if not grafted else resampling_weights(len(answered), num_resamples, seed)
    documents = candidates[0].graft.num_bytes if grafted and candidates[0].graft else np.zeros(0)
    of_documents = resampling_weights(len(documents), num_resamples, seed + 1) if len(documents) else np.zeros((0, 0))
    judged = [
        _judge(candidate, answer, answered, chance, (weights, of_answers, of_documents), by)
        for candidate, answer in zip(candidates, answers, strict=True)
    ]
    plain = by == "stability"
    ordered = sorted(judged, key=lambda one: (not (plain or one[0].competent), -one[0].score, one[0].donor))
    ranked = tuple(_with_ties(donor, samples, ordered) for donor, samples in ordered)
    return Ranking(
        len(targets),
        int(answered.sum()),
        len(documents),
        int(documents.sum()),
        chance,
        seed,
        num_resamples,
        by,
        "deep",
        ranked,
    )


@dataclass(frozen=True)
class Evidence:
    """What measures may use of one donor: pairs of an estimate and its bootstrap samples, higher is better."""

    stability: tuple[float, Array]
    competence: tuple[float, Array]
    bytes_per_bit: tuple[float, Array] | None


def _bytes_per_bit(evidence: Evidence) -> tuple[float, Array]:
    assert evidence.bytes_per_bit is not None, "checked before"
    return evidence.bytes_per_bit


def _stability_competence(evidence: Evidence) -> tuple[float, Array]:
    (stability, of_stability), (competence, of_competence) = evidence.stability, evidence.competence
    return stability * competence, of_stability * of_competence


# `--by`: the score of one donor and its bootstrap samples. A new measure is an entry here and, if it needs more, a
# field of Evidence; the help text follows, and docs/evidence.md says how well it decides.
MEASURES: Mapping[str, Callable[[Evidence], tuple[float, Array]]] = {
    "transplant": _bytes_per_bit,
    "transplant-competence": lambda evidence: evidence.competence,
    "stability-competence": _stability_competence,
    "stability": lambda evidence: evidence.stability,
}
NEEDS_TEXT = {"transplant"}
NEEDS_GRAFT = {"transplant", "transplant-competence"}


def region_stability(js: Array, layers: range, weights: Array) -> tuple[float, Array]:
    """1 - mean dJS over `layers`, of JS at the states (n, L+1), and its bootstrap samples (m,), `recentred`.

    `weights` (m, n) are resampling weights.
    """
    chosen = np.array(layers)
    estimate = 1 - float(delta_js(js.mean(axis=0))[chosen].mean())
    samples = 1 - delta_js(weights @ js)[:, chosen].mean(axis=1)
    return estimate, np.clip(recentred(samples, estimate), 0, 1)


_Answers = tuple[Array, Array, Sequence[str | None]]


def _answers(candidates: Sequence[Candidate], targets: Sequence[str | None], grafted: bool) -> list[_Answers]:
    """Hits, target probabilities and targets of each candidate: of its graft, or of its own trace."""
    if not grafted:
        return [(one.readings.hit, one.readings.answer_prob, targets) for one in candidates]
    grafts = [one.graft for one in candidates if one.graft is not None]
    return [(graft.score.hit, graft.score.target_prob, graft.targets) for graft in grafts]


def _judge(
    candidate: Candidate,
    answers: _Answers,
    answered: NDArray[np.bool_],
    chance: float,
    weights: tuple[Array, Array, Array],
    by: str,
) -> tuple[RankedDonor, Array]:
    """A donor without its ties, and the bootstrap samples of its score."""
    seen, graft = candidate.readings, candidate.graft
    assert seen.js is not None, "checked before"
    stability = region_stability(seen.js, candidate.layers, weights[0])
    accuracy, accuracy_samples = _mean(answers[0], answered, weights[1])
    prob, prob_samples = _mean(answers[1], answered, weights[1])
    competence = (above_chance(accuracy, chance) + above_chance(prob, chance)) / 2
    of_competence = (above_chance(accuracy_samples, chance) + above_chance(prob_samples, chance)) / 2
    text = _measure_text(graft, weights[2])
    score, samples = MEASURES[by](Evidence(stability, (float(competence), of_competence), text))
    bounds = wilson_interval(round(float(accuracy) * int(answered.sum())), int(answered.sum()))
    return RankedDonor(
        donor=candidate.donor,
        score=float(score),
        score_ci=drawn_interval(samples),
        stability=stability[0],
        stability_ci=drawn_interval(stability[1]),
        competence=float(competence),
        competence_ci=drawn_interval(of_competence),
        accuracy=float(accuracy),
        accuracy_ci=bounds,
        target_prob=float(prob),
        target_prob_ci=drawn_interval(prob_samples),
        bits_per_byte=None if text is None else 1 / text[0],
        bits_per_byte_ci=None if text is None else drawn_interval(1 / text[1]),
        first_layer=candidate.layers[0],
        last_layer=candidate.layers[-1],
        tied_with=(),
        competent=bounds[0] > chance,
        measured="side" if graft is not None and graft.why_whole is None else "whole",
        why_whole=None if graft is None else graft.why_whole,
    ), samples


def _measure_text(graft: Graft | None, weights: Array) -> tuple[float, Array] | None:
    """Bytes per bit over all documents together, and its samples; None without documents."""
    if graft is None or not len(graft.num_bytes):
        return None
    bits, sizes = graft.score.bits, graft.num_bytes
    return float(sizes.sum() / bits.sum()), (weights @ sizes) / (weights @ bits)


def _mean(values: Array, answered: NDArray[np.bool_], weights: Array) -> tuple[Array, Array]:
    """The mean of `values` (n,) where `answered`, an array of no axes, and its bootstrap samples."""
    return np.asarray(values[answered].mean()), mean_samples(np.where(answered, values, np.nan), weights)


def _with_ties(donor: RankedDonor, samples: Array, others: Sequence[tuple[RankedDonor, Array]]) -> RankedDonor:
    tied = tuple(
        other.donor
        for other, theirs in others
        if other.donor != donor.donor and other.competent == donor.competent and _ties(samples, theirs)
    )
    return replace(donor, tied_with=tied)


def _ties(one: Array, other: Array) -> bool:
    """Whether the interval of the paired difference contains 0."""
    low, high = drawn_interval(one - other)
    return low <= 0 <= high


def _check(candidates: Sequence[Candidate], targets: Sequence[str | None], by: str, grafted: bool) -> None:
    problems = []
    if by not in MEASURES:
        problems.append(Problem("by", f"there is no measure '{by}'.", nearest(by, MEASURES)))
    elif candidates and by in NEEDS_GRAFT and not grafted:
        what = f"measure '{by}' needs each donor's side measured on the host, and some were not."
        problems.append(Problem("by", what, "Measure them, or rank by stability or stability-competence."))
    elif by in NEEDS_TEXT and any(one.graft is not None and not len(one.graft.num_bytes) for one in candidates):
        problems.append(Problem("by", f"measure '{by}' needs text, and none was scored.", "Give text to score."))
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
