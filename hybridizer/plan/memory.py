"""Estimated memory of a training before it runs, by part, and what freezing saves of it and of the operations."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hybridizer.plan.dimensions import LARGE_ELEMENTS, LayerShape, ModelShape, ObjectiveShape, RunShape
from hybridizer.plan.flops import TokenFlops, full_training, model_token_flops
from hybridizer.plan.freeze import FreezeChoice

# What glibc's heap holds beyond the living tensors in it, as a share of those that come and go in a step: of
# activations and a chunk of logits, with the heap trimmed in the middle of the forward pass (0.5 without; see
# models.memory.trimmed_heap and scripts/bench_memory.py), and of gradients that are there at the peak. Masters and
# optimizer state stay, and scatter nothing. On CUDA living tensors are what is counted.
HEAP_SPREAD = {"cpu": 0.25, "cuda": 0.0}
ADAPTED_SPREAD = {"cpu": 0.45, "cuda": 0.0}  # adapters free a block beside each that is kept: 0.2 and 0.5 were measured
GRADIENT_SPREAD = {"cpu": 0.8, "cuda": 0.0}
PROCESS_BYTES = {"cpu": 410_000_000, "cuda": 0}  # python, torch 2.13, transformers 5.23 and a model's code
# What tokenising, splicing and verifying leave behind in the process of a build: 65 to 130 MB was measured, 65 of them
# with --no-load. A probe has a process of its own.
BUILD_BYTES = {"cpu": 90_000_000, "cuda": 0}


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a step, by part.

    On a CPU the weights are pages of the checkpoint's file, which stays mapped as long as one frozen tensor is in it:
    pages of trained tensors that compute in another precision than they are stored in count beside what computes.
    The peak is where the forward pass ends, with all activations and the loss, where the backward pass ends, with all
    gradients, or in the update: `activations`, `loss`, `gradients` and what the update takes, which is part of
    `optimizer`, are what each is at that moment. `allocator` is what the heap holds beyond living tensors.
    `teacher` are the weights of one, without those that the student holds.
    """

    process: int
    weights: int
    masters: int
    optimizer: int
    gradients: int
    activations: int
    loss: int
    allocator: int
    teacher: int = 0

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(vars(self).values())


@dataclass(frozen=True)
class Estimate:
    """The cost of one freeze choice, and of training everything in the same model."""

    trained_parameters: int
    frozen_parameters: int
    token_flops: TokenFlops
    full_token_flops: TokenFlops
    memory: Memory
    full_memory: Memory

    def sentence(self) -> str:
        """What freezing saves, for the reader."""
        compute = 1 - self.token_flops.total / self.full_token_flops.total
        memory = 1 - self.memory.total / self.full_memory.total
        states = 1 - self.trained_parameters / (self.trained_parameters + self.frozen_parameters)
        return (
            f"Freezing saves {compute:.0%} of the operations and {memory:.0%} of the memory of full training "
            f"({states:.0%} of gradients, masters and optimizer state): activation gradients still cross frozen layers "
            "above trained ones."
        )


def estimate(shape: ModelShape, choice: FreezeChoice, run: RunShape) -> Estimate:
    """What training under `choice` costs, from `freeze.with_adapters` where adapters train.

    Memory is within 15% of what scripts/bench_memory.py measures in real builds of models of attention layers on a CPU;
    operations are exact for matrices and count attention's two products.
    """
    full, full_run = full_training(choice), replace(run, adapter_rank=0, objective=None)
    trained, frozen = _parameters(shape, choice, run.adapter_rank)
    return Estimate(
        trained,
        frozen,
        model_token_flops(shape, choice, run.context, run.adapter_rank, run.objective),
        model_token_flops(shape, full, run.context),
        _memory(shape, choice, run),
        _memory(shape, full, full_run),
    )


