"""A recipe with a `trial` section -> its arms, each checked and planned before the first of them runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybridizer.core.errors import DidYouMean, InputError, Problem, RecipeError
from hybridizer.core.progress import Monitor
from hybridizer.pipeline.plan import Planned, Planner, estimate_training_cost, plan_recipe
from hybridizer.pipeline.run import RunFolder
from hybridizer.plan.cost import Cost
from hybridizer.plan.stage_cost import count_steps
from hybridizer.recipe.fields import SIDES
from hybridizer.recipe.load import RecipeSource, arm_settings, load_recipe, trial_outcomes
from hybridizer.recipe.models import Recipe, Train, Trial
from hybridizer.recipe.sections import fill_in
from hybridizer.recipe.trial import NO_TRIAL, SHARED_IN_STAGES, Arm, choose_primary, fixed_parts, rates_of

LAST = 4  # the layers that the default arm last-4 trains
DEFAULT_RANK = 16


@dataclass(frozen=True)
class TrialFolder:
    """The paths of the trial in `path`, which is the folder of a run. The disk is not touched.

    `record` and `times` are the result, `spliced` holds models that arms start from, by their plans.
    """

    path: Path

    @property
    def record(self) -> Path:
        return self.path / "trial.json"

    @property
    def times(self) -> Path:
        return self.path / "trial_times.json"

    @property
    def spliced(self) -> Path:
        return self.path / "spliced"

    def arm(self, name: str) -> Path:
        """The folder of one arm."""
        return self.path / "arms" / name

    def before(self, name: str) -> Path:
        """The scores of the model that an arm is trained from."""
        return self.arm(name) / "before.json"

    def run(self, arm: str, lr: float, seed: int) -> RunFolder:
        """The folder of one run of an arm."""
        return RunFolder(self.arm(arm) / f"lr-{lr!r}" / f"seed-{seed}")


@dataclass(frozen=True)
class TrialArmSetup:
    """One arm: what the recipe changes in it, what the trial adds, and its `rates`, each with all overrides."""

    name: str
    overrides: Mapping[str, Any]
    added: Mapping[str, Any]
    rates: Mapping[float, tuple[str, ...]]


@dataclass(frozen=True)
class TrialSetup:
    """A trial with all its arms. `base` is the recipe itself, planned; `primary` is a text or task with a metric.

    `source` and `overrides` are the recipe as it was given. `planner` makes the plan of a run when it is asked
    for, once.
    """

    source: RecipeSource
    overrides: tuple[str, ...]
    base: Planned
    trial: Trial
    arms: tuple[TrialArmSetup, ...]
    primary: tuple[str, str]
    folder: TrialFolder
    planner: Planner = plan_recipe
    _plans: dict[tuple[str, float, int], Planned] = field(default_factory=dict, repr=False)

    @property
    def recipe(self) -> Recipe:
        """The recipe, with every choice made."""
        return self.base.resolved.recipe

    @property
    def train(self) -> Train:
        """The settings that all arms share, and those that they change."""
        return self.recipe.train_section

    def arm(self, name: str) -> TrialArmSetup:
        """The arm called `name`. Raises InputError where there is none."""
        found = {arm.name: arm for arm in self.arms}
        if name not in found:
            what = f"this trial has no arm '{name}'."
            raise InputError(Problem(f"--arm {name}", what, DidYouMean(name, found)))
        return found[name]

    def run_overrides(self, arm: TrialArmSetup, lr: float, seed: int) -> tuple[str, ...]:
        """What `--set` would get to build one run of `arm`; the run is named by its folder."""
        return (*self.overrides, f"trial={NO_TRIAL}", *arm.rates[lr], f"seed={seed}", f"name=seed-{seed}")

    def planned(self, arm: TrialArmSetup, lr: float, seed: int, monitor: Monitor) -> Planned:
        """The plan of one run. Raises what planning raises, at the line of the arm where a recipe is at fault."""
        key = (arm.name, lr, seed)
        if key not in self._plans:
            try:
                self._plans[key] = self.planner(self.source, self.run_overrides(arm, lr, seed), monitor)
            except RecipeError as error:
                where = self.recipe.locate(("trial", "arms", arm.name))
                raise RecipeError(
                    *(Problem(where, f"arm '{arm.name}': {p.where}: {p.what}", p.fix) for p in error.problems)
                ) from error
        return self._plans[key]

    def cost(self, arm: TrialArmSetup, monitor: Monitor, device: str) -> Cost:
        """The cost of one run of `arm`, per token and at the peak."""
        found = estimate_training_cost(self.planned(arm, next(iter(arm.rates)), self.trial.seeds[0], monitor), device)
        assert found is not None, "a trial trains"
        return found

    def num_runs(self, arm: TrialArmSetup) -> int:
        """Trainings of `arm`: the first seed with every learning rate, the others with the one that is chosen."""
        return len(arm.rates) + len(self.trial.seeds) - 1

    @property
    def steps(self) -> int:
        """Optimizer steps of one run."""
        return count_steps(self.train)


def set_up_trial(
    source: RecipeSource,
    overrides: tuple[str, ...],
    runs: Path | None,
    monitor: Monitor,
    planner: Planner = plan_recipe,
    base: Planned | None = None,
) -> TrialSetup:
    """The trial of a recipe, each arm planned with its first learning rate and seed by `planner`.

    `base` is the recipe itself, if `planner` has planned it already.

    Raises RecipeError for a recipe without a `trial` section and for arms that cannot be planned, InputError for arms
    that are the same training, or that do not share tokenizer and text.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        what = "a trial runs in one process."
        raise InputError(Problem("the trial", what, "Start `hybridize trial RECIPE --arm NAME` once for each arm."))
    recipe = load_recipe(source, overrides)
    if recipe.trial is None:
        fix = "Add `trial: {seeds: [0, 1, 2]}`, or give --set trial.seeds=[0,1,2]."
        raise RecipeError(Problem(str(recipe.path), "this recipe has no `trial` section.", fix))
    base = base or planner(source, overrides, monitor)
    train, trial = recipe.train_section, recipe.trial
    if not recipe.trial.arms:
        trial = fill_in(trial, arms=_default_arms(recipe, len(base.plan.layers)))
    with_arms = fill_in(recipe, trial=trial)
    parts = {"embedding": train.embedding, "final_norm": train.final_norm, "head": train.head}
    arms = tuple(
        TrialArmSetup(
            arm.name,
            dict(arm.overrides),
            fixed_parts(trial, arm, parts),
            dict(zip(rates_of(trial, arm, train.lr), arm_settings(with_arms, arm), strict=True)),
        )
        for arm in trial.arms or ()
    )
    primary = choose_primary(trial.primary, trial_outcomes(recipe))
    folder = TrialFolder((runs or Path("runs")) / recipe.name)
    setup = TrialSetup(source, overrides, base, trial, arms, primary, folder, planner)
    _check_arms(setup, monitor)
    return setup


