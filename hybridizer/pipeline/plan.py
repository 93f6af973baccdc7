"""What can be known before anything is built: a recipe checked without its weights, and planned with them at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hybridizer.core.progress import Monitor
from hybridizer.donors.donor import Donor
from hybridizer.donors.open import NotFetched, open_donors, scan_donors
from hybridizer.plan.cost import Cost, CostRequest, StepTiming, estimate_cost
from hybridizer.plan.freeze import asked_to_freeze
from hybridizer.plan.layout import lay_out
from hybridizer.plan.make import make_plan
from hybridizer.plan.plan import Evidence, Plan
from hybridizer.plan.training import pin_datasets, plan_training
from hybridizer.recipe.load import RecipeSource, load_recipe
from hybridizer.recipe.models import AUTO, Recipe

if TYPE_CHECKING:
    from hybridizer.trace.cache import TraceRun


@dataclass(frozen=True)
class Checked:
    """What `check` found good. `plan` is None while a donor still has to be fetched, which `waiting` names."""

    recipe: Recipe
    plan: Plan | None
    waiting: tuple[str, ...]


def check(path: RecipeSource, overrides: tuple[str, ...], monitor: Monitor, *, deep: bool) -> Checked:
    """Everything that can be known of a recipe without its weights; with `deep`, the weights are scanned for NaN too.

    Raises RecipeError, DonorError, CheckpointError or PlanError with all problems of the first stage that has any.
    """
    recipe = load_recipe(path, overrides)
    donors = open_donors(recipe, monitor, fetch=deep, fingerprint=False)
    ready = {name: donor for name, donor in donors.items() if isinstance(donor, Donor)}
    if len(ready) < len(donors):
        _check_ranges(recipe, donors)
        return Checked(recipe, None, tuple(sorted(donors.keys() - ready.keys())))
    if deep:
        scan_donors(ready, monitor)
    guessed = assume_layout(recipe)
    return Checked(recipe, _plan(guessed, ready, Evidence(), pin=False), ())


@dataclass(frozen=True)
class Planned:
    """A recipe with every choice made, its plan, and its donors."""

    resolved: ResolvedLayout
    plan: Plan
    donors: Mapping[str, Donor]


def plan_recipe(path: RecipeSource, overrides: tuple[str, ...], monitor: Monitor) -> Planned:
    """Plan a recipe, every donor and text pinned by content. Fetches, dequantises and traces donors where asked."""
    recipe = load_recipe(path, overrides)
    donors = _all(open_donors(recipe, monitor, fetch=True, fingerprint=True))
    resolved = resolve_layout(pin_datasets(recipe), donors, monitor)
    return Planned(resolved, _plan(resolved.recipe, donors, resolved.evidence, pin=True), donors)


def _plan(recipe: Recipe, donors: Mapping[str, Donor], evidence: Evidence, *, pin: bool) -> Plan:
    plan = make_plan(recipe, donors, evidence)
    return plan_training(recipe, plan, donors[plan.host].structure, pin=pin)


def estimate_training_cost(planned: Planned, device: str) -> Cost | None:
    """What the training that was planned will cost on a `device` of that kind (cpu or cuda); None where nothing trains.

    No weight is read, no torch is imported.
    """
    request = _cost_request(planned, device)
    return None if request is None else estimate_cost(planned.plan, request)


def estimate_time(planned: Planned, device: str) -> StepTiming | None:
    """How long that training will take here, from a few real steps on random weights; None where nothing trains."""
    recipe, request = planned.resolved.recipe, _cost_request(planned, device)
    if request is None or recipe.train is None:
        return None
    from hybridizer.train.run import loop_settings
    from hybridizer.train.timing import expect_time

    num_steps = -(-recipe.train.tokens // (recipe.train.seq_len * recipe.train.global_batch_size))
    if recipe.train.max_steps is not None:
        num_steps = min(num_steps, recipe.train.max_steps)
    settings = loop_settings(recipe.train, recipe.seed)
    return expect_time(planned.plan, request, settings, packed=recipe.train.packed, num_steps=num_steps)


def _cost_request(planned: Planned, device: str) -> CostRequest | None:
    train, plan = planned.resolved.recipe.train, planned.plan
    if train is None or plan.train is None:
        return None
    rows = train.micro_batch_size or train.global_batch_size
    return CostRequest(
        freeze=asked_to_freeze(train),
        boundary=plan.train.boundary,
        seq_len=train.seq_len,
        micro_batch_size=rows,
        batches_per_step=-(-train.global_batch_size // rows),
        precision=train.precision,
        optimizer=train.optimizer,
        gradient_checkpointing=train.gradient_checkpointing,
        device=device,
        lora=train.lora,
    )


def _check_ranges(recipe: Recipe, donors: Mapping[str, Donor | NotFetched]) -> None:
    """Check the layers that are asked for, where every donor's depth is known."""
    depths = {name: d.structure.num_layers if isinstance(d, Donor) else d.num_layers for name, d in donors.items()}
    known = {name: depth for name, depth in depths.items() if depth is not None}
    if len(known) == len(depths):
        lay_out(assume_layout(recipe), known)


def _all(donors: Mapping[str, Donor | NotFetched]) -> dict[str, Donor]:
    found = {name: donor for name, donor in donors.items() if isinstance(donor, Donor)}
    assert len(found) == len(donors), "donors that may be fetched are there afterwards"
    return found


@dataclass(frozen=True)
class ResolvedLayout:
    """A recipe whose layout is donors and numbers, the evidence for them, and the traces it rests on."""

    recipe: Recipe
    evidence: Evidence
    traces: tuple[TraceRun, ...] = ()


def resolve_layout(recipe: Recipe, donors: Mapping[str, Donor], monitor: Monitor) -> ResolvedLayout:
    """The recipe with every open choice made. Traces donors only where the recipe asks for traces or needs them.

    With `deep: auto` the donor that ranks first is taken; the boundary is read off the trace of the deep donor. A
    boundary that the recipe gives as a number is kept, and judged by the trace where there is one.
    """
    layout = recipe.layout
    if recipe.trace is None and not layout.needs_trace:
        fixed = 0.5 if layout.boundary == "midpoint" else layout.boundary
        return ResolvedLayout(replace(recipe, layout=replace(layout, boundary=fixed)), Evidence())
    from hybridizer.trace.donor import request_from_section, trace
    from hybridizer.trace.rank import choose, rank

    request = request_from_section(recipe.trace, recipe.seed, recipe.folder)
    names = [layout.deep] if layout.deep not in (None, AUTO) and recipe.trace is None else list(donors)
    traces = {name: trace(donors[name], request, monitor) for name in names if name is not None}
    if layout.slices:
        return ResolvedLayout(recipe, Evidence(), tuple(traces.values()))
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
    return ResolvedLayout(replace(recipe, layout=layout), evidence, tuple(traces.values()))


def assume_layout(recipe: Recipe) -> Recipe:
    """The recipe with open choices filled in without a trace, for checks of everything else: the host, the midpoint."""
    layout = recipe.layout
    deep = layout.host if layout.deep == AUTO else layout.deep
    boundary = 0.5 if isinstance(layout.boundary, str) else layout.boundary
    return replace(recipe, layout=replace(layout, deep=deep, boundary=boundary))


def _why_first(best: Mapping[str, Any], num_donors: int) -> str:
    ties = f", tied with {' and '.join(best['tied_with'])}" if best["tied_with"] else ""
    parts = f"stability {best['stability']:.3f} x competence {best['competence']:.3f}"
    return f"Deep is '{best['donor']}', first of {num_donors} donors with {parts} = {best['score']:.3f}{ties}."
