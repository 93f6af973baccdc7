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

All donors are judged on the same share of their layers, and their competence on the held-out half of the probes
(competence.py). Intervals are 95%, by the bootstrap over clusters of prompts and over documents, the same resamples for
all donors; of accuracies Wilson's with clusters. Two donors tie where the interval of the *difference* of their scores
contains 0. A donor whose accuracy is not above chance beyond doubt is not competent: it ranks below those that are,
except by plain stability, and `deep: auto` does not take it. One whose accuracy differs between the halves beyond doubt
may have memorised one of them, which is a warning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from hybridizer.core.bootstrap import (
    Array,
    count_clusters,
    drawn_interval,
    recentred,
    resampled_means,
)
from hybridizer.core.errors import DidYouMean, InputError, Problem
from hybridizer.core.records import to_jsonable
from hybridizer.trace.boundary import Boundary, choose_boundary, follow_boundary
from hybridizer.trace.competence import (
    Halves,
    above_chance,
    accuracy_interval,
    chance_level,
    compare_halves,
    describe_halves,
    split_answered,
)
from hybridizer.trace.probes import Probe, ProbeSet
from hybridizer.trace.ranked import RankedDonor, Ranking, warn_of_memory
from hybridizer.trace.readings import Readings
from hybridizer.trace.record import TraceRun
from hybridizer.trace.sensitivity import delta_js

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
    """The side of a donor, measured on the host: its scores, the bytes of each document, the probes that it was asked.

    `why_whole` is None, or why the donor was measured whole, on its own.
    """

    score: Scored
    num_bytes: Array
    probes: tuple[Probe, ...]
    why_whole: str | None = None


@dataclass(frozen=True)
class Candidate:
    """A donor to be ranked, its readings with the context perturbation, and which of its layers would be spliced."""

    donor: str
    readings: Readings
    layers: range
    graft: Graft | None = None


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
    ranking = rank_donors(candidates, probes.probes, seed=seed, by=by)
    record = traces[0].record
    about = {"probes": to_jsonable(record.probes), "settings": to_jsonable(record.settings)}
    notes = tuple(describe_halves(probes, ranking.answered_n, ranking.selection_n))
    return replace(ranking, boundaries=boundaries, host=host, side=side, notes=notes, **about)


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
            found[name] = chosen if name == reference else follow_boundary(chosen, reference, at, record)
        return found
    return {name: choose_boundary(choice, record) for name, record in by_name.items()}