def _default_arms(recipe: Recipe, num_layers: int) -> tuple[Arm, ...]:
    """deep, shallow, full, lora and last-4; without the first two for slices, which have no boundary."""
    sides = () if recipe.layout.slices else SIDES[:2]
    arms = [Arm(side, (("train.freeze", side),)) for side in sides]
    arms.append(Arm("full", (("train.freeze", "none"),)))
    arms.append(Arm("lora", (("train.freeze", "none"), ("train.lora.rank", DEFAULT_RANK))))
    if num_layers > LAST:
        arms.append(Arm(f"last-{LAST}", (("train.freeze", f"0..{num_layers - LAST - 1}"),)))
    return tuple(arms)


def _unshared(arm: Train, base: Train) -> str | None:
    """What the stages of an arm change of what all arms share with the recipe, or None."""
    for key in SHARED_IN_STAGES:
        ours, theirs = ({getattr(stage, key) for stage in train.as_stages()} for train in (arm, base))
        if ours != theirs:
            return f"sets `{key}` in its stages, and all arms of a trial share `train.{key}`."
    if arm.tokens != base.tokens:
        return f"trains on {arm.tokens:,} tokens in its stages, and all arms of a trial share the {base.tokens:,}."
    return None


def _check_arms(setup: TrialSetup, monitor: Monitor) -> None:
    if len(setup.arms) < 2:
        where = setup.recipe.locate(("trial", "arms"))
        raise RecipeError(Problem(where, "a trial of a single arm compares nothing.", "Give two arms or more."))
    seed = setup.trial.seeds[0]
    seen: dict[str, str] = {}
    for arm in setup.arms:
        planned = setup.planned(arm, next(iter(arm.rates)), seed, monitor)
        plan, where = planned.plan, setup.recipe.locate(("trial", "arms", arm.name))
        train = planned.resolved.recipe.train_section
        if difference := _unshared(train, setup.train):
            fix = "Give the stages of every arm the same tokens in sum, and such keys in the recipe alone."
            raise RecipeError(Problem(where, f"arm '{arm.name}' {difference}", fix))
        if plan.hash in seen:
            what = f"arms '{seen[plan.hash]}' and '{arm.name}' are the same training (plan {plan.hash[:19]}...)."
            raise RecipeError(Problem(where, what, "Delete one of them, or change what it overrides."))
        seen[plan.hash] = arm.name
        if plan.tokenizer_files != setup.base.plan.tokenizer_files:
            what = f"arm '{arm.name}' has another tokenizer, with which the text is cut into other tokens."
            raise RecipeError(Problem(where, what, "Compare arms whose host is the same donor."))
