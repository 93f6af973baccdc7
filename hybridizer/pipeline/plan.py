"""Checks a recipe without its weights, and plans it with its donors on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from hybridizer.checkpoint.hashing import hash_file
from hybridizer.core.errors import DonorError, InputError, PlanError, Problem, RecipeError
from hybridizer.core.progress import Monitor
from hybridizer.donors.donor import Donor
from hybridizer.donors.open import NotFetched, open_donors, scan_donors
from hybridizer.pipeline.faults import reporting_os_errors
from hybridizer.pipeline.layout import ResolvedLayout, assume_layout
from hybridizer.pipeline.scan_layers import assume_host
from hybridizer.pipeline.teacher import NAME as TEACHER
from hybridizer.pipeline.teacher import check_same_teachers, lacks_teacher, open_teachers
from hybridizer.pipeline.ways import WAYS, way_of
from hybridizer.plan.cost import Cost, StepTiming
from hybridizer.plan.dimensions import ObjectiveShape
from hybridizer.plan.finite import scan_planned
from hybridizer.plan.generated import place_generated
from hybridizer.plan.layout import lay_out
from hybridizer.plan.objective import count_shared, objective_shape
from hybridizer.plan.plan import Evidence, Plan, TrainPlan
from hybridizer.plan.stage_cost import count_steps, estimate_stages
from hybridizer.plan.stored import StoredPlan, is_stored_plan
from hybridizer.plan.training import check_packages, pin_texts, plan_with_training, settle_training
from hybridizer.recipe.load import RecipeSource, arm_settings, load_recipe
from hybridizer.recipe.mixer import EVIDENCE_PLACES
from hybridizer.recipe.models import Recipe, Train
from hybridizer.recipe.trial import NO_TRIAL
from hybridizer.splice.executors import find_executor


@dataclass(frozen=True)
class Checked:
    """The result of `check`. `plan` is None while a donor still has to be fetched, which `waiting` names."""

    recipe: Recipe
    plan: Plan | None
    waiting: tuple[str, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is allowed and may still be a mistake; without a plan what the recipe alone shows."""
        return self.plan.warnings if self.plan else self.recipe.warnings


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
    plan = _plan_assumed(assumed, donors, ready, monitor, deep)
    if plan is None:
        return Checked(recipe, None, (TEACHER,))
    _check_arms(path, overrides, recipe, donors, monitor)
    return Checked(recipe, plan, ())


def _plan_assumed(
    assumed: Recipe, donors: Mapping[str, Donor | NotFetched], ready: Mapping[str, Donor], monitor: Monitor, deep: bool
) -> Plan | None:
    """The plan with open choices filled in without a weight; None where a teacher has not been fetched."""
    assumed = assume_layout(assumed, {name: donor.structure.num_layers for name, donor in ready.items()})
    assumed, _ = settle_training(assumed, ready)
    teachers = open_teachers(assumed, donors, monitor, fetch=deep, fingerprint=False)
    if lacks_teacher(assumed, teachers):
        return None
    return plan_with_training(assumed, ready, Evidence(), teachers, pin=False)


def _check_arms(
    path: RecipeSource,
    overrides: tuple[str, ...],
    recipe: Recipe,
    donors: Mapping[str, Donor | NotFetched],
    monitor: Monitor,
) -> None:
    """Plan each arm that the recipe names, with the first of its learning rates and without a weight.

    Raises RecipeError with all problems of all arms, each at the arm's line. A donor that an arm alone names, and that
    is not here, is left to the trial.
    """
    problems: list[Problem] = []
    for arm in recipe.trial.arms or () if recipe.trial else ():
        where = recipe.locate(("trial", "arms", arm.name))
        try:
            made = load_recipe(path, (*overrides, f"trial={NO_TRIAL}", *arm_settings(recipe, arm)[0]))
            own = donors
            if made.donors != recipe.donors:
                own = open_donors(made, monitor, fetch=False, fingerprint=False)
            ready = {name: donor for name, donor in own.items() if isinstance(donor, Donor)}
            if len(ready) == len(own):
                _plan_assumed(assume_host(made), own, ready, monitor, deep=False)
        except (RecipeError, PlanError, DonorError) as error:
            problems += [Problem(where, f"arm '{arm.name}': {_inner(p)}{p.what}", p.fix) for p in error.problems]
    if problems:
        raise RecipeError(*dict.fromkeys(problems))


def _inner(problem: Problem) -> str:
    return f"{problem.where.removeprefix('--set ')}: " if problem.where else ""


@dataclass(frozen=True)
class Planned:
    """A recipe with every choice made, its plan, its donors, and the teacher of each stage that has one."""

    resolved: ResolvedLayout
    plan: Plan
    donors: Mapping[str, Donor]
    teachers: tuple[Donor | None, ...] = ()

    def stages(self) -> Iterator[tuple[Train, TrainPlan, Donor | None]]:
        """The settings, the plan and the teacher of each stage, one for a training without stages; none for none."""
        train, plan = self.resolved.recipe.train, self.plan.train
        if train is not None and plan is not None:
            yield from zip(train.as_stages(), plan.as_stages(), self.teachers, strict=True)


