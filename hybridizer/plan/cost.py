"""Plan -> estimated cost of its training, before anything is loaded: operations and memory."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

from hybridizer.checkpoint.dtypes import DTYPE_BITS, FLOATING, SAFETENSORS_NAMES, TORCH_NAMES
from hybridizer.core.records import to_jsonable
from hybridizer.models.hardware import choose_compute_dtype, choose_matmul_dtype
from hybridizer.plan.dimensions import (
    LOSS_CHUNK_BYTES,
    ModelShape,
    ObjectiveShape,
    RunShape,
    kept_bytes,
    model_parameters,
)
from hybridizer.plan.flops import TokenFlops
from hybridizer.plan.freeze import FreezeChoice, choose_frozen, with_adapters
from hybridizer.plan.memory import HEAP_SPREAD, Estimate, Memory, estimate
from hybridizer.plan.plan import Plan
from hybridizer.plan.recompute import memory_budget, repeated_flops, with_recomputing
from hybridizer.plan.shapes import planned_shape
from hybridizer.recipe.layers import format_layers
from hybridizer.recipe.models import SIDES, Train

SCHEMA = "hybridizer.cost/1"
MOMENT_BYTES = {"adamw": 8, "adamw8bit": 2}
# On a CPU bitsandbytes 0.50 updates a tensor in float32: two moments, the gradient, and two temporaries of that size.
UNPACKED_BYTES = {"adamw8bit": 20}


@dataclass(frozen=True)
class FreezeCost:
    """One freeze choice: parameters, FLOP per token and their share of full training, bytes at the peak.

    `recomputed_layers` run again in the backward pass; their operations, `recomputed_share` of the others, are not
    among them.
    """

    name: str
    trained_layers: str
    trained_parameters: int
    frozen_parameters: int
    token_flops: TokenFlops
    total_token_flops: float
    share_of_full_flops: float
    memory: Memory
    peak_bytes: int
    recomputed_layers: tuple[int, ...] = ()
    recomputed_share: float = 0.0


@dataclass(frozen=True)
class Cost:
    """What the requested training costs (`asked`), and what it would with deep, shallow or nothing frozen."""

    asked: FreezeCost
    arms: tuple[FreezeCost, ...]
    compute_dtype: str
    device: str
    batch_tokens: int
    sentence: str
    notes: tuple[str, ...]
    stages: tuple[StageCost, ...] = ()

    @property
    def mean_token_flops(self) -> float:
        """FLOP per token of the whole training: of all stages by their tokens, where it has any."""
        if not self.stages:
            return self.asked.total_token_flops
        return sum(stage.flops for stage in self.stages) / sum(stage.tokens for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON values, with `stages` where the training has any."""
        value: dict[str, Any] = to_jsonable(self)
        return {"schema": SCHEMA, **{key: item for key, item in value.items() if key != "stages" or item}}


@dataclass(frozen=True)
class StageCost:
    """One stage: tokens, steps, what trains, peak learning rate, FLOP of the whole stage, bytes at the peak."""

    name: str
    tokens: int
    steps: int
    trained_layers: str
    trained_parts: tuple[str, ...]
    trained_parameters: int
    lr: float
    flops: float
    peak_bytes: int


@dataclass(frozen=True)
class StepTiming:
    """What a dry run of a few real steps measured on this machine, and the resulting time of the whole run."""

    step_seconds: float
    run_seconds: float
    tokens_per_second: float
    measured_peak_bytes: int
    estimated_peak_bytes: int
    device: str
    compute_dtype: str


