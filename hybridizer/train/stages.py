"""A training of several stages: each one runs as a training of its own, from the float32 masters of those before it.

    training/
      stage-1/              checkpoints/, log.jsonl and masters.safetensors of the first stage; training.json, written
                            last, when it has ended
      stage-2/
      log.jsonl, trained.safetensors, training.json    of all stages together, as of a training without stages

A finished stage is not run again as long as it and the stages before it are planned as they were. Every stage loads
the spliced model again, so that nothing but files passes from one to the next.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridizer.checkpoint.hashing import hash_file
from hybridizer.checkpoint.reader import open_checkpoint
from hybridizer.core.errors import InputError, Problem, RunError
from hybridizer.core.records import content_hash, read_json, read_record, write_json
from hybridizer.models.quiet import without_bars
from hybridizer.plan.plan import Plan
from hybridizer.recipe.models import Train
from hybridizer.recipe.sections import fill_in
from hybridizer.train.curve import Curve, CurveRequest, CurveSummary, read_rows
from hybridizer.train.folder import (
    CHECKPOINTS,
    MASTERS,
    RECORD,
    join_curves,
    join_logs,
    stage_folder,
)
from hybridizer.train.run import Training, make_job, room_in, run_job
from hybridizer.train.training_record import SCHEMA, SourceUse, TrainRecord, make_record

if TYPE_CHECKING:
    from hybridizer.train.job import TrainJob
    from hybridizer.train.result import StoredResult

STAGE_SCHEMA = "hybridizer.stage/1"


@dataclass(frozen=True)
class StageRecord:
    """A stage that has ended. `started_from` are the hashes of the masters of the stages before it.

    In `training` the plan's hash is that of the plan up to this stage, tensors have their names in the model as it was
    loaded, and `tensors_sha256` is the hash of the stage's masters.
    """

    name: str
    started_from: tuple[str, ...]
    training: TrainRecord

    @property
    def is_finished(self) -> bool:
        """Whether it took all its tokens, rather than being stopped by a limit of the whole training."""
        return self.training.stopped_by == "tokens"


def train_in_stages(training: Training, *, accept_changes: bool, replace_finished: bool) -> TrainRecord:
    """Train stage after stage, as `train.run.train` does for a single one.

    A held-out curve continues from stage to stage; where the best step is kept, each stage keeps its own.
    A finished stage of other settings is refused, or with `replace_finished` removed together with those after it.
    Raises InputError for that, RunError where a tensor that no stage trains differs between stages, and what
    `train.loop.train` raises.
    """
    stages, folder, is_main = _Stages(training), training.folder, training.runtime.is_main
    if is_main:
        (folder / RECORD).unlink(missing_ok=True)
    try:
        done, stopped_by = stages.run(accept_changes, replace_finished)
    finally:
        if is_main and folder.is_dir():
            join_logs(folder, len(stages.settings))
            join_curves(folder, len(stages.settings))
    return stages.store(done, stopped_by)


class _Stages:
    """The stages of one training, in one of its processes."""

    def __init__(self, training: Training) -> None:
        self._of, self._whole, self._train_plan = training, training.recipe.train_section, training.plan.train_plan
        self.settings, self._names = self._whole.as_stages(), self._whole.stage_names

    def run(self, accept_changes: bool, replace_finished: bool) -> tuple[list[StageRecord], str]:
        """The records of all stages up to the one where a limit was reached, and what ended the training."""
        done: list[StageRecord] = []
        for index in range(len(self.settings)):
            found = self._finished(index, done, replace_finished)
            limited = self._within_limits(index, done)
            if found is not None:
                self._refuse_too_many(index, [*done, found])
                self._of.monitor.note(f"{self._title(index)}: unchanged, {self._place(index)} holds its result")
                done.append(found)
                continue
            if isinstance(limited, str):
                self._of.monitor.note(f"stopped by max_{limited}, before {self._title(index)}")
                return done, limited
            self._of.monitor.note(f"{self._title(index)}: {limited.tokens:,} tokens")
            done.append(self._run_stage(index, limited, done, accept_changes))
            if not done[-1].is_finished:
                return done, done[-1].training.stopped_by
        return done, "tokens"

    def store(self, done: Sequence[StageRecord], stopped_by: str) -> TrainRecord:
        """Write the result of all stages into the training's folder, the record last."""
        tensors = self._store_tensors(done)
        self._of.runtime.barrier()  # until here other processes may read the masters
        record = replace(_join_records(self._of.plan, done, tensors, stopped_by), curve=self._summary())
        if self._of.runtime.is_main:
            (self._of.folder / MASTERS).unlink(missing_ok=True)
            write_json(self._of.folder / RECORD, {"schema": SCHEMA, **record.values()})
        self._of.runtime.barrier()
        return record

    def _finished(self, index: int, done: Sequence[StageRecord], replace_finished: bool) -> StageRecord | None:
        """The record of the stage `index` if it is finished and planned as it was; None if it is to be run."""
        place = self._place(index)
        record = _read_stage(place)
        self._of.runtime.barrier()  # before the main process may remove what the others read
        if record is None or not record.is_finished:
            return None
        expected = (self._of.plan.up_to(index + 1).hash, _started_from(done))
        if (record.training.plan_hash, record.started_from) == expected:
            return record if hash_file(place / MASTERS) == record.training.tensors_sha256 else None
        if not replace_finished:
            what = f"{self._title(index)} was finished with other settings, or after other stages."
            fix = "Restore them, or pass --replace to train it and the stages after it again."
            raise InputError(Problem(str(place), what, fix))
        self._of.monitor.note(f"{self._title(index)}: its settings have changed; it is trained again")
        if self._of.runtime.is_main:
            for number in range(index, len(self.settings)):
                shutil.rmtree(self._place(number), ignore_errors=True)
        self._of.runtime.barrier()
        return None

    def _run_stage(self, index: int, settings: Train, done: Sequence[StageRecord], accept_changes: bool) -> StageRecord:
        """Train the stage `index`, and give back the memory that it took: the next one begins as the first did."""
        from hybridizer.models.memory import trim_heap

        try:
            return self._train_stage(index, settings, done, accept_changes)
        finally:
            gc.collect()  # a model has cycles
            trim_heap()

    def _train_stage(
        self, index: int, settings: Train, done: Sequence[StageRecord], accept_changes: bool
    ) -> StageRecord:
        from hybridizer.train.best import BestWeights
        from hybridizer.train.job import Earlier
        from hybridizer.train.result import StoredResult

        place, recipe = self._place(index), fill_in(self._of.recipe, train=settings)
        plan = replace(self._of.plan, train=self._train_plan.stage(index))
        steps = sum(record.training.steps for record in done)
        earlier = Earlier(steps, tuple(self._place(number) / MASTERS for number in range(index)))
        teacher, before = self._of.teachers[index], self.settings[:index]
        job, sources = make_job(
            plan, recipe, self._of.spliced, self._of.runtime, self._curve_from(index), teacher, earlier, before
        )
        job = self._after_stages(job, index, done)
        if self._of.runtime.is_main:
            (place / RECORD).unlink(missing_ok=True)
        with room_in(place):
            result = run_job(job, plan, place, self._of.runtime, self._of.monitor, teacher, accept_changes)
        masters = hash_file(place / MASTERS)
        tensors = StoredResult(tuple(job.freeze_plan.trained), result.frozen_sha256, masters)
        training = make_record(plan, job, self._of.runtime, result, sources, tensors)
        training = replace(training, plan_hash=self._of.plan.up_to(index + 1).hash)
        record = StageRecord(self._names[index], _started_from(done), training)
        if self._of.runtime.is_main:
            write_json(place / RECORD, {"schema": STAGE_SCHEMA, **asdict(record)})
            if record.is_finished:  # nothing resumes from them any more
                shutil.rmtree(place / CHECKPOINTS, ignore_errors=True)
                BestWeights(place).keep(())
        self._of.runtime.barrier()
        written = _read_stage(place)  # the main process's, whose seconds decide when the minutes are used up
        assert written is not None, "it was written before the barrier"
        return written

    def _curve_from(self, index: int) -> CurveRequest | None:
        """What the stage `index` measures; changes count from the start of the first one."""
        if self._of.curve is None or not index:
            return self._of.curve
        return replace(self._of.curve, start=tuple(row for row in read_rows(self._place(0)) if row.step == 0))

    def _summary(self) -> CurveSummary | None:
        """The best measured step of all stages beside the last one."""
        if self._of.curve is None:
            return None
        curve = Curve(self._of.curve, self._of.folder, self._of.runtime)
        curve.read()
        return curve.summary()

    def _after_stages(self, job: TrainJob, index: int, done: Sequence[StageRecord]) -> TrainJob:
        """`job`, which resumes from no checkpoint that was written after other stages."""
        if not index:
            return job
        before = [asdict(stage) for stage in self._train_plan.stages[:index]]
        details = {**job.plan_details, "stages before": {str(i): stage["settings"] for i, stage in enumerate(before)}}
        origin = content_hash([self._of.plan.up_to(index).hash, _started_from(done)])
        return replace(job, plan_hash=origin, plan_details=details)

    def _within_limits(self, index: int, done: Sequence[StageRecord]) -> Train | str:
        """The settings of the stage `index` within `max_steps` and `max_minutes` of the whole training.

        `steps` or `minutes` where nothing of them is left.
        """
        whole, settings = self._whole, self.settings[index]
        if whole.max_steps is not None:
            left = whole.max_steps - sum(record.training.steps for record in done)
            if left <= 0:
                return "steps"
            settings = fill_in(settings, max_steps=left)
        if whole.max_minutes is not None:
            minutes = whole.max_minutes - sum(record.training.seconds for record in done) / 60
            if minutes <= 0:
                return "minutes"
            settings = fill_in(settings, max_minutes=minutes)
        return settings

    def _refuse_too_many(self, index: int, done: Sequence[StageRecord]) -> None:
        steps, limit = sum(record.training.steps for record in done), self._whole.max_steps
        if limit is not None and steps > limit:
            what = f"{self._title(index)} ended at step {steps} of the training, and `max_steps` is {limit}."
            raise InputError(
                Problem(str(self._place(index)), what, "Raise max_steps, or give the recipe another name.")
            )

    def _store_tensors(self, done: Sequence[StageRecord]) -> StoredResult:
        from hybridizer.models.load import load_causal_lm
        from hybridizer.models.parts import find_parts
        from hybridizer.train.checkpoints import write_tensors
        from hybridizer.train.freeze import FreezePlan, plan_freeze
        from hybridizer.train.job import Earlier
        from hybridizer.train.result import store_result

        masters = Earlier(0, tuple(self._place(index) / MASTERS for index in range(len(done)))).read_masters()
        with without_bars():
            model, _ = load_causal_lm(self._of.spliced, trust_remote_code=any(self._of.spliced.glob("*.py")))
        last = plan_freeze(model, find_parts(model), self.settings[len(done) - 1], self._train_plan.boundary)
        places = {**last.trained, **last.frozen}
        trained = {name: place for name, place in places.items() if name in masters}
        frozen = {name: place for name, place in places.items() if name not in masters}
        hashes = _never_trained(done, frozen)
        with room_in(self._of.folder):
            if self._of.runtime.is_main:
                write_tensors(self._of.folder / MASTERS, masters)
            self._of.runtime.barrier()
            stored = open_checkpoint(self._of.spliced).tensors
            union = FreezePlan(last.choice, trained, frozen)
            return store_result(model, union, hashes, stored, self._of.folder, write=self._of.runtime.is_main)

    def _place(self, index: int) -> Path:
        return stage_folder(self._of.folder, index + 1)

    def _title(self, index: int) -> str:
        name = self._names[index]
        title = f"stage {index + 1} of {len(self.settings)}"
        return title if name == f"stage {index + 1}" else f"{title} ({name})"


