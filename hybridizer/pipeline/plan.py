"""Checks a recipe without its weights, and plans it with its donors on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hybridizer.checkpoint.hashing import hash_file
from hybridizer.core.errors import DonorError, InputError, Problem
from hybridizer.core.progress import Monitor
from hybridizer.donors.donor import Donor
from hybridizer.donors.open import NotFetched, open_donors, scan_donors
from hybridizer.pipeline.faults import reporting_os_errors
from hybridizer.pipeline.scan import scan_planned
from hybridizer.pipeline.scan_layers import assume_host, choose_layers
from hybridizer.plan.cost import Cost, StepTiming, estimate_cost
from hybridizer.plan.layout import lay_out
from hybridizer.plan.make import make_plan
from hybridizer.plan.plan import Evidence, Plan
from hybridizer.plan.stored import StoredPlan, is_stored_plan
from hybridizer.plan.training import check_packages, pin_datasets, plan_training
from hybridizer.recipe.layers import first_deep_layer
from hybridizer.recipe.load import RecipeSource, load_recipe
from hybridizer.recipe.models import AUTO, Layout, Recipe, Train
from hybridizer.splice.executors import find_executor

if TYPE_CHECKING:
    from hybridizer.trace.ranking import RankedDonor
    from hybridizer.trace.record import TraceRun


@dataclass(frozen=True)
class Checked:
    """The result of `check`. `plan` is None while a donor still has to be fetched, which `waiting` names."""

    recipe: Recipe
    plan: Plan | None
    waiting: tuple[str, ...]


@reporting_os_errors()
def check(path: RecipeSource, overrides: tuple[str, ...], monitor: Monitor, *, deep: bool) -> Checked:
    """Check everything about a recipe that needs no weights; with `deep`, also scan the weights for NaN.

    Raises RecipeError, DonorError, CheckpointError or PlanError with all problems of the first stage that has any.
    """
    recipe = _load(path, overrides)
    assumed = assume_host(recipe)
    donors = open_donors(recipe, monitor, fetch=deep, fingerprint=False)
    ready = {name: donor for name, donor in donors.items() if isinstance(donor, Donor)}
    if len(ready) < len(donors):
        _check_ranges(assumed, donors)
        return Checked(recipe, None, tuple(sorted(donors.keys() - ready.keys())))
    if deep:
        scan_donors(ready, monitor)
    assumed = assume_layout(assumed, {name: donor.structure.num_layers for name, donor in ready.items()})
    return Checked(recipe, _plan(assumed, ready, Evidence(), pin=False), ())


@dataclass(frozen=True)
class Planned:
    """A recipe with every choice made, its plan, and its donors."""

    resolved: ResolvedLayout
    plan: Plan
    donors: Mapping[str, Donor]


@reporting_os_errors()
def plan_recipe(path: RecipeSource, overrides: tuple[str, ...], monitor: Monitor) -> Planned:
    """Plan a recipe, every donor and text pinned by content. Fetches, dequantises and traces donors if required."""
    recipe = _load(path, overrides)
    donors = _all(open_donors(recipe, monitor, fetch=True, fingerprint=True))
    recipe, reasons = choose_layers(pin_datasets(recipe), donors, monitor)
    resolved = resolve_layout(recipe, donors, monitor)
    if reasons:
        evidence = replace(resolved.evidence, reasons=(*reasons, *resolved.evidence.reasons))
        resolved = replace(resolved, evidence=evidence)
    plan = _plan(resolved.recipe, donors, resolved.evidence, pin=True)
    scan_planned(plan, donors)
    return Planned(resolved, plan, donors)


def _load(path: RecipeSource, overrides: tuple[str, ...]) -> Recipe:
    if isinstance(path, Path) and is_stored_plan(path):
        fix = f"Build it: hybridize build {path}"
        raise InputError(Problem(str(path), "a stored plan, where a recipe was expected.", fix))
    return load_recipe(path, overrides)


def open_plan(stored: StoredPlan, monitor: Monitor) -> Planned:
    """A stored plan with its donors, to be built unchanged: nothing is traced or chosen again, no text is read.

    Raises DonorError, with all of them at once, for donors that are missing or whose content is not what was planned,
    PlanError if the executor is unknown, and RecipeError for packages that its training needs.
    """
    plan, where = stored.plan, str(stored.path)
    find_executor(plan)
    check_packages(stored.recipe)
    # The pins are the plan's, so messages about them name the plan and not a line of a recipe.
    entries = tuple(replace(entry, fingerprint=None) for entry in stored.recipe.donors)
    donors = _all(open_donors(replace(stored.recipe, donors=entries), monitor, fetch=True, fingerprint=True))
    problems = []
    for name, pin in plan.donors.items():
        if donors[name].fingerprint != pin.fingerprint:
            found = f"planned with {pin.fingerprint}, {donors[name].folder} holds {donors[name].fingerprint}"
            what = f"the content of donor '{name}' changed after planning: {found}."
            problems.append(Problem(where, what, "Restore the donor, or plan again from the recipe."))
    files = donors[plan.host].tokenizer_files
    if not problems and plan.tokenizer_files != {name: hash_file(path) for name, path in files.items()}:
        what = f"the tokenizer files of host '{plan.host}' are not those that were planned."
        fix = "Another version of a package wrote them from the donor: plan again from the recipe."
        problems.append(Problem(where, what, fix))
    if problems:
        raise DonorError(*problems)
    return Planned(ResolvedLayout(stored.recipe, plan.evidence), plan, donors)


def _plan(recipe: Recipe, donors: Mapping[str, Donor], evidence: Evidence, *, pin: bool) -> Plan:
    plan = make_plan(recipe, donors, evidence)
    return plan_training(recipe, plan, donors[plan.host].structure, pin=pin)


def estimate_training_cost(planned: Planned, device: str) -> Cost | None:
    """What the training that was planned will cost on a `device` of that kind (cpu or cuda); None where nothing trains.

    No weight is read; torch is imported only for a CUDA device, whose capabilities it reports.
    """
    train, plan = planned.resolved.recipe.train, planned.plan
    return None if train is None or plan.train is None else estimate_cost(plan, train, plan.train.boundary, device)


def estimate_time(planned: Planned, device: str) -> StepTiming | None:
    """How long that training will take here, from a few real steps on random weights; None where nothing trains."""
    train, plan = planned.resolved.recipe.train, planned.plan
    if train is None or plan.train is None:
        return None
    from hybridizer.train.timing import expect_time

    return expect_time(plan, train, plan.train.boundary, device, num_steps=count_steps(train))


def count_steps(train: Train) -> int:
    """The optimizer steps that `tokens` take, or `max_steps` if that is fewer."""
    steps = -(-train.tokens // (train.seq_len * train.global_batch_size))
    return steps if train.max_steps is None else min(steps, train.max_steps)


def _check_ranges(recipe: Recipe, donors: Mapping[str, Donor | NotFetched]) -> None:
    """Check the requested layers, if every donor's depth is known."""
    depths = {name: d.structure.num_layers if isinstance(d, Donor) else d.num_layers for name, d in donors.items()}
    known = {name: depth for name, depth in depths.items() if depth is not None}
    if len(known) == len(depths):
        lay_out(assume_layout(recipe, known), known)


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

    With `deep: auto` the donor that ranks first is taken. A strategy becomes the layer that it chooses in the deep
    donor, and the shallow donor gives that many layers. A layer or a share of the depth is kept as it is, so that a
    trace never changes the model, and compared with the trace if there is one.
    """
    layout = recipe.layout
    if recipe.trace is None and not layout.needs_trace:
        return ResolvedLayout(replace(recipe, layout=_midpoint_as_share(layout)), Evidence())
    from hybridizer.trace.boundary import choose_boundary
    from hybridizer.trace.ranking import rank
    from hybridizer.trace.runs import request_from_section, trace

    request = request_from_section(recipe.trace, recipe.seed, recipe.folder)
    names = [layout.deep] if layout.deep not in (None, AUTO) and recipe.trace is None else list(donors)
    traces = {name: trace(donors[name], request, monitor) for name in names if name is not None}
    if layout.slices:
        return ResolvedLayout(recipe, Evidence(), tuple(traces.values()))
    reasons, ranking = [], None
    if layout.deep == AUTO:
        assert layout.boundary is not None
        ranking = rank(list(traces.values()), request.probes, layout.boundary, seed=recipe.seed)
        best = ranking.ranking[0]
        layout = replace(layout, deep=best.donor)
        reasons.append(_why_first(best, len(traces)))
    assert layout.deep is not None and layout.boundary is not None
    boundary = choose_boundary(layout.boundary, traces[layout.deep].record)
    layout = _midpoint_as_share(layout)
    if isinstance(layout.boundary, str):
        layout = replace(layout, boundary=boundary.layer)
    reasons.append(f"Boundary at layer {boundary.layer} of '{layout.deep}': {boundary.reason}")
    warnings = (boundary.warning,) if boundary.warning else ()
    evidence = Evidence(tuple(reasons), warnings, None if ranking is None else ranking.to_json())
    return ResolvedLayout(replace(recipe, layout=layout), evidence, tuple(traces.values()))


def assume_layout(recipe: Recipe, depths: Mapping[str, int]) -> Recipe:
    """The recipe with open choices filled in without a trace, for checks of everything else. `depths`: of the donors.

    Deep is the host; a strategy is a layer of the deep donor, as it will be in the plan, so that the depth is the same:
    the middle one, or the last that the shallow donor can reach.
    """
    layout = _midpoint_as_share(recipe.layout)
    deep = layout.host if layout.deep == AUTO else layout.deep
    boundary = layout.boundary
    if isinstance(boundary, str):
        assert deep is not None and layout.shallow is not None, "checked when the recipe was loaded"
        boundary = min(first_deep_layer(0.5, depths[deep]), max(1, depths[layout.shallow] - 1))
    return replace(recipe, layout=replace(layout, deep=deep, boundary=boundary))


def _midpoint_as_share(layout: Layout) -> Layout:
    return replace(layout, boundary=0.5) if layout.boundary == "midpoint" else layout


def _why_first(best: RankedDonor, num_donors: int) -> str:
    ties = f", tied with {' and '.join(best.tied_with)}" if best.tied_with else ""
    parts = f"stability {best.stability:.3f} x competence {best.competence:.3f}"
    return f"Deep is '{best.donor}', first of {num_donors} donors with {parts} = {best.score:.3f}{ties}."