def estimate_cost(
    plan: Plan,
    train: Train,
    boundary: int,
    device: str,
    *,
    mean_document: float | None = None,
    objective: ObjectiveShape | None = None,
) -> Cost:
    """The cost of training the model of `plan` by `train`, from sizes alone: no weight is read.

    `objective` is what `plan.objective.objective_shape` gives for it; the arms beside it are of the next token's loss.

    `boundary` is the first deep layer, `device` the type of the device (cpu, cuda). `mean_document` is in tokens, for
    packed rows; None: a row is one document. Raises RecipeError where `choose_frozen` does.
    """
    shape = planned_shape(plan.config, {tensor.name: (tensor.shape, tensor.dtype) for tensor in plan.tensors})
    assert (train.objective is None) == (objective is None), "an objective has a shape"
    run = run_shape(train, device, mean_document)
    requested, found = _cost_of("asked", train, shape, boundary, replace(run, objective=objective))
    arms = [_cost_of(side, replace(train, freeze=side), shape, boundary, run)[0] for side in SIDES]
    notes = []
    if objective is not None:
        _, found = _cost_of("next-token", train, shape, boundary, run)
        notes.append(_objective_note(objective, requested, arms[0]))
    if shape.stateful_layers:
        layers = format_layers(list(shape.stateful_layers))
        notes.append(
            f"Layers {layers} carry state along a row. The operations and memory of their scans depend on the kernels "
            "and are not counted here, so operations and peak are lower bounds; `--probe` measures time and peak."
        )
    if train.lora is not None:
        notes.append(f"low-rank adapters of rank {train.lora.rank} train in every arm, and nothing else")
    if not train.packed:
        notes.append(
            f"the peak is that of rows of {train.seq_len} tokens; unpacked rows are as long as the longest document of "
            "their step, so shorter documents need less"
        )
    if train.gradient_checkpointing is not False:
        notes.append(_recompute_note(requested, len(shape.layers), memory_budget(train, device)))
    if train.optimizer == "adamw8bit" and device == "cpu":
        with_adamw = replace(train, optimizer="adamw")
        plain, _ = _cost_of("adamw", with_adamw, shape, boundary, run_shape(with_adamw, device, mean_document))
        notes.append(_eight_bit_note(plain.peak_bytes - requested.peak_bytes, plain.peak_bytes))
    if train.frozen_dtype != "keep":
        kept, _ = _cost_of("keep", train, shape, boundary, replace(run, objective=objective, frozen_dtype=""))
        notes.append(_low_bits_note(train.frozen_dtype, requested, kept, device))
    dtype = choose_compute_dtype(train.precision, device)
    return Cost(requested, tuple(arms), dtype, device, run.batch_tokens, found.sentence(), tuple(notes))


def _low_bits_note(kind: str, asked: FreezeCost, kept: FreezeCost, device: str) -> str:
    """What frozen layers in 8 or 4 bits save, beside a training that has them as stored."""
    saved, peak = kept.peak_bytes - asked.peak_bytes, kept.peak_bytes
    saves = f"saves {saved / 1e9:.2f} GB, {saved / peak:.0%} of the peak" if saved > 0.01 * peak else "saves no memory"
    note = f"frozen_dtype {kind} {saves} here, and what frozen layers compute changes a little"
    if device == "cpu":
        return note + ": on a CPU the stored weights are pages of a file, which the system can also drop by itself"
    return note + ": the stored weights wait in the host's memory"


def _eight_bit_note(saved: int, peak: int) -> str:
    """What adamw8bit saves on a CPU, of the `peak` with adamw."""
    saves = f"saves {saved / peak:.0%} of the peak" if saved > 0.01 * peak else "saves no memory"
    return (
        f"adamw8bit {saves} here: on a CPU its update unpacks the state of a tensor into "
        f"{UNPACKED_BYTES['adamw8bit']} bytes per parameter, and the largest tensor counts"
    )


def _objective_note(objective: ObjectiveShape, asked: FreezeCost, deep: FreezeCost) -> str:
    """What the objective costs, beside a step of next-token with the deep side frozen."""
    share = asked.total_token_flops / deep.total_token_flops
    runs = f"{objective.teacher_layers} of {len(objective.teacher.layers)} layers"
    if objective.kept:
        return _pass_note(objective, share)
    note = f"the teacher's forward pass, {runs}, is {asked.token_flops.teacher / asked.total_token_flops:.0%} of the "
    note += f"operations, and its weights are {asked.memory.teacher / 1e9:.2f} GB; a step takes {share:.0%} of the "
    note += "operations of `freeze: deep` with the loss of the next token"
    if objective.student_layers is None:
        return note
    end = f"no layer from {objective.student_layers} on and no head is run, forwards or backwards"
    return f"{note}: {end}, which makes it the cheapest kind of stage" if share < 1 else f"{note}: {end}"


