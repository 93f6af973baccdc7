"""What each stage of a training costs, beside the whole: one row for each stage of the plan's table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hybridizer.plan.cost import Cost, FreezeCost, StageCost, estimate_cost, run_shape
from hybridizer.plan.dimensions import ObjectiveShape
from hybridizer.plan.freeze import FreezeChoice, choose_frozen, trained_parts
from hybridizer.plan.memory import estimate
from hybridizer.plan.plan import Plan
from hybridizer.plan.shapes import planned_shape
from hybridizer.recipe.models import Train


def count_steps(train: Train) -> int:
    """The optimizer steps that `tokens` take in all stages, or `max_steps` if that is fewer."""
    steps = sum(-(-stage.tokens // (stage.seq_len * stage.global_batch_size)) for stage in train.as_stages())
    return steps if train.max_steps is None else min(steps, train.max_steps)


def estimate_stages(
    plan: Plan, train: Train, boundary: int, device: str, objectives: Sequence[ObjectiveShape | None]
) -> Cost:
    """The cost of a training as `estimate_cost` gives it; of one with stages, that of the stage that needs most memory.

    `stages` of the result has a row for each stage, where there are any. A tensor that an earlier stage trained and
    this one freezes is held in float32, on a CPU beside its copy in 8 or 4 bits too. `objectives` has what
    `plan.objective.objective_shape` gives for each stage.
    """
    costs = []
    trained_before: set[int] = set()
    for stage, objective in zip(train.as_stages(), objectives, strict=True):
        cost = estimate_cost(plan, stage, boundary, device, objective=objective)
        trained = set(_layers(stage, plan, boundary))
        costs.append(_with_kept(cost, plan, stage, boundary, device, trained_before - trained))
        trained_before |= trained
    largest = max(costs, key=lambda cost: cost.asked.peak_bytes)
    if train.stages is None:
        return largest
    rows = [
        _row(name, stage, cost, plan, boundary)
        for name, stage, cost in zip(train.stage_names, train.as_stages(), costs, strict=True)
    ]
    note = f"the table is that of {train.stage_names[costs.index(largest)]}, which needs the most memory of all stages"
    return replace(largest, notes=(*largest.notes, note), stages=tuple(rows))


def _choice(stage: Train, plan: Plan, boundary: int) -> FreezeChoice:
    shape = planned_shape(plan.config, {tensor.name: (tensor.shape, tensor.dtype) for tensor in plan.tensors})
    return choose_frozen(stage, len(shape.layers), boundary, shape.tied)


def _layers(stage: Train, plan: Plan, boundary: int) -> tuple[int, ...]:
    return _choice(stage, plan, boundary).trained_layers


def _row(name: str, stage: Train, cost: Cost, plan: Plan, boundary: int) -> StageCost:
    choice, asked = _choice(stage, plan, boundary), cost.asked
    return StageCost(
        name=name,
        tokens=stage.tokens,
        steps=count_steps(replace(stage, max_steps=None)),
        trained_layers=asked.trained_layers,
        trained_parts=trained_parts(choice.frozen_parts),
        trained_parameters=asked.trained_parameters,
        lr=stage.lr,
        flops=stage.tokens * asked.total_token_flops,
        peak_bytes=asked.peak_bytes,
    )


def _with_kept(cost: Cost, plan: Plan, stage: Train, boundary: int, device: str, kept: set[int]) -> Cost:
    """`cost` with the layers `kept`, which trained before and are frozen now, in float32 instead of as stored."""
    if not kept:
        return cost
    shape = planned_shape(plan.config, {tensor.name: (tensor.shape, tensor.dtype) for tensor in plan.tensors})
    others = tuple(layer for layer in range(len(shape.layers)) if layer not in kept)
    alone = FreezeChoice(len(shape.layers), boundary, others, True, True, True)
    count = estimate(shape, alone, run_shape(stage, device)).trained_parameters
    asked: FreezeCost = cost.asked
    counted = shape.stored_bytes
    if stage.frozen_dtype != "keep":  # what trained is in no file, and waits in the host's memory
        counted = 0 if device == "cpu" else 4
    memory = replace(asked.memory, weights=asked.memory.weights + (4 - counted) * count)
    return replace(cost, asked=replace(asked, memory=memory, peak_bytes=memory.total))