def _parameters(shape: ModelShape, choice: FreezeChoice, rank: int, large: bool = True) -> tuple[int, int]:
    """Trained and frozen parameters, without those in large tensors if not `large`; a tied tensor counts once.

    With adapters of `rank` above 0 only the adapters train; everything else is frozen.
    """
    table = shape.width * shape.vocabulary
    if not large and table >= LARGE_ELEMENTS:
        table = 0
    parts = [
        (layer.parameters - (0 if large else layer.large_parameters), i in choice.frozen_layers)
        for i, layer in enumerate(shape.layers)
    ]
    parts += [(table, choice.frozen_embedding), (shape.width, choice.frozen_final_norm)]
    parts += [] if shape.tied else [(table, choice.frozen_head)]
    total = sum(count for count, _ in parts)
    if rank:
        return rank * sum(shape.layers[layer].adapter_width for layer in choice.trained_layers), total
    frozen = sum(count for count, is_frozen in parts if is_frozen)
    return total - frozen, frozen


def _memory(shape: ModelShape, choice: FreezeChoice, run: RunShape) -> Memory:
    trained, frozen = _parameters(shape, choice, run.adapter_rank)
    low = run.compute_bytes < 4
    weights = frozen * shape.stored_bytes + trained * run.compute_bytes
    if frozen and not run.adapter_rank and run.device == "cpu" and run.compute_bytes != shape.stored_bytes:
        weights += trained * shape.stored_bytes
    weights += _kept_low(shape, choice, run)
    masters, optimizer = 4 * trained if low else 0, run.moment_bytes * trained
    teacher = 0 if run.objective is None else run.objective.teacher_bytes(run.product_bytes)
    small = 4 * _parameters(shape, choice, run.adapter_rank, large=False)[0]
    spread = (ADAPTED_SPREAD if run.adapter_rank else HEAP_SPREAD)[run.device]
    found = []
    for moment in _moments(shape, choice, run, trained):
        holes = spread * moment.passed
        holes += GRADIENT_SPREAD[run.device] * small if moment.gradients else 0
        found.append(
            Memory(
                process=PROCESS_BYTES[run.device] + BUILD_BYTES[run.device],
                weights=weights,
                masters=masters,
                optimizer=optimizer + moment.unpacked,
                gradients=moment.gradients,
                activations=moment.activations,
                loss=moment.loss,
                allocator=round(holes),
                teacher=teacher,
            )
        )
    return max(found, key=lambda memory: memory.total)


def _kept_low(shape: ModelShape, choice: FreezeChoice, run: RunShape) -> int:
    """Bytes of weights more than with all as stored, a negative number: of the layers kept in 8 or 4 bits."""
    if not run.frozen_dtype:
        return 0
    layers = shape.layers if run.adapter_rank else [shape.layers[number] for number in choice.frozen_layers]
    stored = 0 if run.pages_stay else shape.stored_bytes
    return sum(layer.low_bytes(run.frozen_dtype) - stored * layer.low_parameters for layer in layers)


@dataclass(frozen=True)
class _Moment:
    """Bytes that live at one moment of a step, and `passed`: what scatters the heap, activations and logits.

    Blocks that come and go between two kept ones leave room that the next layer's do not fit into. That is as much
    where a layer keeps its input only as where it keeps everything.
    """

    gradients: int = 0
    activations: int = 0
    loss: int = 0
    unpacked: int = 0
    passed: int = 0


