"""What is recorded of a training that has ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridizer.checkpoint.hashing import hash_file
from hybridizer.core.records import read_json, read_record
from hybridizer.data.documents import MAX_LISTED
from hybridizer.plan.plan import Plan
from hybridizer.recipe.models import Evaluate, Train
from hybridizer.train.curve import STOP, CurveSummary, Forgetting
from hybridizer.train.folder import RECORD, TRAINED

if TYPE_CHECKING:
    from hybridizer.data.batches import Source, TrainingData
    from hybridizer.train.job import TrainJob
    from hybridizer.train.loop import TrainResult
    from hybridizer.train.result import StoredResult
    from hybridizer.train.runtime import Runtime

SCHEMA = "hybridizer.training/1"


@dataclass(frozen=True)
class SourceUse:
    """What was used of one source: its tokens for training, tokens taken, epochs, and records left out by reason.

    `left_out_at` gives the places of the first ones per reason; the token cache has more.
    """

    name: str
    tokens: int
    tokens_taken: int
    epochs: float
    left_out: Mapping[str, int]
    left_out_at: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class TrainRecord:
    """A finished training. `trained` names tensors of the output, `frozen_sha256` maps the others to their hashes.

    Losses are in nats per token, `stopped_by` is tokens, steps, minutes or forgetting. Hashes are of bytes in memory
    after the last step, in the precision of the checkpoint; they were compared with those before the first. `changes`
    are settings that changed between two starts. `measuring_seconds` went into held-out curves, beside the `seconds` of
    training; `curve` has the best measured step and the last. The tensors are those after `kept_step` steps, None in
    records of earlier versions: the last. `stages` has a summary of each stage of a training that has stages.
    `truncation` is what keeping a part of a teacher's tokens loses; of several stages, of the last.
    """

    plan_hash: str
    steps: int
    tokens: int
    seconds: float
    first_loss: float
    last_loss: float
    stopped_by: str
    dtype: str
    device: str
    num_processes: int
    boundary: int
    frozen_layers: tuple[int, ...]
    frozen_parts: tuple[str, ...]
    trained: tuple[str, ...]
    frozen_sha256: Mapping[str, str]
    unreached: tuple[str, ...]
    changes: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...]
    sources: tuple[SourceUse, ...]
    packing: float
    tensors_sha256: str
    kept_step: int | None = None
    measuring_seconds: float = 0.0
    curve: CurveSummary | None = None
    forgetting: Forgetting | None = None
    stages: tuple[Mapping[str, Any], ...] = ()
    truncation: Mapping[str, Any] | None = None

    def values(self) -> dict[str, Any]:
        """The fields as plain values, without those that have no value in records of earlier versions."""
        return {key: value for key, value in asdict(self).items() if key not in ("stages", "truncation") or value}


def make_record(
    plan: Plan, job: TrainJob, runtime: Runtime, result: TrainResult, sources: tuple[Source, ...], tensors: StoredResult
) -> TrainRecord:
    """The record of a training of `plan` that has ended."""
    from hybridizer.train.truncation import as_values

    return TrainRecord(
        plan_hash=plan.hash,
        steps=result.steps,
        tokens=result.tokens,
        seconds=result.seconds,
        first_loss=result.first_loss,
        last_loss=result.last_loss,
        stopped_by=result.stopped_by,
        dtype=result.dtype,
        device=str(runtime.device),
        num_processes=runtime.num_ranks,
        boundary=plan.train_plan.boundary,
        frozen_layers=plan.train_plan.frozen_layers,
        frozen_parts=plan.train_plan.frozen_parts,
        trained=tensors.trained,
        frozen_sha256=tensors.frozen_sha256,
        unreached=result.unreached,
        changes=result.changes,
        notes=tuple(dict.fromkeys((*job.freeze_plan.notes, *plan.train_plan.notes))),
        sources=_uses(sources, job.data),
        packing=job.data.packed.fill,
        tensors_sha256=tensors.sha256,
        kept_step=result.kept_step,
        measuring_seconds=result.measuring_seconds,
        curve=result.curve,
        forgetting=result.forgetting,
        truncation=as_values(result.truncation),
    )


def _uses(sources: tuple[Source, ...], data: TrainingData) -> tuple[SourceUse, ...]:
    uses = []
    for source, drawn in zip(sources, data.drawn, strict=True):
        left_out: Counter[str] = Counter()
        places: dict[str, list[str]] = {}
        for token_file in source.token_files:
            left_out.update(token_file.bad.counts)
            for reason, listed in token_file.bad.listed.items():
                places[reason] = [*places.get(reason, []), *listed][:MAX_LISTED]
        uses.append(SourceUse(drawn.name, drawn.tokens, drawn.tokens_taken, drawn.epochs, dict(left_out), places))
    return tuple(uses)


def read_training(folder: Path, plan: Plan) -> TrainRecord | None:
    """The record in `folder` of a training that `plan` asks for; None when there is none, or of other tensors."""
    if not (folder / RECORD).is_file() or not (folder / TRAINED).is_file():
        return None
    value = read_json(folder / RECORD)
    found = (value.get("schema"), value.get("plan_hash")) if isinstance(value, dict) else None
    if found != (SCHEMA, plan.hash):
        return None
    fix = "Delete it; the training resumes from its last checkpoint."
    record = read_record({"stages": [], "truncation": None, **value}, TrainRecord, SCHEMA, str(folder / RECORD), fix)
    return record if record.tensors_sha256 == hash_file(folder / TRAINED) else None


def is_complete(record: Mapping[str, Any], settings: Train, evaluate: Evaluate | None = None) -> bool:
    """Whether the training of `record`, a TrainRecord's values, went as far as the two sections let it go.

    It did not where it was stopped by a limit that has been raised since. One that went further than `max_steps` did
    not either: the training itself refuses that.
    """
    if settings.max_steps is not None and settings.max_steps <= record["steps"]:
        return settings.max_steps == int(record["steps"])
    if record["stopped_by"] == "minutes":
        return settings.max_minutes is not None and record["seconds"] >= 60 * settings.max_minutes
    if record["stopped_by"] == "forgetting":
        limit = evaluate.retention if evaluate is not None and evaluate.on_forgetting == STOP else None
        return limit is not None and record["forgetting"]["rise_ci"][0] > limit
    return bool(record["stopped_by"] == "tokens")
