"""A teacher alone, before the training: its largest next tokens for every row that the training will see, on disk.

A pass that was killed resumes with the files that are missing, and several processes share them out.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from hybridizer.checkpoint.publish import check_free_space
from hybridizer.core.progress import Monitor
from hybridizer.core.records import content_hash
from hybridizer.data.batches import Batch
from hybridizer.donors.donor import Donor
from hybridizer.models.batching import to_device
from hybridizer.models.largest import Largest, keep_largest
from hybridizer.models.loss import IGNORED
from hybridizer.plan.dimensions import kept_bytes
from hybridizer.recipe.objective import Distill
from hybridizer.train.checkpoints import write_tensors
from hybridizer.train.isolation import in_eval
from hybridizer.train.job import TrainJob
from hybridizer.train.precision import choose_dtype
from hybridizer.train.prepare import Prepared, prepare
from hybridizer.train.runtime import Runtime, same_bits
from hybridizer.train.teacher import Teacher, load_teacher
from hybridizer.train.teacher_cache import SAMPLE, TeacherCache

PASS_ROWS = 4  # in a forward pass, whatever the number of processes: another batch rounds in another way
SAMPLE_TOKENS, SAMPLE_BYTES = 256, 64 * 2**20


def with_cache(job: TrainJob, teacher: Donor, folder: Path, runtime: Runtime, monitor: Monitor) -> TrainJob:
    """`job` with what is kept of `teacher`, from `folder` or made now. Raises what `fill` raises."""
    assert teacher.fingerprint is not None, "donors of a build are pinned"
    cache = open_cache(job, teacher.fingerprint, runtime.device, folder)
    fill(cache, job, lambda: load_teacher(teacher, ()), runtime, monitor)
    return replace(job, kept=cache)


def open_cache(job: TrainJob, fingerprint: str, device: torch.device, folder: Path) -> TeacherCache:
    """The cache in `folder` of the teacher with this `fingerprint` for `job`, complete or not."""
    objective = job.settings.objective
    assert objective is not None and objective.distill is not None, "called for distillation from a cache"
    distill = objective.distill
    assert distill.top_k is not None, "called for distillation from a cache"
    key = content_hash(
        {
            "teacher": fingerprint,
            "data": job.data.facts,
            "top_k": distill.top_k,
            "temperature": distill.temperature,
            "dtype": str(choose_dtype(job.settings.precision, device)),
            "device": device.type,
            "rows": pass_rows(job),
        }
    )
    return TeacherCache(folder / key.removeprefix("sha256:")[:32], job.data, distill.top_k, fingerprint)


def fill(cache: TeacherCache, job: TrainJob, load: Callable[[], Teacher], runtime: Runtime, monitor: Monitor) -> None:
    """Make the files of `cache` that `job` needs and that are missing. Every process must call this.

    Only then is the teacher loaded, and it is freed before this returns. Raises OutputError where the disk has no room,
    and what loading and preparing the teacher raise.
    """
    files = range(-(-job.last_step // cache.file_steps))
    missing = [number for number in files if not cache.path(number).is_file()]
    own = missing[runtime.rank :: runtime.num_ranks]
    sampled = not runtime.is_main or (cache.folder / SAMPLE).is_file()
    cache.folder.mkdir(parents=True, exist_ok=True)
    runtime.barrier()  # until here every process sees the same files
    if runtime.is_main and missing:
        tokens = len(missing) * cache.file_steps * job.data.settings.global_batch_size * job.data.settings.seq_len
        check_free_space(cache.folder, kept_bytes(tokens, cache.top_k))
    if own or not sampled:
        _Pass(cache, job, runtime.device).run(load(), own, sampled, monitor)
        gc.collect()  # of the teacher
        if runtime.device.type == "cuda":
            torch.cuda.empty_cache()
    runtime.barrier()


class _Pass:
    """The forward passes of one process."""

    def __init__(self, cache: TeacherCache, job: TrainJob, device: torch.device) -> None:
        self._cache, self._job, self._device = cache, job, device

    def run(self, teacher: Teacher, numbers: list[int], sampled: bool, monitor: Monitor) -> None:
        """Write the files `numbers`, and the sample unless it is there."""
        teacher.model.to(self._device)
        with (
            torch.random.fork_rng(devices=[]),
            same_bits(self._device),
            torch.no_grad(),
            prepare(_alone(self._job, teacher), self._device) as prepared,
            in_eval(prepared.objective),  # a module is made in training mode, and sets its model to it
        ):
            if not sampled:
                self._write_sample(prepared)
            steps = [self._steps(number) for number in numbers]
            with monitor.task("teacher", sum(map(len, steps)), "steps") as advance:
                for number, own in zip(numbers, steps, strict=True):
                    parts = []
                    for step in own:
                        parts += list(self._kept(prepared, step))
                        advance(1)
                    self._write(number, [Largest(*(tensor.cpu() for tensor in part)) for part in parts])

    def _steps(self, number: int) -> range:
        first = number * self._cache.file_steps
        return range(first, min(first + self._cache.file_steps, self._job.data.num_steps))

    def _kept(self, prepared: Prepared, step: int) -> Iterator[Largest]:
        for batch in self._job.data.batches(step, micro_batch_size=pass_rows(self._job)):
            for logits in self._logits(prepared, batch, None):
                yield keep_largest(logits, self._cache.top_k, _distill(self._job).temperature)

    def _logits(self, prepared: Prepared, batch: Batch, places: Tensor | None) -> Iterator[Tensor]:
        """The teacher's float32 logits at the predicted tokens of `batch`, or at `places` among them, in chunks."""
        hidden = predicted_states(prepared, batch, self._device)
        objective = prepared.objective
        hidden = hidden if places is None else hidden[places.to(self._device)]
        size = max(1, self._job.loss_chunk_bytes // (4 * objective.count_logits()))
        yield from (objective.logits(piece) for piece in hidden.split(size) if len(piece))

    def _write(self, number: int, parts: list[Largest]) -> None:
        ids, log_p = torch.cat([part.ids for part in parts]), torch.cat([part.log_p for part in parts])
        outside = log_p[:, -1].double().exp().sum()
        write_tensors(self._cache.path(number), {"ids": ids, "log_p": log_p, "outside": outside})

    def _write_sample(self, prepared: Prepared) -> None:
        batch = self._job.data.batches(0, micro_batch_size=pass_rows(self._job))[0]
        count = int((batch.targets != IGNORED).sum())
        most = max(1, min(SAMPLE_TOKENS, SAMPLE_BYTES // (4 * prepared.objective.count_logits()), count))
        places = torch.linspace(0, count - 1, most).long()
        heat = _distill(self._job).temperature
        found = [(logits / heat).log_softmax(-1).cpu() for logits in self._logits(prepared, batch, places)]
        write_tensors(self._cache.folder / SAMPLE, {"places": places, "log_p": torch.cat(found)})


def _distill(job: TrainJob) -> Distill:
    assert job.settings.objective is not None and job.settings.objective.distill is not None, "called to distill"
    return job.settings.objective.distill


def pass_rows(job: TrainJob) -> int:
    """The rows of a forward pass of the teacher."""
    return job.settings.micro_batch_size or min(job.settings.global_batch_size, PASS_ROWS)


def _alone(job: TrainJob, teacher: Teacher) -> TrainJob:
    """`job` with the teacher in place of the student, to be prepared in the same way."""
    settings = replace(job.settings, objective=None, gradient_checkpointing=False)
    model = {"model": teacher.model, "parts": teacher.parts, "freeze_plan": teacher.freeze_plan}
    return replace(job, **model, settings=settings, recomputed_layers=(), teacher=None, kept=None)


def predicted_states(prepared: Prepared, batch: Batch, device: torch.device) -> Tensor:
    """The inputs of the head at the predicted tokens of `batch`, (predicted, width), as the prepared model computes."""
    if prepared.documents is not None:
        prepared.documents.announce(batch.position_ids, device)
    ids, positions = to_device(batch.input_ids, device), to_device(batch.position_ids, device)
    hidden = prepared.objective.hidden(ids, positions).flatten(0, 1)
    return hidden[(batch.targets != IGNORED).flatten().nonzero()[:, 0].to(device)]
