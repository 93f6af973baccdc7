"""Makes the choices that a recipe leaves open: which donor is deep, which is shallow, and where the boundary is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hybridizer.core.errors import PlanError, Problem
from hybridizer.core.progress import Monitor
from hybridizer.donors.donor import Donor
from hybridizer.pipeline.donors import evaluation_documents, measure_sides
from hybridizer.plan.plan import Evidence
from hybridizer.plan.swap import assume_swap
from hybridizer.plan.training import settle_training
from hybridizer.recipe.layers import first_deep_layer, format_layers
from hybridizer.recipe.models import AUTO, Layout, Recipe

if TYPE_CHECKING:
    from hybridizer.trace.boundary import Boundary
    from hybridizer.trace.ranked import RankedDonor, Ranking
    from hybridizer.trace.record import TraceRun
    from hybridizer.trace.runs import TraceRequest


@dataclass(frozen=True)
class ResolvedLayout:
    """A recipe whose layout is donors and numbers, the evidence for them, and the traces it rests on."""

    recipe: Recipe
    evidence: Evidence
    traces: tuple[TraceRun, ...] = ()

    def settled(self, donors: Mapping[str, Donor]) -> ResolvedLayout:
        """With all that the layers decide about the training; raises what `settle_training` raises."""
        recipe, reasons = settle_training(self.recipe, donors)
        evidence = replace(self.evidence, reasons=(*self.evidence.reasons, *reasons))
        return replace(self, recipe=recipe, evidence=evidence)


def as_written(recipe: Recipe, donors: Mapping[str, Donor], monitor: Monitor) -> ResolvedLayout:
    """The recipe as it is, for layouts of donors and numbers alone: nothing is traced."""
    return ResolvedLayout(replace(recipe, layout=_midpoint_as_share(recipe.layout)), Evidence())


def by_evidence(recipe: Recipe, donors: Mapping[str, Donor], monitor: Monitor) -> ResolvedLayout:
    """The recipe with donors and boundary chosen from traces, and from both sides of each donor where one is open.

    A strategy becomes the layer that it chooses in the deep donor, in the host where that is still to be chosen, and
    holds for all donors as a share of their depth. With `deep: auto`, and with `shallow: auto`, the donor is taken
    whose side ranks first on the host at that boundary. A layer or a share is kept as it is, so that a trace never
    changes the model, and compared with the trace if there is one.

    Raises PlanError where no donor is competent and none has `allow: [incompetent]`.
    """
    from hybridizer.trace.runs import request_from_section, trace

    layout = recipe.layout
    request = request_from_section(recipe.trace, recipe.seed, recipe.folder)
    open_sides = [side for side in ("deep", "shallow") if getattr(layout, side) == AUTO]
    alone = layout.deep is not None and not open_sides and recipe.trace is None
    names = [layout.deep] if alone else list(donors)
    traces = {name: trace(donors[name], request, monitor) for name in names if name is not None}
    if layout.slices:
        return ResolvedLayout(recipe, Evidence(), tuple(traces.values()))
    assert layout.boundary is not None
    reasons: list[str] = []
    warnings: list[str] = []
    rankings: dict[str, Ranking] = {}
    reference = layout.host if layout.deep in (None, AUTO) else layout.deep
    if open_sides:
        rankings = _rank_sides(recipe, donors, list(traces.values()), request, reference, open_sides, monitor)
        for side, ranking in rankings.items():
            best = _first_allowed(recipe, side, ranking, donors)
            layout = replace(layout, deep=best.donor) if side == "deep" else replace(layout, shallow=best.donor)
            reasons += _explain(side, best, ranking)
            warnings += _warn(side, best, ranking)
    layout, boundary, warned = _place(layout, traces, reference, rankings, request)
    reasons.append(f"Boundary at layer {boundary.layer} of '{layout.deep}': {boundary.reason}")
    kept = rankings.get("deep") or rankings.get("shallow")
    evidence = Evidence(tuple(reasons), (*warnings, *warned), None if kept is None else _record(rankings))
    return ResolvedLayout(replace(recipe, layout=layout), evidence, tuple(traces.values()))


def assume_layout(recipe: Recipe, depths: Mapping[str, int]) -> Recipe:
    """The recipe with open choices filled in without a trace, for checks of everything else. `depths`: of the donors.

    A side that is auto is the host's; a strategy is a layer of the deep donor, as it will be in the plan, so that the
    depth is the same: the middle one, or the last that the shallow donor can reach.
    """
    recipe = assume_swap(recipe, depths)
    layout = _midpoint_as_share(recipe.layout)
    deep, shallow = (layout.host if side == AUTO else side for side in (layout.deep, layout.shallow))
    boundary = layout.boundary
    if isinstance(boundary, str):
        assert deep is not None and shallow is not None, "checked when the recipe was loaded"
        boundary = min(first_deep_layer(0.5, depths[deep]), max(1, depths[shallow] - 1))
    return replace(recipe, layout=replace(layout, deep=deep, shallow=shallow, boundary=boundary))


def _midpoint_as_share(layout: Layout) -> Layout:
    return replace(layout, boundary=0.5) if layout.boundary == "midpoint" else layout


def _rank_sides(
    recipe: Recipe,
    donors: Mapping[str, Donor],
    traces: Sequence[TraceRun],
    request: TraceRequest,
    reference: str,
    sides: Sequence[str],
    monitor: Monitor,
) -> dict[str, Ranking]:
    """One ranking for each of `sides`, of all donors on the host at one boundary; both rest on the same passes."""
    from hybridizer.trace.ranking import common_boundary, rank

    choice = recipe.layout.boundary
    boundaries = {name: boundary.layer for name, boundary in common_boundary(traces, choice, reference).items()}
    grafts = measure_sides(donors, recipe.layout.host, boundaries, request, evaluation_documents(recipe), monitor)
    return {
        side: rank(
            traces,
            request.probes,
            choice,
            seed=recipe.seed,
            side=side,
            host=recipe.layout.host,
            reference=reference,
            grafts=grafts[side],
        )
        for side in sides
    }


def _first_allowed(recipe: Recipe, side: str, ranking: Ranking, donors: Mapping[str, Donor]) -> RankedDonor:
    """The first donor that is competent or allowed not to be. Raises PlanError where there is none."""
    for row in ranking.ranking:
        if row.competent or "incompetent" in donors[row.donor].allow:
            return row
    rates = ", ".join(f"'{row.donor}' {row.accuracy:.1%} ({_span(row.accuracy_ci)})" for row in ranking.ranking)
    what = f"no donor's {side} side does better than chance ({ranking.chance:.1%}) beyond doubt: {rates}."
    fix = "Take other donors or probes, name the donor, or add `allow: [incompetent]` to one."
    raise PlanError(Problem(recipe.locate(("layout", side)), what, fix))


def _place(
    layout: Layout,
    traces: Mapping[str, TraceRun],
    reference: str,
    rankings: Mapping[str, Ranking],
    request: TraceRequest,
) -> tuple[Layout, Boundary, list[str]]:
    """The layout with its boundary as a number, what the deep donor's trace says about it, and warnings."""
    from hybridizer.trace.boundary import choose_boundary
    from hybridizer.trace.competence import is_at_chance

    deep = layout.deep
    assert deep is not None and layout.boundary is not None
    asked, record = layout.boundary, traces[deep].record
    ranking = next(iter(rankings.values()), None)
    boundary = choose_boundary(asked, record) if ranking is None else ranking.boundaries[deep]
    layout = _midpoint_as_share(layout)
    if isinstance(layout.boundary, str):
        depths = {len(traced.record.layers) for traced in traces.values()}
        number: int | float = boundary.layer
        if ranking is not None and len(depths) > 1:  # one share for all donors, as they were measured
            number = ranking.boundaries[reference].layer / len(traces[reference].record.layers)
        layout = replace(layout, boundary=number)
    warnings = [boundary.warning] if boundary.warning else []
    if is_at_chance(traces[deep].readings.hit, request.probes.probes):
        what = f"'{deep}' does the probes no better than chance, so that its trace supports no boundary"
        warnings.append(f"{what}: its layers may be as stable because they compute nothing.")
    return layout, boundary, warnings