def _pass_note(objective: ObjectiveShape, share: float) -> str:
    """What a teacher costs that runs alone before the training."""
    weights, tokens = model_parameters(objective.teacher) * objective.teacher.stored_bytes, 1_000_000
    return (
        f"the teacher runs alone before the training, once for each row, with {weights / 1e9:.2f} GB of weights that "
        f"are freed before the student trains; its {objective.kept} most likely tokens take "
        f"{kept_bytes(tokens, objective.kept) / 1e9:.2g} GB per million tokens in the cache; with its forward pass, a "
        f"step takes {share:.0%} of the operations of `freeze: deep` with the loss of the next token"
    )


def _recompute_note(asked: FreezeCost, num_layers: int, budget: int | None) -> str:
    """Which layers are recomputed, and whether the step then stays within `budget`."""
    layers = asked.recomputed_layers
    note = f"{len(layers)} of {num_layers} layers are recomputed in the backward pass"
    if layers:
        note += f" ({format_layers(layers)}), which adds {asked.recomputed_share:.0%} to the operations above"
    if budget is not None:
        limit = f"the limit of {budget / 1e9:.3g} GB"
        note += f", to stay within {limit}" if asked.peak_bytes <= budget else f"; {limit} cannot be reached"
    return note


def _cost_of(name: str, train: Train, shape: ModelShape, boundary: int, run: RunShape) -> tuple[FreezeCost, Estimate]:
    choice = choose_frozen(train, len(shape.layers), boundary, shape.tied)
    if train.lora is not None:
        choice = with_adapters(choice)
    run = with_recomputing(train, run.device, shape, choice, run)
    found = estimate(shape, choice, run)
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
        recomputed_layers=run.recomputed_layers,
        recomputed_share=repeated_flops(shape, run) / found.token_flops.total,
    )
    return arm, found


def recomputed_layers(
    shape: ModelShape, train: Train, choice: FreezeChoice, device: str, objective: ObjectiveShape | None = None
) -> tuple[int, ...]:
    """The layers that a training of this model under `choice` recomputes on a device of that type."""
    kind = device if device in HEAP_SPREAD else "cpu"  # the estimate knows no other kinds
    run = replace(run_shape(train, kind), objective=objective)
    return with_recomputing(train, kind, shape, choice, run).recomputed_layers


def run_shape(train: Train, device: str, mean_document: float | None = None) -> RunShape:
    """The sizes of one step of `train` on a device of that type, no layer recomputed yet.

    `mean_document` is as in `estimate_cost`.
    """
    dtype = choose_compute_dtype(train.precision, device)
    rows = train.micro_batch_size or train.global_batch_size
    return RunShape(
        loss_chunk_bytes=LOSS_CHUNK_BYTES.get(device, LOSS_CHUNK_BYTES["cpu"]),
        batch_tokens=rows * train.seq_len,
        context=min(train.seq_len, mean_document or train.seq_len) / 2,
        compute_bytes=_num_bytes(dtype),
        product_bytes=_num_bytes(choose_matmul_dtype(dtype, device)),
        moment_bytes=MOMENT_BYTES[train.optimizer],
        unpacked_bytes=UNPACKED_BYTES.get(train.optimizer, 0) if device == "cpu" else 0,
        accumulates=train.global_batch_size > rows,
        device=device,
        adapter_rank=train.lora.rank if train.lora else 0,
        adapter_dropout=train.lora is not None and train.lora.dropout > 0,
        frozen_dtype="" if train.frozen_dtype == "keep" else train.frozen_dtype,
        pages_stay=device == "cpu" and not sys.platform.startswith("linux"),
    )


def _num_bytes(dtype: str) -> int:
    return DTYPE_BITS[SAFETENSORS_NAMES[dtype]] // 8


def main_dtype(plan: Plan) -> str:
    """The floating dtype that holds most of the plan's tensors, as torch names it."""
    held = dict.fromkeys(FLOATING, 0)
    for tensor in plan.tensors:
        held[tensor.dtype] = held.get(tensor.dtype, 0) + 1
    return TORCH_NAMES[max(FLOATING, key=lambda dtype: held[dtype])]
