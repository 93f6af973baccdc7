"""Which layers run again in the backward pass, so that a step stays within a budget of memory."""

from __future__ import annotations

from dataclasses import replace

from hybridizer.models.hardware import device_bytes
from hybridizer.plan.dimensions import ModelShape, RunShape
from hybridizer.plan.freeze import FreezeChoice
from hybridizer.plan.memory import estimate, kept_widths
from hybridizer.recipe.models import AUTO, Train

# Of the device's memory, what `auto` plans for: the estimate is within 15%.
AUTO_SHARE = 0.85


def memory_budget(train: Train, device: str) -> int | None:
    """The bytes that `gradient_checkpointing` limits a step to on a device of that type.

    None where it names no limit, and for `auto` where the memory of the device is not known.
    """
    asked = train.gradient_checkpointing
    if asked != AUTO:
        return None if isinstance(asked, (bool, str)) else asked
    size = device_bytes(device)
    return None if size is None else int(AUTO_SHARE * size)


def with_recomputing(train: Train, device: str, shape: ModelShape, choice: FreezeChoice, run: RunShape) -> RunShape:
    """`run` with the layers that are recomputed on a device of that type: all, none, or those that the budget needs."""
    if train.gradient_checkpointing is True:
        return replace(run, recomputed_layers=tuple(range(len(shape.layers))))
    budget = memory_budget(train, device)
    return run if budget is None else within_budget(shape, choice, run, budget)


def within_budget(shape: ModelShape, choice: FreezeChoice, run: RunShape, budget: int) -> RunShape:
    """`run` with the fewest layers recomputed whose estimated peak is at most `budget` bytes.

    Where no number of layers is enough, the peak is the lowest that there is. Layers are taken in the order of the
    bytes that they save per operation that is repeated: of equal layers trained ones first, which keep more than frozen
    ones, and then those near the input, which are kept the longest. Those that keep nothing are never recomputed.
    """
    order = recomputing_order(shape, choice, run)
    peaks = []
    for count in range(len(order) + 1):
        found = replace(run, recomputed_layers=tuple(sorted(order[:count])))
        peaks.append((estimate(shape, choice, found).memory.total, found))
        if peaks[-1][0] <= budget:
            return found
    return min(peaks, key=lambda peak: peak[0])[1]


def recomputing_order(shape: ModelShape, choice: FreezeChoice, run: RunShape) -> list[int]:
    """The layers that save memory if they are recomputed, the one that saves most per repeated operation first."""
    saved = {}
    for number, kept in kept_widths(shape, choice, run).items():
        layer = shape.layers[number]
        repeated = 2 * layer.matrix_parameters + 4 * layer.attention_width * run.context
        if kept > shape.width:
            saved[number] = (kept - shape.width) / max(1.0, repeated)
    return sorted(saved, key=lambda number: (-saved[number], number))


def repeated_flops(shape: ModelShape, run: RunShape) -> float:
    """The operations per token of the layers of `run` that are recomputed."""
    end = len(shape.layers) if run.student_layers is None else run.student_layers
    layers = [shape.layers[number] for number in run.recomputed_layers if number < end]
    return sum(2 * layer.matrix_parameters + 4 * layer.attention_width * run.context for layer in layers)