def _explain(side: str, best: RankedDonor, ranking: Ranking) -> list[str]:
    """Why this donor gives that side, and which ones were left out."""
    ties = f", tied with {' and '.join(best.tied_with)}" if best.tied_with else ""
    layers = format_layers(range(best.first_layer, best.last_layer + 1))
    other = "shallow" if side == "deep" else "deep"
    place = f"its layers {layers} with the {other} side of '{ranking.host}'"
    place = "the donor on its own" if best.measured == "whole" else place
    bits = f"{best.bits_per_byte:.3f} bits per byte, " if best.bits_per_byte is not None else ""
    parts = f"{bits}accuracy {best.accuracy:.1%} (chance {ranking.chance:.1%}), stability {best.stability:.3f}"
    reason = f"{side.capitalize()} is '{best.donor}', first of {len(ranking.ranking)} donors by {ranking.by}: {place}"
    left = [
        f"'{row.donor}' is not taken as {side}: its accuracy of {row.accuracy:.1%} ({_span(row.accuracy_ci)}) is not "
        f"above chance ({ranking.chance:.1%}) beyond doubt."
        for row in ranking.ranking
        if not row.competent and row.donor != best.donor
    ]
    return [f"{reason}: {parts}{ties}.", *left]


def _warn(side: str, best: RankedDonor, ranking: Ranking) -> list[str]:
    found = []
    if not best.competent:
        what = f"accuracy {best.accuracy:.1%} ({_span(best.accuracy_ci)}), chance {ranking.chance:.1%}"
        found.append(f"The {side} side is '{best.donor}', which is not competent ({what}) and is allowed.")
    for row in ranking.ranking:
        if row.why_whole is not None:
            found.append(f"'{row.donor}' was measured whole, not by its {side} side on the host: {row.why_whole}")
    return [*found, *ranking.warnings]


def _record(rankings: Mapping[str, Ranking]) -> dict[str, object]:
    """The ranking of the deep side as it is written; that of the shallow side inside it where both were chosen."""
    first, *rest = rankings.values()
    record = first.to_json()
    return {**record, "shallow": rest[0].to_json()} if rest else record


def _span(band: tuple[float, float]) -> str:
    return f"{band[0]:.1%} to {band[1]:.1%}"