def _moments(shape: ModelShape, choice: FreezeChoice, run: RunShape, trained: int) -> list[_Moment]:
    """Where the forward pass ends, the last layer is recomputed, the backward pass ends, and the update."""
    waiting = 4 * trained if run.accumulates else 0
    kept, one_layer, again, passed = _activations(shape, choice, run)
    loss = _loss(shape, choice, run)
    passed += min(loss, run.loss_chunk_bytes * _half_chunks(run.objective) // 2)
    # A tied embedding's gradient is a table beside the head's; low-precision gradients lie beside those they add to.
    twice = shape.tied and not choice.frozen_embedding and run.student_layers is None
    beside = run.compute_bytes * shape.width * shape.vocabulary if twice else 0
    beside += waiting // 2 if run.compute_bytes < 4 else 0
    unpacked = run.unpacked_bytes * _largest_trained(shape, choice, run)
    moments = [
        _Moment(waiting, kept, loss, passed=passed),
        _Moment(4 * trained + beside, one_layer, passed=one_layer),
        _Moment(4 * trained, unpacked=unpacked),
    ]
    if run.recomputed_layers:
        moments.append(_Moment(waiting, again, passed=passed))
    return moments


def _half_chunks(objective: ObjectiveShape | None) -> int:
    """The halves of a chunk of logits that a loss takes and frees again; of hidden states as much as two chunks."""
    if objective is None or objective.kept:
        return 2
    return 3 if objective.teacher_head else 4


def _largest_trained(shape: ModelShape, choice: FreezeChoice, run: RunShape) -> int:
    """The parameters of the largest tensor that trains; 0 for adapters, which are small."""
    if run.adapter_rank:
        return 0
    table = 0 if choice.frozen_embedding and (shape.tied or choice.frozen_head) else shape.width * shape.vocabulary
    return max([table, *(shape.layers[layer].largest_parameters for layer in choice.trained_layers)])


def _loss(shape: ModelShape, choice: FreezeChoice, run: RunShape) -> int:
    """Logits of one chunk, the gradient of the hidden states, and what the loss holds of the head.

    For an objective its own and the teacher's hidden states too, in float32 where they are compared, or what is kept of
    its logits: numbers and ln p, as they are stored.
    """
    objective = run.objective
    if objective is not None and objective.kept:
        kept = run.batch_tokens * 2 * (6 * objective.kept + 2)  # as it is read, and by token of the batch
        return kept + _loss(shape, choice, replace(run, objective=None))
    states = 0 if objective is None else 4 * run.batch_tokens * shape.width * (2 * objective.num_states + 1)
    if run.student_layers is not None:
        return states
    table = shape.width * shape.vocabulary
    chunk = min(run.loss_chunk_bytes, 4 * run.batch_tokens * shape.vocabulary)
    chunk += chunk // 2 if run.product_bytes < 4 else 0  # logits are made in low precision and copied
    chunk += chunk // 2 if objective is not None and objective.teacher_head else 0  # the teacher's half of it
    loss = states + chunk + run.batch_tokens * shape.width * run.product_bytes
    held = shape.stored_bytes if choice.frozen_head else run.compute_bytes
    loss += run.product_bytes * table if run.product_bytes != held else 0  # the head, cast
    if choice.frozen_head:
        return loss
    # Its gradient is made with the loss, in float32, and passed on in the head's precision. A low-precision product is
    # a table beside it, which a CPU sums up in float32 first (measured: 10 bytes per parameter in all).
    summed = 4 if run.product_bytes < 4 and run.device == "cpu" else 0
    return loss + 4 * table + (run.compute_bytes * table if run.compute_bytes < 4 else 0) + summed * table


def _activations(shape: ModelShape, choice: FreezeChoice, run: RunShape) -> tuple[int, int, int, int]:
    """Bytes kept for the backward pass.

    By all layers, by the largest of them, at most while one runs again, and what all would keep if none ran again. A
    recomputed layer keeps its input until the backward pass reaches it, and then everything, beside what the layers
    before it keep.
    """
    widths = kept_widths(shape, choice, run)
    again = set(run.recomputed_layers)
    before = highest = 0
    for number, width in widths.items():
        kept = shape.width if number in again else width
        highest = max(highest, before + width if number in again else 0)
        before += kept
    scale = run.batch_tokens * run.compute_bytes
    return before * scale, max(widths.values(), default=0) * scale, highest * scale, sum(widths.values()) * scale


def kept_widths(shape: ModelShape, choice: FreezeChoice, run: RunShape) -> dict[int, int]:
    """How many numbers per token each layer keeps for the backward pass, from the lowest trained one on."""
    lowest = 0 if not choice.frozen_embedding else min(choice.trained_layers, default=len(shape.layers))
    return {
        number: layer.kept_width + (0 if number in choice.frozen_layers else _trained_width(layer, run))
        for number, layer in enumerate(shape.layers[lowest : run.student_layers], start=lowest)
    }


def _trained_width(layer: LayerShape, run: RunShape) -> int:
    """How many more numbers per token a layer keeps when it or its adapters train."""
    if not run.adapter_rank:
        return layer.trained_width
    dropped = layer.dropout_width if run.adapter_dropout else 0
    return layer.adapted_width + run.adapter_rank * layer.num_linears + dropped
