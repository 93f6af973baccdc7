"""What a recipe leaves open (`deep: auto`, a boundary by strategy), settled by traces of its donors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hybridizer.core.progress import Monitor
from hybridizer.donors.donor import Donor
from hybridizer.plan.plan import Evidence
from hybridizer.recipe.recipe import AUTO, Recipe

if TYPE_CHECKING:
    from hybridizer.trace.cache import Traced


@dataclass(frozen=True)
class Settled:
    """A recipe whose layout is donors and numbers, the evidence for them, and the traces it rests on."""

    recipe: Recipe
    evidence: Evidence
    traces: tuple[Traced, ...] = ()


def settle(recipe: Recipe, donors: Mapping[str, Donor], monitor: Monitor) -> Settled:
    """The recipe with every open choice made. Traces donors only where the recipe asks for traces or needs them.

    With `deep: auto` the donor that ranks first is taken; the boundary is read off the trace of the deep donor. A
    boundary that the recipe gives as a number is kept, and judged by the trace where there is one.
    """
    layout = recipe.layout
    if recipe.trace is None and not layout.needs_trace:
        fixed = 0.5 if layout.boundary == "midpoint" else layout.boundary
        return Settled(replace(recipe, layout=replace(layout, boundary=fixed)), Evidence())
    from hybridizer.trace.donor import request_from_section, trace
    from hybridizer.trace.rank import choose, rank

    request = request_from_section(recipe.trace, recipe.seed, recipe.folder)
    names = [layout.deep] if layout.deep not in (None, AUTO) and recipe.trace is None else list(donors)
    traces = {name: trace(donors[name], request, monitor) for name in names if name is not None}
    if layout.slices:
        return Settled(recipe, Evidence(), tuple(traces.values()))
    reasons, ranking = [], None
    if layout.deep == AUTO:
        assert layout.boundary is not None
        ranking = rank(list(traces.values()), request.probes, layout.boundary, seed=recipe.seed)
        best = ranking["ranking"][0]
        layout = replace(layout, deep=best["donor"])
        reasons.append(_why_first(best, len(traces)))
    assert layout.deep is not None and layout.boundary is not None
    boundary = choose(traces[layout.deep], layout.boundary)
    layout = replace(layout, boundary=boundary.layer)
    reasons.append(f"Boundary after {boundary.layer} layers: {boundary.reason}")
    warnings = (boundary.warning,) if boundary.warning else ()
    evidence = Evidence(tuple(reasons), warnings, ranking)
    return Settled(replace(recipe, layout=layout), evidence, tuple(traces.values()))


def guess(recipe: Recipe) -> Recipe:
    """The recipe with open choices filled in without a trace, for checks of everything else: the host, the midpoint."""
    layout = recipe.layout
    deep = layout.host if layout.deep == AUTO else layout.deep
    boundary = 0.5 if isinstance(layout.boundary, str) else layout.boundary
    return replace(recipe, layout=replace(layout, deep=deep, boundary=boundary))


def _why_first(best: Mapping[str, Any], num_donors: int) -> str:
    ties = f", tied with {' and '.join(best['tied_with'])}" if best["tied_with"] else ""
    parts = f"stability {best['stability']:.3f} x competence {best['competence']:.3f}"
    return f"Deep is '{best['donor']}', first of {num_donors} donors with {parts} = {best['score']:.3f}{ties}."
