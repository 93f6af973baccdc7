"""The order of the stages. A stage whose inputs have not changed is skipped, with a note."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridizer.checkpoint.header import read_header
from hybridizer.checkpoint.publish import check_free_space, lock
from hybridizer.checkpoint.reader import open_checkpoint
from hybridizer.core.errors import InputError, OutputError, Problem
from hybridizer.core.progress import Monitor, SilentMonitor
from hybridizer.core.records import write_json
from hybridizer.donors.open import scan_donors
from hybridizer.pipeline.amounts import training_bytes
from hybridizer.pipeline.faults import reporting_os_errors
from hybridizer.pipeline.fit import ensure_fitted
from hybridizer.pipeline.output import write_model
from hybridizer.pipeline.plan import Planned, estimate_training_cost, open_plan, plan_recipe
from hybridizer.pipeline.run import RunFolder, hold, write_held_records
from hybridizer.plan.manifest import FILE_NAME, Manifest, read_manifest
from hybridizer.plan.plan import Plan
from hybridizer.plan.stored import StoredPlan, is_stored_plan, read_stored_plan
from hybridizer.plan.training import check_texts
from hybridizer.recipe.load import RecipeSource, load_recipe
from hybridizer.recipe.models import Recipe
from hybridizer.splice.verify import Proof, verify
from hybridizer.train.folder import TRAINED, has_progress, read_curve, read_log
from hybridizer.train.run import Training, join_processes, open_runtime, train
from hybridizer.train.stages import train_in_stages
from hybridizer.train.training_record import TrainRecord, is_complete, read_training

if TYPE_CHECKING:
    from hybridizer.pipeline.evaluate import BeforeAfter
    from hybridizer.train.curve import CurveRequest
    from hybridizer.train.runtime import Runtime


@dataclass(frozen=True)
class Built:
    """A finished run: its folder, plan, manifest, the checks that passed, and what training changed.

    `curve` are the rows of its held-out curves, without the bits of single documents.
    """

    folder: Path
    plan: Plan
    manifest: Manifest
    proofs: tuple[Proof, ...]
    outcome: BeforeAfter | None = None
    curve: tuple[Mapping[str, Any], ...] = ()


def build(
    path: RecipeSource,
    overrides: tuple[str, ...],
    runs: Path | None,
    monitor: Monitor,
    *,
    replace: bool,
    deep: bool,
    load: bool,
    accept_changes: bool = False,
    draw: bool = True,
) -> Built | None:
    """The whole pipeline, from a recipe or a stored plan to a verified model in `runs`/<name>/model.

    A plan.json is built unchanged, in its own run's folder unless `runs` is given; for recipes that is runs/.
    A model that is there already and was built from the same plan is kept, and verified. One from another plan raises
    OutputError unless `replace`; it stays in place until the new one is complete. So does a finished stage of a
    training, with other settings than now. A training that was interrupted
    resumes from its last checkpoint, with another learning rate only if `accept_changes`. Where a launcher started
    several processes all of them train, the main one does the rest, and the others get None. A recipe's `trial` section
    has no effect, which is noted. With `draw` the loss curve is drawn into the run's folder.
    """
    stored = _read_plan(path, overrides) if isinstance(path, Path) and is_stored_plan(path) else None
    recipe = stored.recipe if stored else load_recipe(path, overrides)
    run = RunFolder((runs or _default_runs(stored)) / recipe.name)
    runtime = join_processes(recipe, run.path.parent)
    main = runtime is None or runtime.is_main
    monitor = monitor if main else SilentMonitor()  # notes that hold for all processes are printed once
    if recipe.trial is not None:
        monitor.note("the recipe is built as it is; its arms are run by `hybridize trial`")
    with reporting_os_errors(run.path), hold(run) if main else nullcontext():
        with runtime.main_first() if runtime else nullcontext():
            planned = open_plan(stored, monitor) if stored else plan_recipe(path, overrides, monitor)
            if deep:
                scan_donors(planned.donors, monitor)
            built, may_replace = _is_built(run.model, planned.plan, replace), replace
            if built and _must_resume(run.model, planned.resolved.recipe, monitor):
                built, replace = False, True  # the model is replaced by one that was trained further
            if main:
                _prepare(planned, run, monitor, built=built, load=load)
        if runtime is not None:
            _check_same_plan(runtime, planned.plan)
        record = None
        if planned.plan.train is not None and not built:
            with lock(run.training) if main else nullcontext():
                record = _train(planned, run, runtime, monitor, accept_changes, may_replace)
        if not main:
            return None
        if record is not None and draw:
            _draw_loss_curve(run)
        manifest, proofs = _finish(planned, run, monitor, record, built=built, replace=replace, load=load)
        outcome = _evaluate(planned, run, monitor) if planned.plan.train is not None and load else None
        return Built(run.path, planned.plan, manifest, proofs, outcome, _curve_points(run))


def _prepare(planned: Planned, run: RunFolder, monitor: Monitor, *, built: bool, load: bool) -> None:
    """Do what one process does before training: check texts, splice the model that trains, write the records."""
    if built:
        monitor.note(f"model: unchanged, {run.model} was built from this plan")
    if planned.plan.train is not None and (load or not built):
        _generate(planned, monitor)
    if planned.plan.train is not None and not built:
        _check_before_splice(planned, run, monitor)
    if planned.plan.train is not None and (load or not built):
        _splice_for_training(planned, run, monitor, load=load)
    write_held_records(run, planned)


def _finish(
    planned: Planned, run: RunFolder, monitor: Monitor, record: TrainRecord | None, *, built: bool, replace: bool,
    load: bool,
) -> tuple[Manifest, tuple[Proof, ...]]:  # fmt: skip
    """Write and publish the model, or verify the one that is there; the run's folder gets a copy of its manifest."""
    if built:
        manifest, proofs = verify(run.model, monitor, find_donor=planned.donors.get, load=load)
    else:
        ensure_fitted(planned, monitor)
        trained = read_header(run.training / TRAINED).tensors if record else None
        manifest, proofs = write_model(
            planned.plan, planned.donors, run.model, monitor, replace=replace, load=load, record=record, trained=trained
        )
    write_json(run.manifest, manifest.to_json())
    return manifest, proofs


