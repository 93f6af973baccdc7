"""`hybridize trial`: arms trained and measured, and their runs gathered into one record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridizer.core.errors import CheckpointError, InputError, Problem
from hybridizer.core.progress import Monitor
from hybridizer.core.records import content_hash, read_json, write_json
from hybridizer.evaluate.outcome import SET
from hybridizer.evaluate.trial import ArmEstimate, ArmRun, summarise
from hybridizer.evaluate.trial_record import (
    IN_DOMAIN,
    RECALL,
    RETENTION,
    TASK,
    ArmCost,
    ArmFigure,
    Outcome,
    Primary,
    RateScore,
    RunTimes,
    TrialArm,
    TrialPair,
    TrialRecord,
    TrialTimes,
)
from hybridizer.pipeline.donors import find_output_problems
from hybridizer.pipeline.faults import reporting_os_errors
from hybridizer.pipeline.trial_arm import ArmScores, choose_rate, drop_shared, read_arm, run_arm, selection_score
from hybridizer.pipeline.trial_plan import forecast
from hybridizer.pipeline.trial_sets import TrialSets, open_trial_sets
from hybridizer.pipeline.trial_setup import TrialArmSetup, TrialSetup, set_up_trial
from hybridizer.recipe.load import RecipeSource
from hybridizer.train.folder import RECORD, read_curve, read_log


@dataclass(frozen=True)
class TrialDone:
    """A gathered trial with its folder; `record` and `times` are None where only one arm was run.

    `curves` has arm, seed and rows of every reported run that measured held-out text while it trained.
    """

    folder: Path
    record: TrialRecord | None
    times: TrialTimes | None
    curves: tuple[tuple[str, int, tuple[Mapping[str, Any], ...]], ...] = ()


def run_trial(
    source: RecipeSource,
    overrides: tuple[str, ...],
    runs: Path | None,
    monitor: Monitor,
    *,
    arm: str | None = None,
    gather: bool = False,
    json_out: Path | None = None,
    plot: Path | None = None,
) -> TrialDone:
    """Run the arms of a recipe's trial, all or the one called `arm`, and gather them; with `gather` only that.

    Whatever is finished is not done again: the same command resumes a trial that was stopped. trial.json and
    trial_times.json are in `runs`/<name>. Raises InputError for a trial that cannot be planned, and with `gather` for
    one that is not finished; before any work for `json_out` and `plot` that cannot be written. Raises OutputError for
    an arm that another process runs.
    """
    problems = list(find_output_problems(json_out, plot))
    if arm is not None and (gather or plot is not None):
        option = "--gather" if gather else "--plot"
        what = "one arm is run, or the trial is gathered from all of them."
        problems.append(Problem(f"--arm with {option}", what, "Run all arms first, each by --arm, then --gather."))
    if problems:
        raise InputError(*problems)
    setup = set_up_trial(source, overrides, runs, monitor)
    chosen = setup.arms if arm is None else (setup.arm(arm),)
    with reporting_os_errors(setup.folder.path):
        _note_unused(setup, monitor)
        sets = open_trial_sets(setup, monitor)
        if not gather:
            monitor.note(forecast(setup, sets, monitor).sentence)
            for one in chosen:
                run_arm(setup, sets, one, monitor)
        if arm is not None:
            return TrialDone(setup.folder.path, None, None)
        return _gather(setup, sets, monitor)


def _note_unused(setup: TrialSetup, monitor: Monitor) -> None:
    evaluate = setup.recipe.evaluate
    for key, given in (("prompts", evaluate and evaluate.prompts), ("gate", evaluate and evaluate.gate)):
        if given:
            monitor.note(f"evaluate.{key} has no effect in a trial; `build` uses it")


def _gather(setup: TrialSetup, sets: TrialSets, monitor: Monitor) -> TrialDone:
    found, missing = {}, []
    for arm in setup.arms:
        scores, of_arm = read_arm(setup, sets, arm, monitor)
        missing += of_arm
        if scores is not None:
            found[arm.name] = scores
    if missing:
        count = "1 run is" if len(missing) == 1 else f"{len(missing)} runs are"
        what = f"{count} not finished: {'; '.join(missing[:6])}{' ...' if len(missing) > 6 else ''}."
        fix = "Run `hybridize trial RECIPE`, or --arm NAME for each arm, and gather again."
        raise InputError(Problem(str(setup.folder.path), what, fix))
    record, times = make_record(setup, sets, found, monitor), read_run_times(setup, found)
    _note_changed(setup.folder.record, record, monitor)
    write_json(setup.folder.times, times.to_json())
    write_json(setup.folder.record, record.to_json())
    if setup.trial.keep == "none":
        drop_shared(setup.folder)
    return TrialDone(setup.folder.path, record, times, tuple(_curves(setup, found)))


def _curves(
    setup: TrialSetup, found: Mapping[str, ArmScores]
) -> Iterator[tuple[str, int, tuple[Mapping[str, Any], ...]]]:
    for name, scores in found.items():
        for seed in setup.trial.seeds:
            if rows := read_curve(setup.folder.run(name, scores.lr, seed).training):
                yield name, seed, tuple(rows)


def make_record(setup: TrialSetup, sets: TrialSets, found: Mapping[str, ArmScores], monitor: Monitor) -> TrialRecord:
    """The record of finished arms: the same bytes for the same scores."""
    names = [arm.name for arm in setup.arms]
    runs = [ArmRun(arm, seed, scores.figures) for arm in names for seed, scores in found[arm].runs.items()]
    summary = summarise(runs, names, setup.primary)
    roles = _roles(found[names[0]], setup)
    first = runs[0].figures
    outcomes = tuple(Outcome(f.what, f.metric, roles[f.what], f.lower_is_better, f.chance) for f in first)
    arms = tuple(_arm(setup, arm, found[arm.name], summary.arms, monitor) for arm in setup.arms)
    pairs = tuple(
        TrialPair(p.a, p.b, p.what, p.metric, p.difference, p.difference_ci, p.p, p.p_holm, p.verdict, p.caveat)
        for p in summary.pairs
    )
    return TrialRecord(
        name=setup.recipe.name,
        hash=_trial_hash(setup, sets, monitor),
        primary=Primary(*setup.primary),
        detectable=None if summary.detectable is None else summary.detectable.difference,
        seeds=setup.trial.seeds,
        outcomes=outcomes,
        arms=arms,
        pairs=pairs,
        notes=tuple(_notes(found)),
    )


def read_run_times(setup: TrialSetup, found: Mapping[str, ArmScores]) -> TrialTimes:
    """What the logs of all runs say about seconds and memory; runs whose logs were deleted are left out."""
    times, device = [], ""
    for arm in setup.arms:
        scores = found[arm.name]
        first = setup.trial.seeds[0]
        runs = [(lr, first) for lr in arm.rates]
        runs += [(scores.lr, seed) for seed in setup.trial.seeds if seed != first]
        for lr, seed in runs:
            folder = setup.folder.run(arm.name, lr, seed).training
            if (folder / RECORD).is_file() and (lines := read_log(folder)):
                record = read_json(folder / RECORD)
                device = record["device"]
                peak = max(int(line.get("memory_bytes", 0)) for line in lines)
                times.append(RunTimes(arm.name, lr, seed, float(record["seconds"]), peak))
    return TrialTimes(device, tuple(times))


def _arm(
    setup: TrialSetup, arm: TrialArmSetup, scores: ArmScores, figures: Sequence[ArmEstimate], monitor: Monitor
) -> TrialArm:
    first = setup.trial.seeds[0]
    plans = [setup.planned(arm, scores.lr, seed, monitor).plan for seed in setup.trial.seeds]
    trained = plans[0].train_plan
    rates = tuple(
        RateScore(lr, selection_score(found), lr == choose_rate(scores.selection))
        for lr, found in scores.selection.items()
    )
    run = scores.runs[first]
    cost = setup.cost(arm, monitor, run.place[0])
    asked, flop = cost.asked, cost.mean_token_flops * run.tokens
    before = {(f.what, f.metric): f.value for f in scores.before.figures}
    return TrialArm(
        name=arm.name,
        overrides=arm.overrides,
        added=arm.added,
        frozen_layers=trained.frozen_layers,
        frozen_parts=trained.frozen_parts,
        seeds=setup.trial.seeds,
        lr=scores.lr,
        rates=rates,
        cost=ArmCost(asked.trained_parameters, asked.frozen_parameters, run.steps, run.tokens, flop, asked.peak_bytes),
        plan_hashes=tuple(plan.hash for plan in plans),
        figures=tuple(_figure(f, before) for f in figures if f.arm == arm.name),
    )


def _figure(figure: ArmEstimate, before: Mapping[tuple[str, str], float]) -> ArmFigure:
    values = tuple(value for _, value in figure.by_seed)
    was = before.get((figure.what, figure.metric))
    return ArmFigure(figure.what, figure.metric, figure.value, figure.value_ci, values, was, figure.caveat)


def _roles(scores: ArmScores, setup: TrialSetup) -> dict[str, str]:
    """What each text and task is: text of the training sources, other text, items, or a recall probe."""
    recall = {f"recall-{count}" for count in setup.trial.evaluate.recall}
    sources = {entry.name for entry in setup.train.data}
    roles = {}
    for outcome in next(iter(scores.runs.values())).outcomes:
        is_text = outcome.kind == SET
        text = IN_DOMAIN if outcome.name in sources else RETENTION
        roles[outcome.name] = text if is_text else RECALL if outcome.name in recall else TASK
    return roles


def _trial_hash(setup: TrialSetup, sets: TrialSets, monitor: Monitor) -> str:
    """A hash of what the trial is: its plans, learning rates, seeds, what is measured, and the primary outcome."""
    first = setup.trial.seeds[0]
    arms = {arm.name: [setup.planned(arm, lr, first, monitor).plan.hash for lr in arm.rates] for arm in setup.arms}
    measured = [sets.key("", reported=True), sets.key("", reported=False)]
    return content_hash([arms, setup.trial.seeds, measured, setup.primary])


def _notes(found: Mapping[str, ArmScores]) -> list[str]:
    places = sorted({" ".join(run.place) for scores in found.values() for run in scores.runs.values()})
    return [f"arms were measured on different devices: {', '.join(places)}"] if len(places) > 1 else []


def _note_changed(path: Path, record: TrialRecord, monitor: Monitor) -> None:
    """Say so where a trial with another declaration was finished here before."""
    if not path.is_file():
        return
    try:
        before = read_json(path)
    except CheckpointError:
        return
    if before.get("hash") != record.hash:
        primary = before.get("primary", {})
        was = f"{primary.get('what')} {primary.get('metric')}"
        monitor.note(f"{path}: replaces a trial of another declaration, whose primary outcome was {was}")