def _read_stage(folder: Path) -> StageRecord | None:
    """The record in the folder of a stage, if its masters are there too."""
    if not (folder / RECORD).is_file() or not (folder / MASTERS).is_file():
        return None
    fix = "Delete it; the stage is trained again."
    value = read_json(folder / RECORD)
    if isinstance(value, dict) and isinstance(value.get("training"), dict):
        value["training"].setdefault("truncation", None)  # as in records of versions without it
    return read_record(value, StageRecord, STAGE_SCHEMA, str(folder / RECORD), fix)


def _started_from(done: Sequence[StageRecord]) -> tuple[str, ...]:
    return tuple(record.training.tensors_sha256 for record in done)


def _never_trained(done: Sequence[StageRecord], names: Mapping[str, str]) -> dict[str, str]:
    """The hashes of the tensors `names`, which were frozen in every stage. Raises RunError where stages differ."""
    hashes = {name: done[0].training.frozen_sha256[name] for name in names}
    for record in done[1:]:
        changed = [name for name in names if record.training.frozen_sha256[name] != hashes[name]]
        if changed:
            what = f"tensors that no stage trains are others in {record.name}: {', '.join(changed[:5])}."
            raise RunError(Problem("freeze", what, "This is a bug in the training code: please report it."))
    return hashes


