"""What a training run is made of: the job, which decides its numbers, and the context, which does not."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from hybridizer.core.errors import InputError, Problem
from hybridizer.core.progress import Monitor
from hybridizer.core.records import content_hash
from hybridizer.data.batches import TrainingData
from hybridizer.models.hardware import choose_compile
from hybridizer.models.loss import CHUNK_BYTES
from hybridizer.models.objective import TrainableParts
from hybridizer.plan.flops import TokenFlops
from hybridizer.plan.rates import find_faults, scale_tensors
from hybridizer.recipe.models import Train, plain
from hybridizer.train.curve import CurveRequest
from hybridizer.train.freeze import FreezePlan
from hybridizer.train.runtime import Runtime
from hybridizer.train.teacher import Teacher
from hybridizer.train.teacher_cache import TeacherCache

# These settings may change between two starts of a run: they do not affect the numbers.
_FREE = {"max_steps", "max_minutes", "checkpoint_minutes", "trackers", "divergence"}
# These are facts of the freeze plan and of the data, which are recorded beside the settings.
_RECORDED_BESIDE = {
    "data", "tokens", "freeze", "embedding", "final_norm", "head", "lora", "seq_len", "packed", "global_batch_size",
    "heldout_ratio", "stages",
}  # fmt: skip
# In a checkpoint the settings of the optimizer and of the schedule are separate groups.
_OPTIMIZER = ("lr", "lr_scale", "betas", "eps", "weight_decay", "max_grad_norm")
_SCHEDULE = ("warmup_ratio", "min_lr_ratio", "decay_ratio")


@dataclass(frozen=True)
class Earlier:
    """What the stages before this one left: how many steps they took, and the files of their float32 masters, in order.

    The model holds these values too, also in tensors that do not train any more.
    """

    steps: int = 0
    masters: tuple[Path, ...] = ()

    def read_masters(self) -> dict[str, Tensor]:
        """The last value that a stage gave to each tensor that one of them trained."""
        found: dict[str, Tensor] = {}
        for path in self.masters:
            found |= load_file(path)
        return found


@dataclass(frozen=True)
class TrainJob:
    """Everything that decides the numbers of a run: the same job on the same device gives the same bits.

    `plan_hash` names what the model was made of, which `plan_details` describes in plain values. `seed` is that of
    dropout, and at most `loss_chunk_bytes` of float32 logits exist at a time. `recomputed_layers` run again in the
    backward pass, which changes no bit. `earlier` is what the run starts from. `curve` is measured on the way; it
    decides numbers where the best step is kept. The `teacher` is that of the objective, if the settings have one, or
    `kept` is what is known of it.
    """

    model: nn.Module
    parts: TrainableParts
    freeze_plan: FreezePlan
    data: TrainingData
    settings: Train
    plan_hash: str
    seed: int = 0
    loss_chunk_bytes: int = CHUNK_BYTES
    plan_details: Mapping[str, Any] = field(default_factory=dict)
    recomputed_layers: tuple[int, ...] = ()
    curve: CurveRequest | None = None
    earlier: Earlier = Earlier()
    teacher: Teacher | None = None
    kept: TeacherCache | None = None

    @property
    def vocab_size(self) -> int:
        """The number of rows of the embedding."""
        return len(next(self.parts.embedding.parameters()))

    @property
    def last_step(self) -> int:
        """The number of steps after which the run ends: those of the data, or fewer by `max_steps`."""
        return min(self.data.num_steps, self.settings.max_steps or self.data.num_steps)

    def compiles(self, device: str) -> bool:
        """Whether its layers are compiled on a device of that type."""
        return choose_compile(self.settings.compile, device, self.data.num_steps)

    def first_state(self) -> dict[str, Tensor]:
        """What `Masters.load_` takes at the first step: the values that earlier stages gave to trained tensors."""
        masters = self.earlier.read_masters()
        return {f"master.{name}": masters[name] for name in self.freeze_plan.trained if name in masters}

    def lr_factors(self) -> dict[str, float]:
        """The factor on the learning rate of every trained tensor, by `lr_scale`; empty where there is none.

        Raises InputError for a key that holds no tensor of the model.
        """
        scales, plan = self.settings.lr_scale, self.freeze_plan
        if not scales:
            return {}
        boundary, num_layers = plan.choice.boundary, plan.choice.num_layers
        faults = find_faults(scales, {**plan.trained, **plan.frozen}, boundary, num_layers)
        if problems := [Problem(f"train.lr_scale.{key}", what, fix) for key, what, fix in faults]:
            raise InputError(*problems)
        return scale_tensors(scales, plan.trained, boundary, num_layers)

    def facts(self, num_ranks: int, device: str = "cpu") -> dict[str, Any]:
        """What a checkpoint must agree with to be resumed from by `num_ranks` processes on a `device` of that type."""
        return {
            "plan": self.plan_hash,
            "freeze": content_hash([self.freeze_plan.trained, self.freeze_plan.frozen]),
            "data": self.data.facts,
            "train": self._settings_facts(device),
            "processes": num_ranks,
            **(self.curve.facts() if self.curve else {}),
        }

    def details(self) -> dict[str, Any]:
        """What the hashes among the facts are of, in plain values: what a refusal shows in their place."""
        choice = asdict(self.freeze_plan.choice)
        return {"plan": self.plan_details, "freeze": {key: value for key, value in choice.items() if key != "notes"}}

    def _settings_facts(self, device: str) -> dict[str, Any]:
        names = [key.name for key in fields(self.settings) if key.name not in _FREE | _RECORDED_BESIDE]
        values = {name: getattr(self.settings, name) for name in names}
        if values.pop("objective") is not None:
            values["objective"] = self._objective_facts()
        values["compile"] = self.compiles(device)
        optimizer = {"name": values.pop("optimizer"), **{name: values.pop(name) for name in _OPTIMIZER}}
        if values["frozen_dtype"] == "keep":
            del values["frozen_dtype"]  # as in checkpoints of versions without it
        if not optimizer["lr_scale"]:
            del optimizer["lr_scale"]  # as in checkpoints of versions without it
        schedule = {"kind": values.pop("schedule"), **{name: values.pop(name) for name in _SCHEDULE}}
        inner = {"loss_chunk_bytes": self.loss_chunk_bytes, "seed": self.seed}
        return {"optimizer": optimizer, "schedule": schedule, **values, **inner}

    def _objective_facts(self) -> dict[str, Any]:
        """The objective with its teacher by content, whatever the recipe calls it, and the layers that correspond."""
        objective, teacher = self.settings.objective, self.teacher or self.kept
        assert objective is not None and teacher is not None, "an objective has a teacher"
        pairs = self.teacher.pairs if self.teacher is not None else ()
        by_content = {"teacher": teacher.fingerprint, "pairs": [list(pair) for pair in pairs]}
        return {"kind": objective.kind, **plain(objective.chosen), **by_content}


@dataclass(frozen=True)
class DeviceFigures:
    """What throughput is measured against: the cost per token, and the FLOP/s of one device (0: unknown).

    `peak_flops` were measured with a plain matrix product, `datasheet_flops` are the maker's.
    """

    token_flops: TokenFlops
    peak_flops: float = 0.0
    datasheet_flops: float = 0.0

    def shares(self, flops: float, num_devices: int) -> dict[str, float]:
        """Which part of the peaks `flops` per second on `num_devices` are: as measured, and by the data sheet if known.

        The first is 0 where no peak was measured.
        """
        shares = {"share_of_peak": flops / (num_devices * self.peak_flops) if self.peak_flops else 0.0}
        if self.datasheet_flops:
            shares["share_of_datasheet_peak"] = flops / (num_devices * self.datasheet_flops)
        return shares


@dataclass(frozen=True)
class RunContext:
    """Where a run writes, the processes and the device it runs on, the monitor of its progress, and its clock."""

    folder: Path
    runtime: Runtime
    monitor: Monitor
    figures: DeviceFigures
    clock: Callable[[], float] = time.monotonic