Planner: TypeAlias = Callable[[RecipeSource, tuple[str, ...], Monitor], Planned]


@reporting_os_errors()
def plan_recipe(path: RecipeSource, overrides: tuple[str, ...], monitor: Monitor) -> Planned:
    """Plan a recipe, every donor and text pinned by content. Fetches, dequantises and traces donors if required."""
    recipe = _load(path, overrides)
    donors = _all(open_donors(recipe, monitor, fetch=True, fingerprint=True))
    resolved = WAYS[way_of(recipe)](pin_texts(recipe, donors), donors, monitor).settled(donors)
    teachers = open_teachers(resolved.recipe, donors, monitor, fetch=True, fingerprint=True)
    plan = plan_with_training(resolved.recipe, donors, resolved.evidence, teachers, pin=True)
    scan_planned(plan, donors)
    return Planned(resolved, plan, donors, teachers)


@reporting_os_errors()
def plan_from_configs(path: RecipeSource, overrides: tuple[str, ...], monitor: Monitor) -> Planned:
    """Plan a recipe whose donors may have no weights here: layers, parameters and cost, from each config.json.

    Only config and tokenizer files of hub donors are fetched, and no text is looked at beyond its existence. Choices
    that need weights are assumed, as `check` does. The plan has warnings about both; it cannot be built.
    """
    recipe = _load(path, overrides)
    donors = _all(open_donors(recipe, monitor, fetch=True, fingerprint=False, from_config=True))
    assumed = assume_layout(assume_host(recipe), {name: donor.structure.num_layers for name, donor in donors.items()})
    described = [name for name, donor in donors.items() if donor.from_config]
    warnings = [f"'{name}' is planned from its config.json: its weights were not read" for name in described]
    if recipe.layout.needs_trace or recipe.layout.candidates is not None:
        warnings.append("the layout is assumed: choosing donors or the boundary takes traces, which need weights")
    swap = recipe.layout.swap
    if swap is not None and swap.count and swap.place in EVIDENCE_PLACES:
        warnings.append(f"the swapped layers are assumed to be spread evenly: `place: {swap.place}` needs weights")
    assumed, reasons = settle_training(assumed, donors)
    evidence = Evidence(reasons, (*warnings, "this plan shows sizes and cost; it cannot be built"))
    teachers = open_teachers(assumed, donors, monitor, fetch=True, fingerprint=False)
    plan = plan_with_training(assumed, donors, evidence, teachers, pin=False)
    return Planned(ResolvedLayout(assumed, evidence), plan, donors, teachers)


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
    teachers = open_teachers(stored.recipe, donors, monitor, fetch=True, fingerprint=True)
    check_same_teachers(teachers, plan, where)
    resolved = ResolvedLayout(place_generated(stored.recipe, donors), plan.evidence)
    return Planned(resolved, plan, donors, teachers)


def estimate_training_cost(planned: Planned, device: str) -> Cost | None:
    """What the training that was planned will cost on a `device` of that kind (cpu or cuda); None where nothing trains.

    No weight is read; torch is imported only for a CUDA device, whose capabilities it reports.
    """
    train, plan = planned.resolved.recipe.train, planned.plan
    if train is None or plan.train is None:
        return None
    return estimate_stages(plan, train, plan.train.boundary, device, list(_objectives(planned)))


def _objectives(planned: Planned) -> Iterator[ObjectiveShape | None]:
    """What the objective of each stage adds to its steps."""
    before: list[TrainPlan] = []
    for stage, staged, teacher in planned.stages():
        before.append(staged)
        shared = 0
        if teacher is not None and stage.frozen_dtype == "keep":
            shared = count_shared(planned.plan, before, teacher)
        yield objective_shape(stage, staged.settings, teacher, shared)


def estimate_time(planned: Planned, device: str) -> StepTiming | None:
    """How long that training will take here, from a few real steps on random weights; None where nothing trains."""
    train, plan = planned.resolved.recipe.train, planned.plan
    if train is None or plan.train is None:
        return None
    from hybridizer.train.timing import expect_time

    timed = [
        expect_time(
            replace(plan, train=staged),
            stage,
            plan.train.boundary,
            device,
            num_steps=count_steps(stage),
            teacher=teacher,
        )
        for stage, staged, teacher in planned.stages()
    ]
    if train.stages is None:
        return timed[0]
    largest, seconds = max(timed, key=lambda one: one.measured_peak_bytes), sum(one.run_seconds for one in timed)
    steps = sum(count_steps(stage) for stage in train.as_stages())
    rates = sum(stage.tokens for stage in train.as_stages()) / seconds
    return replace(largest, step_seconds=seconds / steps, run_seconds=seconds, tokens_per_second=rates)


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