def rank_donors(
    candidates: Sequence[Candidate],
    probes: Sequence[Probe],
    *,
    seed: int = 0,
    num_resamples: int = 1000,
    by: str | None = None,
) -> Ranking:
    """The candidates, best first, by the measure `by` of MEASURES. `probes` are those of the traces, in order.

    By default that is DEFAULT, and stability-competence for candidates of which no side was measured.

    Competence is that of the grafts where every candidate has one, else that of the traced donors. Raises InputError
    for donors of the same name or traced on other prompts, for layers that a donor does not have, for an unknown
    measure or one whose evidence is missing, and for probes that cannot tell competence from chance: none with a target
    all donors can give, or all the same one.
    """
    grafted = bool(candidates) and all(candidate.graft is not None for candidate in candidates)
    by = by or (DEFAULT if any(one.graft is not None for one in candidates) else "stability-competence")
    _check(candidates, probes, by, grafted)
    asked, answers = _answers(candidates, probes, grafted)
    answered = np.array([probe.target is not None for probe in asked])
    for hit, _ in answers:
        answered &= ~np.isnan(hit)
    halves = split_answered(asked, answered)
    chance = chance_level([probe.target for probe, known in zip(asked, halves.measured, strict=True) if known])
    samples = _resample(candidates, answers, halves, num_resamples, seed)
    judged = [
        _judge(candidate, answer, halves, chance, drawn, by)
        for candidate, answer, drawn in zip(candidates, answers, samples, strict=True)
    ]
    plain = by == "stability"
    ordered = sorted(judged, key=lambda one: (not (plain or one[0].competent), -one[0].score, one[0].donor))
    ranked = tuple(_with_ties(donor, scores, ordered) for donor, scores in ordered)
    num_bytes = candidates[0].graft.num_bytes if grafted and candidates[0].graft else np.zeros(0)
    return Ranking(
        n=len(probes),
        num_clusters=count_clusters(len(probes), candidates[0].readings.clusters),
        answered_n=int(halves.measured.sum()),
        answered_clusters=halves.num_clusters,
        selection_n=0 if halves.selection is None else int(halves.selection.sum()),
        num_documents=len(num_bytes),
        num_bytes=int(num_bytes.sum()),
        chance=chance,
        seed=seed,
        num_resamples=num_resamples,
        by=by,
        side="deep",
        ranking=ranked,
        warnings=tuple(warn_of_memory(row) for row in ranked if row.memorised is not None),
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


def region_stability(js: Array, layers: range, samples: Array) -> tuple[float, Array]:
    """1 - mean dJS over `layers`, of JS at the states (n, L+1), and its bootstrap samples (m,), `recentred`.

    `samples` (m, L+1) are the mean JS of each bootstrap sample.
    """
    chosen = np.array(layers)
    estimate = 1 - float(delta_js(js.mean(axis=0))[chosen].mean())
    drawn = 1 - delta_js(samples)[:, chosen].mean(axis=1)
    return estimate, np.clip(recentred(drawn, estimate), 0, 1)


_Answers = tuple[Array, Array]


@dataclass(frozen=True)
class _Samples:
    """Bootstrap samples of one donor's means: JS at the states (m, L+1); accuracy, target probability and bytes per bit
    (m,), the last None without text.
    """

    js: Array
    accuracy: Array
    target_prob: Array
    bytes_per_bit: Array | None


def _answers(
    candidates: Sequence[Candidate], probes: Sequence[Probe], grafted: bool
) -> tuple[Sequence[Probe], list[_Answers]]:
    """The probes asked, and hits and target probabilities of each candidate: of its graft, or of its own trace."""
    if not grafted:
        return probes, [(one.readings.hit, one.readings.answer_prob) for one in candidates]
    grafts = [one.graft for one in candidates if one.graft is not None]
    return grafts[0].probes, [(graft.score.hit, graft.score.target_prob) for graft in grafts]


def _resample(
    candidates: Sequence[Candidate], answers: Sequence[_Answers], halves: Halves, num_resamples: int, seed: int
) -> list[_Samples]:
    """The samples of every candidate, all drawn together, so that donors are paired: whole clusters of prompts, and
    documents.
    """
    traced = [one.readings.js for one in candidates if one.readings.js is not None]
    js = resampled_means(traced, num_resamples, seed, candidates[0].readings.clusters)
    mask = halves.measured.astype(np.float64)
    columns = [np.stack([np.where(halves.measured, values, 0) for values in pair] + [mask], axis=1) for pair in answers]
    rates = resampled_means(columns, num_resamples, seed, halves.clusters)
    texts: list[Array | None] = [None] * len(candidates)
    scored = [
        np.stack([one.graft.num_bytes, one.graft.score.bits], axis=1)
        for one in candidates
        if one.graft is not None and len(one.graft.num_bytes)
    ]
    if len(scored) == len(candidates):
        texts = [means[:, 0] / means[:, 1] for means in resampled_means(scored, num_resamples, seed + 1)]
    found = []
    for states, rate, text in zip(js, rates, texts, strict=True):
        mass = np.where(rate[:, 2] > 0, rate[:, 2], np.nan)  # a sample may draw no probe that is measured
        found.append(_Samples(states, rate[:, 0] / mass, rate[:, 1] / mass, text))
    return found


def _judge(
    candidate: Candidate, answers: _Answers, halves: Halves, chance: float, samples: _Samples, by: str
) -> tuple[RankedDonor, Array]:
    """A donor without its ties, and the bootstrap samples of its score."""
    seen, graft = candidate.readings, candidate.graft
    assert seen.js is not None, "checked before"
    stability = region_stability(seen.js, candidate.layers, samples.js)
    accuracy, prob = (np.asarray(values[halves.measured].mean()) for values in answers)
    competence = (above_chance(accuracy, chance) + above_chance(prob, chance)) / 2
    of_competence = (above_chance(samples.accuracy, chance) + above_chance(samples.target_prob, chance)) / 2
    text = _measure_text(graft, samples)
    score, drawn = MEASURES[by](Evidence(stability, (float(competence), of_competence), text))
    bounds = accuracy_interval(answers[0], halves.measured, halves.clusters)
    assert bounds is not None, "chance is known, so there are answers"
    return RankedDonor(
        donor=candidate.donor,
        score=float(score),
        score_ci=drawn_interval(drawn),
        stability=stability[0],
        stability_ci=drawn_interval(stability[1]),
        competence=float(competence),
        competence_ci=drawn_interval(of_competence),
        accuracy=float(accuracy),
        accuracy_ci=bounds,
        **compare_halves(answers[0], halves),
        target_prob=float(prob),
        target_prob_ci=drawn_interval(samples.target_prob),
        bits_per_byte=None if text is None else 1 / text[0],
        bits_per_byte_ci=None if text is None else drawn_interval(1 / text[1]),
        first_layer=candidate.layers[0],
        last_layer=candidate.layers[-1],
        tied_with=(),
        competent=bounds[0] > chance,
        measured="side" if graft is not None and graft.why_whole is None else "whole",
        why_whole=None if graft is None else graft.why_whole,
    ), drawn


def _measure_text(graft: Graft | None, samples: _Samples) -> tuple[float, Array] | None:
    """Bytes per bit over all documents together, and its samples; None without documents."""
    if graft is None or samples.bytes_per_bit is None:
        return None
    return float(graft.num_bytes.sum() / graft.score.bits.sum()), samples.bytes_per_bit


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


def _check(candidates: Sequence[Candidate], probes: Sequence[Probe], by: str, grafted: bool) -> None:
    problems = []
    if by not in MEASURES:
        problems.append(Problem("by", f"there is no measure '{by}'.", DidYouMean(by, MEASURES)))
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
        if n != len(probes):
            what = f"'{candidate.donor}' was traced on {n} prompts, and there are {len(probes)} probes."
            problems.append(Problem("donors", what, "Trace all donors on the same probes."))
        if not candidate.layers or min(candidate.layers) < 0 or max(candidate.layers) >= num_layers:
            what = f"layers {candidate.layers} requested of '{candidate.donor}', which has layers 0..{num_layers - 1}."
            problems.append(Problem("donors", what, "Give layers that the donor has."))
    if not candidates:
        problems.append(Problem("donors", "no donor is given.", "Name at least one."))
    if problems:
        raise InputError(*problems)