def _evaluate(planned: Planned, run: RunFolder, monitor: Monitor) -> BeforeAfter:
    from hybridizer.pipeline.evaluate import evaluate_run  # loads numpy, which a build without training does not need

    return evaluate_run(planned, run, monitor)


def _draw_loss_curve(run: RunFolder) -> None:
    """Draw the picture of the training in the run's folder, from its log."""
    from hybridizer.report.plots import write_figure
    from hybridizer.report.training_plot import draw_training

    if lines := read_log(run.training):
        write_figure(draw_training(lines, run.path.name, read_curve(run.training)), run.loss_curve)


def _curve_points(run: RunFolder) -> tuple[Mapping[str, Any], ...]:
    """The rows of the run's held-out curves by step, without what they hold of single documents."""
    rows = sorted(read_curve(run.training), key=lambda row: int(row["step"]))
    return tuple({key: value for key, value in row.items() if key not in ("bits", "num_bytes")} for row in rows)


def _generate(planned: Planned, monitor: Monitor) -> None:
    from hybridizer.pipeline.texts import generate_texts  # loads numpy, too

    generate_texts(planned, monitor)


def _read_plan(path: Path, overrides: tuple[str, ...]) -> StoredPlan:
    if overrides:
        what = f"a stored plan is built as it is; --set {overrides[0]} would change it."
        raise InputError(Problem(str(path), what, "Override keys of the recipe, and plan again."))
    return read_stored_plan(path)


def _default_runs(stored: StoredPlan | None) -> Path:
    """Where runs are: the folder that holds the run of a stored plan, unless its plan.json was taken out of there."""
    folder = stored.path.absolute().parent if stored else None
    return folder.parent if stored and folder and folder.name == stored.plan.name else Path("runs")


def _check_same_plan(runtime: Runtime, plan: Plan) -> None:
    """Return if every process planned the same: a branch or a text may change between their plans."""
    hashes = runtime.all_gather(plan.hash)
    if len(set(hashes)) > 1:
        found = ", ".join(f"{hash_[:19]}... by process {rank}" for rank, hash_ in enumerate(hashes))
        fix = "A donor, a text or a branch of the hub changed, or the processes see different files: start again."
        raise InputError(Problem(plan.name, f"the processes made different plans: {found}.", fix))


