"""Traces -> ranking: donors by the stability of what would be spliced, among those that can do the task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hybridizer.core.errors import InputError, Problem
from hybridizer.trace.boundary import Boundary, choose_boundary
from hybridizer.trace.cache import TraceRun
from hybridizer.trace.probes import ProbeSet


def choose(traced: TraceRun, asked: str | float) -> Boundary:
    """The boundary of one traced donor, as a recipe or a user asks for it, with its reason and warning."""
    return choose_boundary(asked, traced.record)


def rank(traces: Sequence[TraceRun], probes: ProbeSet, asked: str | float, *, seed: int) -> Mapping[str, Any]:
    """The ranking of the traced donors as the plain JSON object of schema hybridizer.ranking/1, best first.

    What counts is the deep side of each donor: the layers behind the boundary that `asked` gives it. Raises InputError
    for traces without the context perturbation, and whatever `rank_donors` raises.
    """
    from hybridizer.trace.ranking import Candidate, PerPrompt, rank_donors

    candidates, boundaries = [], {}
    for traced in traces:
        if traced.readings.js is None:
            what = "this trace has the layer perturbation alone; ranking needs the context perturbation."
            raise InputError(Problem(f"trace of '{traced.donor}'", what, "Trace with --perturb context, or both."))
        boundary = choose(traced, asked)
        boundaries[traced.donor] = boundary
        seen = PerPrompt(traced.readings.js, traced.readings.hit, traced.readings.answer_prob)
        depth = traced.record["donor"]["num_layers"]
        candidates.append(Candidate(traced.donor, seen, range(boundary.layer + 1, depth + 1)))
    ranking = rank_donors(candidates, [probe.target for probe in probes.probes], seed=seed)
    return {**ranking.to_json(), "boundaries": {name: vars(boundary) for name, boundary in boundaries.items()}}
