"""What a training loses that knows only the largest next tokens of its teacher: measured on a few tokens."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import torch

from hybridizer.core.records import read_json, write_json
from hybridizer.models.largest import Largest
from hybridizer.models.taught import LargestOnlyLoss
from hybridizer.train.isolation import in_eval
from hybridizer.train.job import RunContext, TrainJob
from hybridizer.train.prepare import Prepared
from hybridizer.train.teacher_pass import pass_rows, predicted_states

FILE = "truncation.json"


@dataclass(frozen=True)
class Truncation:
    """What `top_k` tokens of a teacher leave out: its mean probability outside them, over `tokens` predicted tokens.

    Divergences are means over `sample_tokens` in nats, at the temperature of the objective: of all tokens of the
    vocabulary, and as the loss has them, before the first step and after the last. None where FSDP2 shards the model.
    """

    top_k: int
    mass_outside: float
    tokens: int
    sample_tokens: int
    first_divergence: float | None = None
    first_kept_divergence: float | None = None
    last_divergence: float | None = None
    last_kept_divergence: float | None = None


def begin_truncation(job: TrainJob, prepared: Prepared, context: RunContext) -> Truncation | None:
    """What is lost before the first step, as its first start measured it; None without a cache of a teacher.

    A note reports it.
    """
    if job.kept is None:
        return None
    path, origin = context.folder / FILE, job.kept.folder.name
    before = read_json(path) if path.is_file() else {}
    if not isinstance(before, dict) or before.get("cache") != origin:
        whole, kept = _measure(job, prepared, context)
        before = {"cache": origin, "divergence": whole, "kept_divergence": kept}
        if context.runtime.is_main:
            write_json(path, before)
    outside, count = job.kept.mass_outside(job.last_step)
    whole, kept = before["divergence"], before["kept_divergence"]
    found = Truncation(job.kept.top_k, outside, count, len(job.kept.sample()["places"]), whole, kept)
    context.monitor.note(
        f"teacher: {found.top_k} tokens are kept of each distribution, with {outside:.2%} of the probability outside "
        f"them (mean over {count:,} tokens); {_compare(whole, kept)}"
    )
    return found


def end_truncation(
    begun: Truncation | None, job: TrainJob, prepared: Prepared, context: RunContext
) -> Truncation | None:
    """`begun` with what is lost after the last step, which a note reports."""
    if begun is None:
        return None
    whole, kept = _measure(job, prepared, context)
    if whole is not None:
        context.monitor.note(f"teacher: at the end, {_compare(whole, kept)}")
    return replace(begun, last_divergence=whole, last_kept_divergence=kept)


def _compare(whole: float | None, kept: float | None) -> str:
    if whole is None or kept is None:
        return "the divergence is not measured on a sharded model"
    return f"divergence of a sample {whole:.4f} nats per token, {kept:.4f} of what is kept"


@torch.no_grad()
def _measure(job: TrainJob, prepared: Prepared, context: RunContext) -> tuple[float | None, float | None]:
    """The divergence of the student from all of the teacher and from what is kept, over the sample, as it is now."""
    cache, objective, device = job.kept, prepared.objective, context.runtime.device
    assert cache is not None and isinstance(objective, LargestOnlyLoss), "called for distillation from a cache"
    if context.runtime.is_fsdp:
        return None, None
    batch, sample = job.data.batches(0, micro_batch_size=pass_rows(job))[0], cache.sample()
    places, largest = sample["places"], cache.read(batch.rows)
    with in_eval(objective):
        hidden = predicted_states(prepared, batch, device)[places.to(device)]
        kept = Largest(*(tensor[places].to(device) for tensor in largest))
        return objective.divergences(hidden, sample["log_p"].to(device), kept)


def as_values(found: Truncation | None) -> dict[str, float | int | None] | None:
    """The fields of `found` as plain values."""
    return None if found is None else asdict(found)
