"""Plan -> cost of its training, before anything is loaded: operations, memory, and, when asked, time from a probe."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from hybridizer.checkpoint.dtypes import DTYPE_BITS, FLOATING, SAFETENSORS_NAMES, TORCH_NAMES
from hybridizer.core.records import to_jsonable
from hybridizer.plan.flops import TokenFlops
from hybridizer.plan.freeze import FreezeSettings, choose_frozen, with_adapters
from hybridizer.plan.memory import LOSS_CHUNK_BYTES, Estimate, Memory, ModelShape, RunShape, estimate
from hybridizer.plan.plan import Plan
from hybridizer.plan.shapes import planned_shape
from hybridizer.recipe.layers import format_layers
from hybridizer.recipe.models import SIDES, Lora

SCHEMA = "hybridizer.cost/1"
MOMENT_BYTES = {"adamw": 8, "adamw8bit": 2}


@dataclass(frozen=True)
class CostRequest:
    """The training to price: what freezes, and the numbers of one step on one device.

    `micro_batch_size` rows of `seq_len` tokens go through at a time, `batches_per_step` such batches make a step.
    `mean_document` is in tokens, for packed rows; None: a row is one document. `precision` auto counts as bfloat16 on
    CUDA and as float32 on a CPU, which may have bfloat16 too.
    """

    freeze: FreezeSettings
    boundary: int
    seq_len: int
    micro_batch_size: int
    batches_per_step: int = 1
    mean_document: float | None = None
    precision: str = "auto"
    optimizer: str = "adamw"
    gradient_checkpointing: bool = False
    device: str = "cpu"
    lora: Lora | None = None

    @property
    def compute_dtype(self) -> str:
        """The dtype that the estimate takes the training to compute in."""
        if self.precision != "auto":
            return self.precision
        return "bfloat16" if self.device == "cuda" else "float32"


@dataclass(frozen=True)
class FreezeCost:
    """One choice of what to freeze: parameters, FLOP a token and their share of full training, bytes at the peak."""

    name: str
    trained_layers: str
    trained_parameters: int
    frozen_parameters: int
    token_flops: TokenFlops
    total_token_flops: float
    share_of_full_flops: float
    memory: Memory
    peak_bytes: int


@dataclass(frozen=True)
class Cost:
    """What the asked training costs, beside the same with the deep side, the shallow side or nothing frozen."""

    asked: FreezeCost
    arms: tuple[FreezeCost, ...]
    compute_dtype: str
    device: str
    batch_tokens: int
    sentence: str
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON values."""
        value: dict[str, Any] = to_jsonable(self)
        return {"schema": SCHEMA, **value}


@dataclass(frozen=True)
class StepTiming:
    """What a probe of a few real steps measured on this machine, and the time that makes for the whole run."""

    step_seconds: float
    run_seconds: float
    tokens_per_second: float
    measured_peak_bytes: int
    estimated_peak_bytes: int
    device: str
    compute_dtype: str


def estimate_cost(plan: Plan, request: CostRequest) -> Cost:
    """The cost of training the model of `plan`, from sizes alone: no weight is read, no torch is imported.

    Raises RecipeError where `choose_frozen` does, for a boundary outside the model above all.
    """
    shape = planned_shape(plan.config, {tensor.name: (tensor.shape, tensor.dtype) for tensor in plan.tensors})
    asked, found = _price("asked", request.freeze, shape, request)
    arms = [_price(name, replace(request.freeze, layers=name), shape, request)[0] for name in SIDES]
    tokens = request.micro_batch_size * request.seq_len
    notes = []
    if shape.stateful_layers:
        layers = format_layers(list(shape.stateful_layers))
        notes.append(
            f"Layers {layers} carry state along a row. What their scans compute and keep depends on the kernels and is "
            "in no figure here, so that operations and peak are lower bounds; `--probe` measures time and peak."
        )
    if request.lora is not None:
        notes.append(f"low-rank adapters of rank {request.lora.rank} train in every arm, and nothing else")
    return Cost(asked, tuple(arms), request.compute_dtype, request.device, tokens, found.sentence(), tuple(notes))


def _price(name: str, freeze: FreezeSettings, shape: ModelShape, request: CostRequest) -> tuple[FreezeCost, Estimate]:
    choice = choose_frozen(freeze, len(shape.layers), request.boundary, shape.tied)
    if request.lora is not None:
        choice = with_adapters(choice)
    found = estimate(shape, choice, _run_shape(request))
    arm = FreezeCost(
        name=name,
        trained_layers=format_layers(list(choice.trained_layers)),
        trained_parameters=found.trained_parameters,
        frozen_parameters=found.frozen_parameters,
        token_flops=found.token_flops,
        total_token_flops=found.token_flops.total,
        share_of_full_flops=found.token_flops.total / found.full_token_flops.total,
        memory=found.memory,
        peak_bytes=found.memory.total,
    )
    return arm, found


def _run_shape(request: CostRequest) -> RunShape:
    return RunShape(
        loss_chunk_bytes=LOSS_CHUNK_BYTES.get(request.device, LOSS_CHUNK_BYTES["cpu"]),
        batch_tokens=request.micro_batch_size * request.seq_len,
        context=min(request.seq_len, request.mean_document or request.seq_len) / 2,
        compute_bytes=DTYPE_BITS[SAFETENSORS_NAMES[request.compute_dtype]] // 8,
        moment_bytes=MOMENT_BYTES[request.optimizer],
        gradient_checkpointing=request.gradient_checkpointing,
        accumulates=request.batches_per_step > 1,
        device=request.device,
        adapter_rank=request.lora.rank if request.lora else 0,
        adapter_dropout=request.lora is not None and request.lora.dropout > 0,
    )


def main_dtype(plan: Plan) -> str:
    """The floating dtype that holds most of the plan's tensors, as torch names it."""
    held = dict.fromkeys(FLOATING, 0)
    for tensor in plan.tensors:
        held[tensor.dtype] = held.get(tensor.dtype, 0) + 1
    return TORCH_NAMES[max(FLOATING, key=lambda dtype: held[dtype])]
