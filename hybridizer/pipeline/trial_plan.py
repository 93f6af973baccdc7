"""What a trial will cost and what it could tell, before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hybridizer.core.progress import Monitor
from hybridizer.pipeline.faults import reporting_os_errors
from hybridizer.pipeline.plan import Planned, estimate_time, plan_from_configs, plan_recipe
from hybridizer.pipeline.trial_arm import read_arm
from hybridizer.pipeline.trial_sets import TrialSets, open_trial_sets
from hybridizer.pipeline.trial_setup import TrialArmSetup, TrialSetup, set_up_trial
from hybridizer.recipe.load import RecipeSource

if TYPE_CHECKING:
    from hybridizer.evaluate.trial import ArmRun


@dataclass(frozen=True)
class ArmForecast:
    """One arm: its trainings, with learning rates to choose from, and the cost of all of them together.

    `peak_bytes` is of one training; `seconds` is None unless it was measured, and is without evaluation.
    """

    name: str
    rates: tuple[float, ...]
    runs: int
    trained_parameters: int
    frozen_parts: tuple[str, ...]
    tokens: int
    flop: float
    peak_bytes: int
    seconds: float | None


@dataclass(frozen=True)
class TrialForecast:
    """All arms, and the smallest difference in the primary outcome that the trial is likely to tell.

    `detectable` is found with probability `power` in a trial whose runs vary as `spread` says, by what finished arms
    show, or else as assumed; None where nothing is assumed for the metric, and for fewer than two seeds or groups.
    `num_groups` are those of the primary outcome.
    """

    name: str
    primary: tuple[str, str]
    seeds: tuple[int, ...]
    arms: tuple[ArmForecast, ...]
    num_groups: int
    detectable: float | None
    power: float | None
    spread: str | None
    device: str

    @property
    def sentence(self) -> str:
        """The trial in one line."""
        runs, tokens = sum(arm.runs for arm in self.arms), sum(arm.tokens for arm in self.arms)
        what = f"trial: {len(self.arms)} arms, {len(self.seeds)} seeds, {runs} trainings, {tokens:,} tokens"
        if self.detectable is None:
            return what
        primary = f"{self.primary[1]} of {self.primary[0]}"
        return f"{what}; differences from {self.detectable:.4f} in {primary} are likely to be told: {self.spread}"


@reporting_os_errors()
def plan_trial(
    source: RecipeSource,
    overrides: tuple[str, ...],
    runs: Path | None,
    monitor: Monitor,
    device: str,
    *,
    probe: bool,
    from_configs: bool = False,
    base: Planned | None = None,
) -> TrialForecast:
    """The forecast of a recipe's trial. Texts are tokenised, since the documents held out decide what can be told.

    `base` is the recipe itself, if it has been planned already.

    With `from_configs` neither weights nor texts are read, and what can be told is left open.
    """
    setup = set_up_trial(source, overrides, runs, monitor, plan_from_configs if from_configs else plan_recipe, base)
    sets = None if from_configs else open_trial_sets(setup, monitor)
    return forecast(setup, sets, monitor, device, probe=probe)


def forecast(
    setup: TrialSetup, sets: TrialSets | None, monitor: Monitor, device: str = "cpu", *, probe: bool = False
) -> TrialForecast:
    """What the trial will cost on a device of that kind; with `probe`, a few steps of each arm are timed here."""
    from hybridizer.evaluate.power import detectable_before
    from hybridizer.evaluate.trial import spread_so_far

    num_pairs = len(setup.arms) * (len(setup.arms) - 1) // 2
    num_groups, measured = 0, None
    if sets is not None:
        num_groups = sets.num_groups(setup.primary[0])
        measured = spread_so_far(_finished(setup, sets, monitor), [arm.name for arm in setup.arms], setup.primary)
    found = detectable_before(setup.primary[1], len(setup.trial.seeds), num_groups, num_pairs, measured)
    spread = None
    if found is not None:
        seeds, items = found.spread.by_seed, found.spread.by_group
        source = "assumed" if found.assumed else "measured on the runs that are there"
        spread = f"standard deviations of {seeds:.2g} over seeds and {items:.2g} over items, {source}"
    return TrialForecast(
        name=setup.recipe.name,
        primary=setup.primary,
        seeds=setup.trial.seeds,
        arms=tuple(_arm(setup, arm, monitor, device, probe) for arm in setup.arms),
        num_groups=num_groups,
        detectable=found.difference if found else None,
        power=found.power if found else None,
        spread=spread,
        device=device,
    )


def _finished(setup: TrialSetup, sets: TrialSets, monitor: Monitor) -> list[ArmRun]:
    """The runs of the arms that are finished."""
    from hybridizer.evaluate.trial import ArmRun

    arms = [(arm.name, read_arm(setup, sets, arm, monitor)[0]) for arm in setup.arms]
    return [ArmRun(name, seed, run.figures) for name, arm in arms if arm for seed, run in arm.runs.items()]


def _arm(setup: TrialSetup, arm: TrialArmSetup, monitor: Monitor, device: str, probe: bool) -> ArmForecast:
    planned = setup.planned(arm, next(iter(arm.rates)), setup.trial.seeds[0], monitor)
    cost, runs = setup.cost(arm, monitor, device), setup.num_runs(arm)
    asked = cost.asked
    tokens = runs * setup.steps * setup.train.seq_len * setup.train.global_batch_size
    timing = estimate_time(planned, device) if probe else None
    return ArmForecast(
        name=arm.name,
        rates=tuple(arm.rates),
        runs=runs,
        trained_parameters=asked.trained_parameters,
        frozen_parts=planned.plan.train_plan.frozen_parts,
        tokens=tokens,
        flop=tokens * cost.mean_token_flops,
        peak_bytes=asked.peak_bytes,
        seconds=None if timing is None else runs * timing.run_seconds,
    )
