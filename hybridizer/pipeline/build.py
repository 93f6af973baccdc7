"""The order of the stages. A stage whose inputs have not changed is skipped and says so."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hybridizer.checkpoint.header import read_header
from hybridizer.checkpoint.publish import begin_output, check_free_space, lock
from hybridizer.checkpoint.reader import open_checkpoint
from hybridizer.core.errors import InputError, OutputError, Problem
from hybridizer.core.progress import Monitor, SilentMonitor
from hybridizer.core.records import write_json
from hybridizer.donors.donor import Donor
from hybridizer.donors.open import check_unchanged, scan_donors
from hybridizer.pipeline.evaluate import BeforeAfter, evaluate_run
from hybridizer.pipeline.plan import Planned, estimate_training_cost, plan_recipe
from hybridizer.plan.manifest import FILE_NAME, Manifest, read_manifest
from hybridizer.plan.plan import Plan
from hybridizer.plan.training import check_texts
from hybridizer.recipe.load import RecipeSource, load_recipe
from hybridizer.splice.copy import splice
from hybridizer.splice.export import export
from hybridizer.splice.verify import Proof, verify
from hybridizer.train.run import (
    TENSORS,
    TrainRecord,
    join_processes,
    open_runtime,
    read_training,
    required_bytes,
    train,
)

if TYPE_CHECKING:
    from hybridizer.train.runtime import Runtime
from hybridizer.pipeline.run import write_records


@dataclass(frozen=True)
class Built:
    """A finished run: its folder, plan, manifest, what was proved of the model, and what training did to it."""

    folder: Path
    plan: Plan
    manifest: Manifest
    proofs: tuple[Proof, ...]
    outcome: BeforeAfter | None = None


def build(
    path: RecipeSource,
    overrides: tuple[str, ...],
    runs: Path,
    monitor: Monitor,
    *,
    replace: bool,
    deep: bool,
    load: bool,
    accept_changes: bool = False,
) -> Built | None:
    """The whole line, from a recipe to a verified model in `runs`/<name>/model.

    A model that is there already and was built from the same plan is kept, and verified. One from another plan raises
    OutputError unless `replace`; it stays in place until the new one is complete. A training that was interrupted goes
    on from its last checkpoint, with another learning rate only if `accept_changes`. Where a launcher started several
    processes all of them train, the main one does the rest, and the others get None.
    """
    runtime = join_processes(load_recipe(path, overrides), runs)
    main = runtime is None or runtime.is_main
    monitor = monitor if main else SilentMonitor()  # what is true of all is told once
    with runtime.main_first() if runtime else nullcontext():
        planned = plan_recipe(path, overrides, monitor)
        folder = runs / planned.plan.name
        folder.mkdir(parents=True, exist_ok=True)
        if deep:
            scan_donors(planned.donors, monitor)
        built = _is_built(folder / "model", planned.plan, replace)
        if built:
            monitor.note(f"model: unchanged, {folder / 'model'} was built from this plan")
        if main:
            if planned.plan.train is not None and (load or not built):
                _splice_for_training(planned, folder / "spliced", monitor)
            write_records(folder, planned)
    if runtime is not None:
        _check_same_plan(runtime, planned.plan)
    record = None
    if planned.plan.train is not None and not built:
        with lock(folder / "training") if main else nullcontext():
            record = _train(planned, folder, runtime, monitor, accept_changes)
    if not main:
        return None
    if not built:
        _write_model(planned.plan, planned.donors, folder / "model", record, monitor, replace=replace)
    manifest, proofs = verify(folder / "model", monitor, find_donor=planned.donors.get, load=load, rehash=built)
    write_json(folder / FILE_NAME, manifest.to_json())
    outcome = evaluate_run(planned, folder, monitor) if planned.plan.train is not None and load else None
    return Built(folder, planned.plan, manifest, proofs, outcome)


def _check_same_plan(runtime: Runtime, plan: Plan) -> None:
    """Return if every process planned the same: they plan one after the other, and a branch or a text may move."""
    hashes = runtime.all_gather(plan.hash)
    if len(set(hashes)) > 1:
        found = ", ".join(f"{hash_[:19]}... by process {rank}" for rank, hash_ in enumerate(hashes))
        fix = "A donor, a text or a branch of the hub moved meanwhile, or the processes see other files: start again."
        raise InputError(Problem(plan.name, f"the processes made different plans: {found}.", fix))


def _splice_for_training(planned: Planned, folder: Path, monitor: Monitor) -> None:
    """Make the model that training starts from, unless it is there."""
    plan = planned.plan.spliced
    if (folder / FILE_NAME).is_file() and read_manifest(folder).plan_hash == plan.hash:
        monitor.note(f"splice: unchanged, {folder} was spliced from this plan")
        return
    if folder.is_dir() and any((folder.parent / "training").glob("checkpoints/step-*")):
        what = "a training of another spliced model has checkpoints here, which would be lost."
        fix = "Give the recipe another name, or remove the folder training/ to start anew."
        raise InputError(Problem(str(folder.parent / "training"), what, fix))
    _write_model(plan, planned.donors, folder, None, monitor, replace=True)


def _train(
    planned: Planned, folder: Path, runtime: Runtime | None, monitor: Monitor, accept_changes: bool
) -> TrainRecord:
    """Train the spliced model, or find that it was trained: a run may have been killed between training and export."""
    record = read_training(folder / "training", planned.plan)
    if record is not None:
        monitor.note(f"train: unchanged, {folder / 'training'} holds the result of this plan")
        return record
    recipe = planned.resolved.recipe
    if not (folder / "training").exists():
        _check_room(planned, folder)
    runtime = runtime or open_runtime(recipe, folder)
    check_texts(recipe, planned.plan)
    spliced, training = folder / "spliced", folder / "training"
    return train(planned.plan, recipe, spliced, training, runtime, monitor, accept_changes=accept_changes)


def _check_room(planned: Planned, folder: Path) -> None:
    plan, cost = planned.plan, estimate_training_cost(planned, "cpu")
    assert cost is not None and plan.train is not None, "called for plans that train"
    spliced = sum(entry.num_bytes for entry in open_checkpoint(folder / "spliced").tensors.values())
    trained = cost.asked.trained_parameters
    merged = sum(row.parameters for row in plan.layers if row.layer not in plan.train.frozen_layers)
    check_free_space(folder, required_bytes(trained, max(trained, merged), spliced))


def _write_model(
    plan: Plan,
    donors: Mapping[str, Donor],
    folder: Path,
    record: TrainRecord | None,
    monitor: Monitor,
    *,
    replace: bool,
) -> None:
    """Write a model folder, every tensor from its donor or, with the `record` of one, from the training beside it."""
    trained = read_header(folder.parent / "training" / TENSORS).tensors if record else {}
    with begin_output(folder, replace=replace) as partial:
        written = splice(plan, donors, partial, monitor, trained)
        check_unchanged(donors)
        export(plan, donors, written, partial, asdict(record) if record else None)
    verb = "export" if record else "splice"
    monitor.note(f"{verb}: wrote {len(plan.tensors)} tensors to {folder}")


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
