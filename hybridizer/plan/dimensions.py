"""A model and its training in numbers: what operations and memory are estimated from."""

from __future__ import annotations

from dataclasses import dataclass

BLOCK = 64  # 4-bit numbers with one scale, or as many as divide a row
MIN_BLOCK = 16  # weights stay as stored where the row length is not divisible by it
VALUE_BYTES = {"int8": 1.0, "fp8": 1.0, "nf4": 0.5}
SCALE_BYTES = 2
LARGE_ELEMENTS = 2**23  # 32 MiB of float32: such a block is never in the heap, it is mapped
# Of float32 logits in the loss, by device: what models.loss uses, which imports torch.
LOSS_CHUNK_BYTES = {"cpu": 64 * 2**20, "cuda": 1024 * 2**20}


@dataclass(frozen=True)
class LayerShape:
    """One decoder layer: all its parameters, and those in matrices used per token (of experts, the chosen ones).

    `kept_width` is how many numbers are kept per token for the backward pass, `trained_width` how many more when the
    layer trains; `attention_width` is heads x head size, 0 without attention. `large_parameters` are those in tensors
    of at least LARGE_ELEMENTS. A low-rank adapter of rank r on each of the `num_linears` linear modules has r times
    `adapter_width` parameters, and the layer keeps `adapted_width` more numbers than a frozen one, and `dropout_width`
    more again if the adapters have dropout. `largest_parameters` are those of its largest tensor. `low_parameters` are
    those in linear modules that can be kept in 8 or 4 bits while they do not train, `low_rows` the rows of these, and
    `low_blocks` their blocks with one scale in 4 bits.
    """

    parameters: int
    matrix_parameters: int
    kept_width: int
    trained_width: int
    attention_width: int
    large_parameters: int = 0
    num_linears: int = 0
    adapter_width: int = 0
    adapted_width: int = 0
    dropout_width: int = 0
    largest_parameters: int = 0
    low_parameters: int = 0
    low_rows: int = 0
    low_blocks: int = 0

    def low_bytes(self, kind: str) -> int:
        """What `low_parameters` take in int8, fp8 or nf4, scales included."""
        scales = self.low_blocks if kind == "nf4" else self.low_rows
        return round(VALUE_BYTES[kind] * self.low_parameters) + SCALE_BYTES * scales


@dataclass(frozen=True)
class ModelShape:
    """A causal language model in numbers; `stored_bytes` are those of a parameter in the checkpoint.

    `stateful_layers` carry state along a row: the operations and memory of their scans depend on the kernels and are
    not estimated here.
    """

    width: int
    vocabulary: int
    layers: tuple[LayerShape, ...]
    tied: bool
    stored_bytes: int
    stateful_layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class ObjectiveShape:
    """What an objective other than next-token adds to a step, and what it leaves out.

    `teacher_layers` layers of a frozen teacher run forwards, and its head with `teacher_head`. `student_layers` layers
    of the student run, and neither the others nor its head; None: all do. `num_states` hidden states are compared.
    `shared_parameters` of the teacher are frozen tensors of the student and in memory once. With `kept` above 0 the
    teacher runs alone before the training, and so many of its tokens are kept on disk for each token.
    """

    teacher: ModelShape
    teacher_layers: int
    teacher_head: bool
    student_layers: int | None = None
    num_states: int = 0
    shared_parameters: int = 0
    kept: int = 0

    def teacher_bytes(self, product_bytes: int) -> int:
        """The bytes of the teacher's weights that the student does not hold, in the smaller of both precisions."""
        beside = 0 if self.kept else model_parameters(self.teacher) - self.shared_parameters
        return beside * min(self.teacher.stored_bytes, product_bytes)


@dataclass(frozen=True)
class RunShape:
    """How it will be trained: `batch_tokens` go through at a time, `context` is the mean number a token attends to.

    `compute_bytes` is 4 for float32 and 2 for bfloat16; `product_bytes` is the same for matrix products, 4 where a CPU
    multiplies bfloat16 in float32. `moment_bytes` is what the optimizer keeps per parameter (8, or 2 for 8-bit Adam),
    `unpacked_bytes` what its update takes beside per parameter of the tensor that it is at.
    `frozen_dtype` is that of frozen linear layers, "" for as stored; `pages_stay`: their stored bytes stay in memory
    too, as on a CPU without Linux.
    `recomputed_layers` keep their input only and run again in the backward pass. `accumulates`: a step has several
    batches, whose gradients add up. `adapter_rank` is the rank of the low-rank adapters that train in place of whole
    matrices, 0 for none; `adapter_dropout`: they have dropout.
    """

    batch_tokens: int
    context: float
    compute_bytes: int = 4
    product_bytes: int = 4
    moment_bytes: int = 8
    unpacked_bytes: int = 0
    recomputed_layers: tuple[int, ...] = ()
    accumulates: bool = False
    loss_chunk_bytes: int = LOSS_CHUNK_BYTES["cpu"]
    device: str = "cpu"
    adapter_rank: int = 0
    adapter_dropout: bool = False
    objective: ObjectiveShape | None = None
    frozen_dtype: str = ""
    pages_stay: bool = False

    @property
    def student_layers(self) -> int | None:
        """How many layers of the student run, without its head; None: all, and the head."""
        return None if self.objective is None else self.objective.student_layers


def model_parameters(shape: ModelShape) -> int:
    """All parameters of a model, a tied tensor counted once."""
    tables = (1 if shape.tied else 2) * shape.width * shape.vocabulary
    return sum(layer.parameters for layer in shape.layers) + tables + shape.width


def kept_bytes(tokens: int, top_k: int) -> int:
    """The bytes on disk of a teacher's `top_k` tokens for each of `tokens` tokens: ids, and ln p with the others'."""
    return tokens * (4 * top_k + 2 * (top_k + 1)) if top_k else 0
