"""What a training will cost before it is run: parameters, operations a token, and memory by part, from sizes alone."""

from __future__ import annotations

from dataclasses import dataclass

from hybridizer.training.flops import TokenFlops, count_token_flops, full_training
from hybridizer.training.selectors import FreezeChoice

# Measured on SmolLM2-135M, glibc: freed temporaries leave holes among the activations that stay. CUDA's allocator
# rounds and caches far less.
HEAP_SPREAD = {"cpu": 1.45, "cuda": 1.08}
PROCESS_BYTES = {"cpu": 260_000_000, "cuda": 0}  # python, torch and transformers; on a GPU only tensors are counted


@dataclass(frozen=True)
class LayerShape:
    """One decoder layer: all its parameters, those in matrices, and the matrices' output widths added up."""

    parameters: int
    matrix_parameters: int
    output_width: int


@dataclass(frozen=True)
class ModelShape:
    """A causal language model in numbers: `attention_width` is heads x head size, `stored_bytes` a parameter's."""

    width: int
    vocabulary: int
    attention_width: int
    layers: tuple[LayerShape, ...]
    tied: bool
    stored_bytes: int


@dataclass(frozen=True)
class RunShape:
    """How it will be trained: `batch_tokens` go through at a time, `context` is the mean number a token attends to.

    `compute_bytes` is 4 for float32 and 2 for bfloat16, `moment_bytes` what the optimizer keeps a parameter (8, or 2
    for the 8-bit kind).
    """

    batch_tokens: int
    context: float
    compute_bytes: int = 4
    moment_bytes: int = 8
    recompute_layers: bool = False
    loss_chunk_bytes: int = 64 * 2**20
    device: str = "cpu"


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a step, by part. The peak is at the end of the forward pass, or of the backward pass."""

    process: int
    weights: int
    masters: int
    gradients: int
    optimizer: int
    activations: int
    loss: int

    @property
    def total(self) -> int:
        """The peak: gradients grow while activations shrink, so only the larger of the two counts."""
        fixed = self.process + self.weights + self.masters + self.optimizer
        return fixed + max(self.activations + self.loss, self.gradients)


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
        """What freezing saves here, said plainly."""
        compute = 1 - self.token_flops.total / self.full_token_flops.total
        memory = 1 - self.memory.total / self.full_memory.total
        states = 1 - self.trained_parameters / (self.trained_parameters + self.frozen_parameters)
        return (
            f"Freezing saves {compute:.0%} of the operations and {memory:.0%} of the memory of full training "
            f"({states:.0%} of gradients, masters and optimizer state): activation gradients still cross frozen layers "
            "above trained ones."
        )


def estimate(shape: ModelShape, choice: FreezeChoice, run: RunShape) -> Estimate:
    """What training under `choice` costs. Memory is within 15% of what scripts/bench_train.py measures for models of
    attention layers; operations are exact for matrices and count attention's two products."""
    full = full_training(choice)
    trained, frozen = _parameters(shape, choice)
    return Estimate(
        trained,
        frozen,
        _flops(shape, choice, run),
        _flops(shape, full, run),
        _memory(shape, choice, run),
        _memory(shape, full, run),
    )


def _parameters(shape: ModelShape, choice: FreezeChoice) -> tuple[int, int]:
    """Trained and frozen parameters; a tied table counts once."""
    table = shape.width * shape.vocabulary
    parts = [(layer.parameters, i in choice.frozen_layers) for i, layer in enumerate(shape.layers)]
    parts += [(table, choice.frozen_embedding), (shape.width, choice.frozen_final_norm)]
    parts += [] if shape.tied else [(table, choice.frozen_head)]
    frozen = sum(count for count, is_frozen in parts if is_frozen)
    return sum(count for count, _ in parts) - frozen, frozen


def _flops(shape: ModelShape, choice: FreezeChoice, run: RunShape) -> TokenFlops:
    matrices = [layer.matrix_parameters for layer in shape.layers]
    return count_token_flops(choice, matrices, shape.width * shape.vocabulary, shape.attention_width, run.context)


def _memory(shape: ModelShape, choice: FreezeChoice, run: RunShape) -> Memory:
    trained, frozen = _parameters(shape, choice)
    low = run.compute_bytes < 4
    loss = run.loss_chunk_bytes + run.batch_tokens * shape.width * run.compute_bytes
    if not choice.frozen_head:
        loss += 4 * shape.width * shape.vocabulary  # the head's gradient, made with the loss
    elif run.compute_bytes != shape.stored_bytes:
        loss += run.compute_bytes * shape.width * shape.vocabulary  # the frozen head, cast for the loss
    return Memory(
        process=PROCESS_BYTES[run.device],
        weights=frozen * shape.stored_bytes + trained * run.compute_bytes,
        masters=4 * trained if low else 0,
        gradients=4 * trained,
        optimizer=run.moment_bytes * trained,
        activations=round(_activations(shape, choice, run) * HEAP_SPREAD[run.device]),
        loss=loss,
    )


def _activations(shape: ModelShape, choice: FreezeChoice, run: RunShape) -> int:
    """Bytes kept for the backward pass by all layers from the lowest trained one on.

    A layer keeps what its matrices give, but for the two sums into the residual stream, and the stream before both;
    attention keeps its result; a layer that trains keeps the normed inputs of its matrices as well.
    """
    lowest = 0 if not choice.frozen_embedding else min(choice.trained_layers, default=len(shape.layers))
    kept = []
    for number, layer in enumerate(shape.layers[lowest:], start=lowest):
        widths = layer.output_width + shape.attention_width
        widths += 0 if number in choice.frozen_layers else 2 * shape.width
        kept.append(widths)
    per_token = len(kept) * shape.width + max(kept, default=0) if run.recompute_layers else sum(kept)
    return per_token * run.batch_tokens * run.compute_bytes
