"""Spliced model and plan -> trained tensors and their record, resumed from the last checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridizer.checkpoint.publish import to_output_error
from hybridizer.checkpoint.reader import open_checkpoint
from hybridizer.core.cache import cache_folder
from hybridizer.core.errors import InputError, Problem, RecipeError
from hybridizer.core.progress import Monitor, SilentMonitor
from hybridizer.core.records import write_json
from hybridizer.data.tokenizer import TokenizerEncoder
from hybridizer.models.hardware import datasheet_flops, device_name
from hybridizer.models.quiet import without_bars
from hybridizer.plan.cost import recomputed_layers
from hybridizer.plan.dimensions import ModelShape
from hybridizer.plan.flops import model_token_flops
from hybridizer.plan.objective import keeps_largest, objective_shape, pairs_of
from hybridizer.plan.plan import Plan
from hybridizer.plan.shapes import planned_shape
from hybridizer.recipe.models import DataEntry, Recipe, Train
from hybridizer.recipe.tree import KeyPath
from hybridizer.train.curve import CurveRequest
from hybridizer.train.folder import MASTERS, RECORD
from hybridizer.train.training_record import SCHEMA, TrainRecord, make_record

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hybridizer.data.batches import Source, TrainingData
    from hybridizer.data.tokenize import Encoder
    from hybridizer.donors.donor import Donor
    from hybridizer.models.parts import Parts
    from hybridizer.train.freeze import FreezePlan
    from hybridizer.train.job import DeviceFigures, Earlier, TrainJob
    from hybridizer.train.loop import TrainResult
    from hybridizer.train.runtime import Runtime


def join_processes(recipe: Recipe, runs: Path) -> Runtime | None:
    """The runtime of this process among those that a launcher such as `accelerate launch` started; None if it is alone.

    Raises InputError when there are several and the recipe trains nothing, has rows that they cannot share evenly, or
    measures curves of a model that is sharded.
    """
    count = int(os.environ.get("WORLD_SIZE") or 1)
    if count == 1:
        return None
    if recipe.train is None:
        what = f"{count} processes were started, and this recipe has no `train` section to share."
        raise InputError(Problem(str(recipe.path), what, "Start `hybridize build` alone."))
    for index, stage in enumerate(recipe.train.as_stages()):
        if stage.global_batch_size % count:
            what = f"{stage.global_batch_size} rows in a step cannot be shared evenly by {count} processes."
            fix = f"Make it a multiple of {count}, or start another number of processes."
            own: KeyPath = ("train", "stages", index, "global_batch_size")
            where = own if own in recipe.places else ("train", "global_batch_size")
            raise RecipeError(Problem(recipe.locate(where), what, fix))
    runtime = open_runtime(recipe, runs / recipe.name)
    low = [index for index, stage in enumerate(recipe.train.as_stages()) if stage.frozen_dtype != "keep"]
    if runtime.is_fsdp and low:
        what = "frozen layers are not kept in 8 or 4 bits in a model that FSDP2 shards over processes."
        raise RecipeError(_low_problem(recipe, low[0], what, "Launch without FSDP, or delete `frozen_dtype`."))
    as_fp8 = [index for index in low if recipe.train.as_stages()[index].frozen_dtype == "fp8"]
    if runtime.num_ranks > 1 and runtime.device.type != "cuda" and as_fp8:
        what = f"fp8 cannot be sent between the {runtime.num_ranks} processes of a training on CPUs."
        raise RecipeError(_low_problem(recipe, as_fp8[0], what, "Write int8, or start one process."))
    if runtime.is_fsdp and recipe.evaluate is not None and recipe.evaluate.every:
        what = "held-out curves are not measured on a model that FSDP2 shards over processes."
        raise RecipeError(
            Problem(recipe.locate(("evaluate", "every")), what, "Launch without FSDP, or delete `every`.")
        )
    return runtime


def _low_problem(recipe: Recipe, stage: int, what: str, fix: str) -> Problem:
    own: KeyPath = ("train", "stages", stage, "frozen_dtype")
    return Problem(recipe.locate(own if own in recipe.places else ("train", "frozen_dtype")), what, fix)


def open_runtime(recipe: Recipe, folder: Path) -> Runtime:
    """Devices and trackers for the training of `recipe`, whose run is in `folder`."""
    from hybridizer.train.runtime import Runtime

    return Runtime(recipe.train_section.trackers, folder / "training")


def _check_ids(sources: Sequence[Source], curve: CurveRequest | None, embedding: Any) -> None:
    """Return if the embedding has a row for every token of the texts."""
    rows = len(next(embedding.parameters()))
    files = [token_file for source in sources for token_file in source.token_files]
    found = [(token_file.source, int(token_file.tokens.max())) for token_file in files]
    found += [(text.name, text.largest_token) for text in curve.texts] if curve is not None else []
    for where, largest in found:
        if largest >= rows:
            what = f"the tokenizer gives token {largest}, and the embedding has {rows} rows."
            raise InputError(Problem(where, what, "Use the tokenizer that the host was trained with."))


def required_bytes(trained_parameters: int, changed_parameters: int, model_bytes: int, keeps_best: bool = False) -> int:
    """Bytes that a training and its export need on disk: at most three checkpoints, the result in float32, the model.

    Adapters train few parameters and change all those of the matrices that they are merged into. Beside two checkpoints
    there may be the best weights up to each of them, and those of the best step.
    """
    best = 3 * 4 * trained_parameters if keeps_best else 0
    return 3 * 12 * trained_parameters + best + 4 * changed_parameters + model_bytes


@contextmanager
def room_in(folder: Path) -> Iterator[None]:
    """Turn an OSError inside the block into an OutputError about `folder`."""
    try:
        yield
    except OSError as error:
        raise to_output_error(error, folder) from error


@dataclass(frozen=True)
class Training:
    """What is trained, where and by whom: the model in `spliced` as `plan` says, into `folder`, by one process.

    `teachers` has the one that the objective of each stage needs, or None; `curve` is what is measured on the way.
    """

    plan: Plan
    recipe: Recipe
    spliced: Path
    folder: Path
    runtime: Runtime
    monitor: Monitor
    teachers: Sequence[Donor | None]
    curve: CurveRequest | None


def train(training: Training, *, accept_changes: bool) -> TrainRecord:
    """Train without stages, with checkpoints, log, held-out curve and result in the training's folder.

    Afterwards that folder holds the trained tensors and the record, written last. Every process of a run calls this.
    Raises what `train.loop.train` raises.
    """
    from hybridizer.train.result import store_result

    plan, folder, runtime, (teacher,) = training.plan, training.folder, training.runtime, training.teachers
    stored = open_checkpoint(training.spliced).tensors
    job, sources = make_job(plan, training.recipe, training.spliced, runtime, training.curve, teacher)
    (folder / RECORD).unlink(missing_ok=True)  # it describes the tensors that are replaced now
    with room_in(folder):
        result = run_job(job, plan, folder, runtime, training.monitor, teacher, accept_changes)
        tensors = store_result(job.model, job.freeze_plan, result.frozen_sha256, stored, folder, write=runtime.is_main)
    runtime.barrier()  # until here other processes may read the masters
    record = make_record(plan, job, runtime, result, sources, tensors)
    if runtime.is_main:
        (folder / MASTERS).unlink(missing_ok=True)
        write_json(folder / RECORD, {"schema": SCHEMA, **record.values()})
    runtime.barrier()
    return record


def run_job(
    job: TrainJob,
    plan: Plan,
    folder: Path,
    runtime: Runtime,
    monitor: Monitor,
    teacher: Donor | None,
    accept_changes: bool,
) -> TrainResult:
    """Train what `job` says, with checkpoints, log and masters in `folder`. Raises what `train.loop.train` raises."""
    from hybridizer.train.job import RunContext
    from hybridizer.train.loop import train as run_loop
    from hybridizer.train.teacher_pass import with_cache

    if keeps_largest(job.settings):
        assert teacher is not None, "an objective has a teacher"
        job = with_cache(job, teacher, cache_folder() / "teachers", runtime, monitor)
    context = RunContext(folder, runtime, monitor, _figures(plan, job, runtime, teacher))
    return run_loop(job, context, accept_changes=accept_changes)


def make_job(
    plan: Plan,
    recipe: Recipe,
    spliced: Path,
    runtime: Runtime,
    curve: CurveRequest | None = None,
    teacher: Donor | None = None,
    earlier: Earlier | None = None,
    before: Sequence[Train] = (),
) -> tuple[TrainJob, tuple[Source, ...]]:
    """What is trained, on which data, and its sources. Raises InputError for what cannot train, before any work.

    `before` are the settings of the stages that were trained before, and `earlier` is what they left.
    """
    from hybridizer.models.load import load_causal_lm
    from hybridizer.models.loss import loss_chunk_bytes
    from hybridizer.models.parts import find_parts
    from hybridizer.train.job import Earlier, TrainJob
    from hybridizer.train.precision import product_dtype
    from hybridizer.train.teacher import find_twins, load_teacher, lower_, share_tensors_

    earlier = earlier or Earlier()
    settings = recipe.train_section
    with without_bars():
        model, tokenizer = load_causal_lm(spliced, trust_remote_code=any(spliced.glob("*.py")))
        taught_by = None
        if settings.objective is not None and teacher is not None and not keeps_largest(settings):
            taught_by = load_teacher(teacher, pairs_of(plan.train_plan.settings))
    parts = find_parts(model)
    masters = earlier.read_masters()
    put_masters_(model, masters)
    freeze_plan = _freeze(plan, settings, model, parts, spliced, runtime)
    num_shared = 0
    # FSDP2 replaces parameters by shards, and `frozen_dtype` their values by those of fewer bits.
    if taught_by is not None and teacher is not None and not runtime.is_fsdp and settings.frozen_dtype == "keep":
        kept = freeze_plan.frozen.keys() - masters.keys()
        num_shared = share_tensors_(taught_by.model, model, find_twins(plan, spliced, teacher, kept))
    if taught_by is not None:
        lower_(taught_by.model, product_dtype(settings.precision, runtime.device), model)
    with runtime.main_first():
        # A build tokenised them before, and noted what was left out.
        sources = open_texts(settings.data, recipe.folder, TokenizerEncoder(tokenizer), SilentMonitor())
    _check_ids(sources, curve, parts.embedding)
    data = _data(sources, settings, recipe.seed, tokenizer, before)
    job = TrainJob(
        model,
        parts,
        freeze_plan,
        data,
        settings,
        plan.spliced.hash,
        recipe.seed,
        loss_chunk_bytes(runtime.device),
        _details(plan),
        _recomputed(plan, settings, freeze_plan, runtime, teacher, num_shared),
        curve=curve,
        earlier=earlier,
        teacher=taught_by,
    )
    return job, sources


def put_masters_(model: nn.Module, masters: Mapping[str, Tensor]) -> None:
    """Give parameters of `model` the values of `masters`, in float32: rounded ones would lose what was trained."""
    parameters = dict(model.named_parameters())
    for name, value in masters.items():
        parameters[name].data = value.clone()  # a mapped file is not to be written to, and may start at odd places


def _recomputed(
    plan: Plan, settings: Train, freeze_plan: FreezePlan, runtime: Runtime, teacher: Donor | None, num_shared: int
) -> tuple[int, ...]:
    """The layers that run again in the backward pass, as the plan's estimate has them for this device.

    `num_shared` parameters of the teacher are the model's.
    """
    objective = objective_shape(settings, plan.train_plan.settings, teacher, num_shared)
    return recomputed_layers(_shape(plan), settings, freeze_plan.choice, runtime.device.type, objective)


def _shape(plan: Plan) -> ModelShape:
    return planned_shape(plan.config, {tensor.name: (tensor.shape, tensor.dtype) for tensor in plan.tensors})


def _details(plan: Plan) -> dict[str, Any]:
    """What the hash of a spliced model is mostly of, in plain values: shown where a checkpoint is of another one."""
    layers = {str(row.layer): f"{', '.join(row.sources)}, {row.method}, {row.dtype}" for row in plan.layers}
    return {"seed": plan.seed, "host": plan.host, "layers": layers, "max_shard_bytes": plan.max_shard_bytes}


def _freeze(plan: Plan, settings: Train, model: nn.Module, parts: Parts, spliced: Path, runtime: Runtime) -> FreezePlan:
    """What trains of the model as it was loaded, with adapters put on it where the recipe has `lora`."""
    from hybridizer.train.freeze import plan_freeze, plan_lora_
    from hybridizer.train.result import check_storable

    freeze_plan = plan_freeze(model, parts, settings, plan.train_plan.boundary)
    assert freeze_plan.choice.frozen_layers == plan.train_plan.frozen_layers, "the model has the planned layers"
    check_storable(model, open_checkpoint(spliced).tensors.keys())
    if settings.lora is None:
        return freeze_plan
    _refuse_sharded_adapters(runtime)
    return plan_lora_(model, parts, freeze_plan, settings.lora, plan.seed)


def _refuse_sharded_adapters(runtime: Runtime) -> None:
    if runtime.is_fsdp:
        what = "low-rank adapters cannot be merged into weights that FSDP2 shards over processes."
        raise InputError(Problem("train.lora", what, "Launch without FSDP, or drop `lora`."))


def open_texts(entries: tuple[DataEntry, ...], base: Path, encoder: Encoder, monitor: Monitor) -> tuple[Source, ...]:
    """The sources that `entries` of a resolved recipe name, tokenised now or taken from the cache."""
    from hybridizer.data.sources import open_sources

    cache = cache_folder() / "tokens"
    cache.mkdir(parents=True, exist_ok=True)
    with room_in(cache):
        return open_sources(entries, base, encoder, cache, monitor)


def _data(
    sources: tuple[Source, ...], train: Train, seed: int, tokenizer: Any, before: Sequence[Train]
) -> TrainingData:
    from hybridizer.data.batches import TrainingData

    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return TrainingData(sources, train, seed, pad_id or 0, before)


def _figures(plan: Plan, job: TrainJob, runtime: Runtime, teacher: Donor | None) -> DeviceFigures:
    """The FLOP per token of `job`, and FLOP/s of the device: of its fastest matrix product and of its data sheet."""
    from hybridizer.train.job import DeviceFigures
    from hybridizer.train.precision import choose_dtype, product_dtype
    from hybridizer.train.timing import measure_peak

    settings = job.settings
    lengths = job.data.packed.pieces[:, 1]
    context = float((lengths * lengths).sum() / lengths.sum() / 2)
    rank = settings.lora.rank if settings.lora else 0
    objective = None if keeps_largest(settings) else objective_shape(settings, plan.train_plan.settings, teacher)
    flops = model_token_flops(_shape(plan), job.freeze_plan.choice, context, rank, objective)
    compiles = job.compiles(runtime.device.type)
    dtype = (choose_dtype if compiles else product_dtype)(settings.precision, runtime.device)
    device, name = str(runtime.device), str(dtype).removeprefix("torch.")
    return DeviceFigures(flops, measure_peak(device, name), datasheet_flops(device_name(device), name))
