"""One arm of a trial: trained with every learning rate, then with every seed, measured, and its models deleted."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hybridizer.checkpoint.publish import MANIFEST_NAME, lock
from hybridizer.core.errors import CheckpointError, OutputError, Problem
from hybridizer.core.files import hidden_sibling, new_folder
from hybridizer.core.progress import Monitor
from hybridizer.core.records import read_json
from hybridizer.evaluate.trial_scores import TrialScores, read_scores_of, write_scores
from hybridizer.pipeline.build import build
from hybridizer.pipeline.evaluate import content_of
from hybridizer.pipeline.fit import ensure_fitted
from hybridizer.pipeline.output import write_model
from hybridizer.pipeline.plan import Planned
from hybridizer.pipeline.run import RunFolder
from hybridizer.pipeline.trial_sets import TrialSets, make_candidate
from hybridizer.pipeline.trial_setup import TrialArmSetup, TrialFolder, TrialSetup
from hybridizer.plan.manifest import read_manifest
from hybridizer.plan.plan import Plan
from hybridizer.train.folder import CHECKPOINTS, MASTERS, TRAINED

SELECTION_FILE, REPORTED_FILE = "selection.json", "reported.json"


@dataclass(frozen=True)
class ArmScores:
    """A finished arm: the selection scores of each learning rate, and the reported ones of each seed.

    `lr` is the learning rate that was chosen; `before` is the model that the arm was trained from.
    """

    selection: Mapping[float, TrialScores]
    lr: float
    runs: Mapping[int, TrialScores]
    before: TrialScores


def selection_score(scores: TrialScores) -> float:
    """Bits per byte over the selection halves of all training sources together."""
    bits = sum(sum(figure.values) for figure in scores.figures)
    return bits / sum(sum(figure.sizes) for figure in scores.figures)


def choose_rate(selection: Mapping[float, TrialScores]) -> float:
    """The learning rate with the fewest bits per byte; of equal ones the smallest."""
    return min(selection, key=lambda lr: (selection_score(selection[lr]), lr))


def run_arm(setup: TrialSetup, sets: TrialSets, arm: TrialArmSetup, monitor: Monitor) -> ArmScores:
    """Do what is missing of `arm`. What was trained and measured before is read from its folder.

    Raises OutputError while another process runs this arm, and what building and measuring raise.
    """
    folder = setup.folder.arm(arm.name)
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder):
        work = _ArmWork(setup, sets, arm, monitor)
        first = setup.trial.seeds[0]
        before = work.before()
        selection = {lr: work.scores(lr, first, reported=False) for lr in arm.rates}
        lr = choose_rate(selection)
        if len(arm.rates) > 1:
            shown = ", ".join(f"{rate:g}: {selection_score(scores):.4f}" for rate, scores in selection.items())
            monitor.note(f"arm {arm.name}: learning rate {lr:g} of {shown} bits per byte")
        runs = {seed: work.scores(lr, seed, reported=True) for seed in setup.trial.seeds}
        work.drop_rates()
        return ArmScores(selection, lr, runs, before)


def read_arm(
    setup: TrialSetup, sets: TrialSets, arm: TrialArmSetup, monitor: Monitor
) -> tuple[ArmScores | None, list[str]]:
    """The arm as it is on disk, or None and the names of what is missing. Nothing is trained or measured."""
    work = _ArmWork(setup, sets, arm, monitor)
    first = setup.trial.seeds[0]
    selection = {lr: work.stored(lr, first, reported=False) for lr in arm.rates}
    missing = [f"arm '{arm.name}', lr {lr:g}, seed {first}" for lr, scores in selection.items() if scores is None]
    if missing:
        return None, missing
    chosen = {lr: scores for lr, scores in selection.items() if scores is not None}
    lr = choose_rate(chosen)
    runs = {seed: work.stored(lr, seed, reported=True) for seed in setup.trial.seeds}
    missing = [f"arm '{arm.name}', lr {lr:g}, seed {seed}" for seed, scores in runs.items() if scores is None]
    before = read_scores_of(setup.folder.before(arm.name), work.before_key(), monitor)
    if before is None and not missing:
        missing = [f"arm '{arm.name}', before training"]
    if missing or before is None:
        return None, missing
    return ArmScores(chosen, lr, {seed: scores for seed, scores in runs.items() if scores}, before), []


class _ArmWork:
    """The runs of one arm, whose folder the caller holds."""

    def __init__(self, setup: TrialSetup, sets: TrialSets, arm: TrialArmSetup, monitor: Monitor) -> None:
        self._setup, self._sets, self._arm, self._monitor = setup, sets, arm, monitor

    def stored(self, lr: float, seed: int, *, reported: bool) -> TrialScores | None:
        """The scores of a run if they are on disk."""
        key = self._sets.key(self._planned(lr, seed).plan.hash, reported=reported)
        return read_scores_of(self._file(lr, seed, reported), key, self._monitor)

    def scores(self, lr: float, seed: int, *, reported: bool) -> TrialScores:
        """The scores of a run, which is trained and measured if that was not done before."""
        run, found = self._run(lr, seed), self.stored(lr, seed, reported=reported)
        label = f"arm {self._arm.name}, lr {lr:g}, seed {seed}"
        if found is None:
            self._monitor.note(f"{label}: {'measure' if reported else 'choose a learning rate'}")
            planned = self._planned(lr, seed)
            self._build(run, planned, lr, seed)
            manifest = read_manifest(run.model)
            assert manifest.training is not None, "a trial trains"
            candidate = make_candidate(self._setup, label, run.model, content_of(run.model), self._monitor)
            outcomes = self._sets.measure(candidate, self._monitor, reported=reported)
            key = self._sets.key(planned.plan.hash, reported=reported)
            about = (manifest.training["steps"], manifest.training["tokens"], candidate.place)
            found = TrialScores(key, planned.plan.hash, *about, outcomes)
            write_scores(self._file(lr, seed, reported), found)
        if reported and self._setup.trial.keep == "none" and seed != self._setup.trial.seeds[0]:
            drop_weights(run)
        return found

    def before(self) -> TrialScores:
        """The reported scores of the model that the arm is trained from, measured once."""
        path, key = self._setup.folder.before(self._arm.name), self.before_key()
        if found := read_scores_of(path, key, self._monitor):
            return found
        planned = self._first()
        folder = self._splice(planned)
        candidate = make_candidate(self._setup, "before training", folder, content_of(folder), self._monitor)
        outcomes = self._sets.measure(candidate, self._monitor, reported=True)
        found = TrialScores(key, planned.plan.spliced.hash, 0, 0, candidate.place, outcomes)
        write_scores(path, found)
        return found

    def before_key(self) -> str:
        """The key of the scores before training."""
        return self._sets.key(self._first().plan.spliced.hash, reported=True)

    def drop_rates(self) -> None:
        """Delete the models of the first seed: all learning rates are measured, and one of them is reported."""
        if self._setup.trial.keep == "none":
            for lr in self._arm.rates:
                drop_weights(self._run(lr, self._setup.trial.seeds[0]))

    def _first(self) -> Planned:
        return self._planned(next(iter(self._arm.rates)), self._setup.trial.seeds[0])

    def _planned(self, lr: float, seed: int) -> Planned:
        return self._setup.planned(self._arm, lr, seed, self._monitor)

    def _run(self, lr: float, seed: int) -> RunFolder:
        return self._setup.folder.run(self._arm.name, lr, seed)

    def _file(self, lr: float, seed: int, reported: bool) -> Path:
        return self._run(lr, seed).path / (REPORTED_FILE if reported else SELECTION_FILE)

    def _splice(self, planned: Planned) -> Path:
        """The model that a run starts from, written once for all arms whose plans begin with the same one."""
        plan = planned.plan.spliced
        shared = self._setup.folder.spliced / plan.hash.removeprefix("sha256:")[:16]
        if not _holds(shared, plan):
            own = self._setup.folder.arm(self._arm.name) / "spliced"  # of this process: no other one waits for it
            ensure_fitted(planned, self._monitor)
            write_model(plan, planned.donors, own, self._monitor, replace=True, load=False)
            _link_files(own, shared)
            _remove(own)
        return shared

    def _build(self, run: RunFolder, planned: Planned, lr: float, seed: int) -> None:
        """Train one run, unless its model is there."""
        _discard_other(run, planned.plan, self._setup.trial.keep, self._monitor)
        if not _holds(run.model, planned.plan) and not run.spliced.exists():
            _link_files(self._splice(planned), run.spliced)
        _begin_memory()
        overrides = self._setup.run_overrides(self._arm, lr, seed)
        options = {"replace": False, "deep": False, "load": False, "draw": False}
        build(self._setup.source, overrides, run.path.parent, self._monitor, **options)
        drop_training(run)


def drop_training(run: RunFolder) -> None:
    """Delete what a finished training needs no more: checkpoints, tensors and the model that it started from."""
    _remove(run.training / CHECKPOINTS)
    for name in (TRAINED, MASTERS):
        (run.training / name).unlink(missing_ok=True)
    _remove(run.spliced)


def drop_weights(run: RunFolder) -> None:
    """Delete everything of `run` that holds weights; its records stay."""
    drop_training(run)
    _remove(run.model)


def drop_shared(folder: TrialFolder) -> None:
    """Delete the models that arms started from, once all arms are finished."""
    if folder.spliced.is_dir():
        _remove(folder.spliced)


def _remove(folder: Path) -> None:
    """Delete `folder`, which is out of its name before the first file goes, and what a killed deletion left."""
    if folder.is_dir():
        folder.rename(hidden_sibling(folder))
    for left in folder.parent.glob(f".{folder.name}.*.partial"):
        shutil.rmtree(left)


def _holds(folder: Path, plan: Plan) -> bool:
    return (folder / MANIFEST_NAME).is_file() and read_manifest(folder).plan_hash == plan.hash


def _link_files(source: Path, folder: Path) -> None:
    """Make `folder` with the files of `source`, which takes no space; another process may do the same."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with new_folder(folder) as partial:
            for path in source.rglob("*"):
                target = partial / path.relative_to(source)
                if path.is_dir():
                    target.mkdir(parents=True, exist_ok=True)
                else:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.link(path, target)
    except OSError:
        if not (folder / MANIFEST_NAME).is_file():
            raise


def _discard_other(run: RunFolder, plan: Plan, keep: str, monitor: Monitor) -> None:
    """Empty the folder of a run that holds one of another plan, which an earlier version of the recipe made."""
    if not run.plan.is_file():
        return
    try:
        found = read_json(run.plan).get("hash")
    except CheckpointError:
        found = None
    if found == plan.hash:
        return
    if keep == "all" and run.model.is_dir():
        what = "this folder holds the model of another plan, and `trial.keep` is all."
        raise OutputError(Problem(str(run.path), what, "Move the folder away, or give the recipe another name."))
    monitor.note(f"{run.path}: the recipe has changed; this run starts again")
    for path in run.path.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _begin_memory() -> None:
    """Give back what earlier runs left and let the peak of this process begin again: the figure of a run is its own."""
    from hybridizer.evaluate.model import default_device
    from hybridizer.models.memory import forget_peak_, trim_heap

    gc.collect()  # a model has cycles
    trim_heap()
    forget_peak_(default_device())