def _check_before_splice(planned: Planned, run: RunFolder, monitor: Monitor) -> None:
    """Tokenise every text and check prompts, before gigabytes are written that training could not use."""
    from hybridizer.pipeline.curve import few_documents, open_curve
    from hybridizer.pipeline.evaluate import check_prompts, read_gate
    from hybridizer.pipeline.texts import tokenise_texts

    if _finished_training(planned, run) is not None:
        return
    recipe, host = planned.resolved.recipe, planned.donors[planned.plan.host]
    read_gate(recipe)
    check_prompts(recipe, host)
    tokenise_texts(planned, monitor)
    if curve := open_curve(recipe, host.folder, "remote_code" in host.allow, SilentMonitor()):
        for name in few_documents(curve):
            monitor.note(f"warning: {name} has too few documents for `retention` to be judged by it")


def _splice_for_training(planned: Planned, run: RunFolder, monitor: Monitor, *, load: bool) -> None:
    """Write the model that training starts from, unless it is there."""
    plan, folder = planned.plan.spliced, run.spliced
    if (folder / FILE_NAME).is_file() and read_manifest(folder).plan_hash == plan.hash:
        monitor.note(f"splice: unchanged, {folder} was spliced from this plan")
        return
    if folder.is_dir() and has_progress(run.training):
        what = "a training of another spliced model has checkpoints here, which would be lost."
        fix = "Give the recipe another name, or remove the folder training/ to start again."
        raise InputError(Problem(str(run.training), what, fix))
    ensure_fitted(planned, monitor)
    write_model(plan, planned.donors, folder, monitor, replace=True, load=load)


def _finished_training(planned: Planned, run: RunFolder) -> TrainRecord | None:
    """The record of this plan's training, if it went as far as the recipe asks; None while there is more to train."""
    recipe, record = planned.resolved.recipe, read_training(run.training, planned.plan)
    complete = record is not None and is_complete(record.values(), recipe.train_section, recipe.evaluate)
    return record if complete else None


def _train(
    planned: Planned,
    run: RunFolder,
    runtime: Runtime | None,
    monitor: Monitor,
    accept_changes: bool,
    replace_finished: bool,
) -> TrainRecord:
    """Train the spliced model, or read the finished training: a run may be killed between training and export."""
    recipe = planned.resolved.recipe
    if record := _finished_training(planned, run):
        monitor.note(f"train: unchanged, {run.training} holds the result of this plan")
        return record
    if not run.training.exists():
        _check_room(planned, run)
    runtime = runtime or open_runtime(recipe, run.path)
    check_texts(recipe, planned.plan)
    with runtime.main_first():
        curve = _open_curve(planned, run, monitor)
    training = Training(planned.plan, recipe, run.spliced, run.training, runtime, monitor, planned.teachers, curve)
    if recipe.train_section.stages is not None:
        return train_in_stages(training, accept_changes=accept_changes, replace_finished=replace_finished)
    return train(training, accept_changes=accept_changes)


def _open_curve(planned: Planned, run: RunFolder, monitor: Monitor) -> CurveRequest | None:
    from hybridizer.pipeline.curve import open_curve

    code = "remote_code" in planned.donors[planned.plan.host].allow
    return open_curve(planned.resolved.recipe, run.spliced, code, monitor)


def _check_room(planned: Planned, run: RunFolder) -> None:
    plan, cost = planned.plan, estimate_training_cost(planned, "cpu")
    assert cost is not None, "called for plans that train"
    spliced = sum(entry.num_bytes for entry in open_checkpoint(run.spliced).tensors.values())
    check_free_space(run.path, training_bytes(plan, cost, spliced, planned.resolved.recipe.evaluate))


def _must_resume(model: Path, recipe: Recipe, monitor: Monitor) -> bool:
    """Whether the training of a built model was stopped by a limit that the recipe has raised since."""
    record = read_manifest(model).training
    if record is None or recipe.train is None or is_complete(record, recipe.train, recipe.evaluate):
        return False
    limit = "the retention limit" if record["stopped_by"] == "forgetting" else f"max_{record['stopped_by']}"
    monitor.note(f"model: its training stopped at step {record['steps']} by {limit}, which has changed")
    return True


def _is_built(model: Path, plan: Plan, replace: bool) -> bool:
    if not (model / FILE_NAME).is_file():
        return False
    built = read_manifest(model)
    if built.plan_hash == plan.hash:
        return True
    if replace:
        return False
    what = f"a model of another plan is here ({built.plan_hash[:19]}..., this one is {plan.hash[:19]}...)."
    raise OutputError(
        Problem(str(model), what, "Give the recipe another name, or pass --replace to lose the old model.")
    )