def _join_records(plan: Plan, done: Sequence[StageRecord], tensors: StoredResult, stopped_by: str) -> TrainRecord:
    """The record of the whole training: sums, the losses at its two ends, and a summary of each stage."""
    runs = [record.training for record in done]
    first, last = runs[0], runs[-1]
    steps = [sum(run.steps for run in runs[:index]) for index in range(len(runs))]
    tokens = sum(run.tokens for run in runs)
    return replace(
        last,
        plan_hash=plan.hash,
        steps=sum(run.steps for run in runs),
        tokens=tokens,
        seconds=sum(run.seconds for run in runs),
        kept_step=None if last.kept_step is None else steps[-1] + last.kept_step,
        measuring_seconds=sum(run.measuring_seconds for run in runs),
        forgetting=last.forgetting and replace(last.forgetting, step=steps[-1] + last.forgetting.step),
        first_loss=first.first_loss,
        stopped_by=stopped_by,
        frozen_layers=plan.train_plan.frozen_layers,
        frozen_parts=plan.train_plan.frozen_parts,
        trained=tensors.trained,
        frozen_sha256=tensors.frozen_sha256,
        unreached=tuple(dict.fromkeys(name for run in runs for name in run.unreached)),
        changes=tuple(
            {**change, "step": change["step"] + before}
            for run, before in zip(runs, steps, strict=True)
            for change in run.changes
        ),
        notes=tuple(dict.fromkeys(note for run in runs for note in run.notes)),
        sources=tuple(_join_sources(runs)),
        packing=sum(run.packing * run.tokens for run in runs) / max(tokens, 1),
        tensors_sha256=tensors.sha256,
        stages=tuple(_summarise(record) for record in done),
    )


def _join_sources(runs: Sequence[TrainRecord]) -> Iterator[SourceUse]:
    for uses in zip(*(run.sources for run in runs), strict=True):
        taken = sum(use.tokens_taken for use in uses)
        yield replace(uses[-1], tokens_taken=taken, epochs=sum(use.epochs for use in uses))


def _summarise(record: StageRecord) -> dict[str, Any]:
    kept = (
        "plan_hash", "steps", "tokens", "seconds", "first_loss", "last_loss", "stopped_by", "frozen_layers",
        "frozen_parts", "trained", "frozen_sha256", "tensors_sha256",
    )  # fmt: skip
    values = asdict(record.training)
    return {"name": record.name, **{key: values[key] for key in kept}}
