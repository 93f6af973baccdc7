"""Floating-point operations per training token, from sizes alone.

With N parameters in matrices and a trained share t, training the shallow part costs (4 + 2t)N, the deep part (2 + 4t)N,
everything 6N; attention over the context is added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hybridizer.plan.dimensions import ModelShape, ObjectiveShape
from hybridizer.plan.freeze import FreezeChoice


@dataclass(frozen=True)
class TokenFlops:
    """Floating-point operations (a multiply-add counts two) for one token, attention included in each."""

    forward: float
    activation_gradients: float
    weight_gradients: float
    teacher: float = 0.0  # the forward pass of a teacher

    @property
    def total(self) -> float:
        """All together."""
        return self.forward + self.activation_gradients + self.weight_gradients + self.teacher


def count_token_flops(
    choice: FreezeChoice,
    layer_parameters: Sequence[int],
    head_parameters: int,
    attention_widths: Sequence[int],
    context: float,
    adapters: Sequence[int] | None = None,
) -> TokenFlops:
    """The operations per token under `choice`.

    `layer_parameters` are the matrix parameters used per token in each layer (of experts, the chosen ones);
    `attention_widths` are heads x head size in each, 0 without attention; `context` the mean number of tokens that a
    token attends to: half the row length for causal attention, half the mean document length when documents are packed.
    Activation gradients stop below the first trained layer. With `adapters`, the parameters of each layer's, those of
    trained layers work and train beside the matrices, which do not train.
    """
    attention = [4 * width * context for width in attention_widths]  # scores, and their sum over values
    forward = sum(2 * n for n in layer_parameters) + sum(attention) + 2 * head_parameters
    lowest = 0 if not choice.frozen_embedding else min(choice.trained_layers, default=choice.num_layers)
    activation = sum(2 * n for n in layer_parameters[lowest:]) + 2 * sum(attention[lowest:]) + 2 * head_parameters
    moving = layer_parameters if adapters is None else adapters
    trained = sum(2 * moving[layer] for layer in choice.trained_layers)
    beside = 0 if adapters is None else trained
    head = 0 if choice.frozen_head else 2 * head_parameters
    return TokenFlops(forward + beside, activation + beside, trained + head)


def model_token_flops(
    shape: ModelShape,
    choice: FreezeChoice,
    context: float,
    adapter_rank: int = 0,
    objective: ObjectiveShape | None = None,
) -> TokenFlops:
    """The cost of one token of this model under `choice`, which attends to `context` tokens on average.

    With an `adapter_rank` above 0 only the adapters in the layers that train are trained. An `objective` adds its
    teacher, and may leave out the last layers and the head.
    """
    layers, table = shape.layers, shape.width * shape.vocabulary
    if objective is not None and objective.student_layers is not None:
        end, table = objective.student_layers, 0
        layers = layers[:end]
        choice = replace(choice, num_layers=end, frozen_layers=tuple(n for n in choice.frozen_layers if n < end))
    matrices = [layer.matrix_parameters for layer in layers]
    attention = [layer.attention_width for layer in layers]
    adapters = [adapter_rank * layer.adapter_width for layer in layers] if adapter_rank else None
    found = count_token_flops(choice, matrices, table, attention, context, adapters)
    return found if objective is None else replace(found, teacher=_teacher_flops(objective, context))


def _teacher_flops(objective: ObjectiveShape, context: float) -> float:
    teacher = objective.teacher
    layers = teacher.layers[: objective.teacher_layers]
    head = 2 * teacher.width * teacher.vocabulary if objective.teacher_head else 0
    return sum(2 * layer.matrix_parameters + 4 * layer.attention_width * context for layer in layers) + head


def full_training(choice: FreezeChoice) -> FreezeChoice:
    """The choice that trains everything in the same model, for comparison."""
    return FreezeChoice(choice.num_layers, choice.boundary, (), False, False, False)
