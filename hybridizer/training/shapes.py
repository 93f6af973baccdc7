"""The numbers of a loaded model that an estimate needs."""

from __future__ import annotations

from torch import nn

from hybridizer.training.estimate import LayerShape, ModelShape
from hybridizer.training.freeze import ModelParts


def shape_of(parts: ModelParts, attention_width: int) -> ModelShape:
    """The shape of the model with these parts; `attention_width` (heads x head size) is in its config only."""
    table = next(parts.embedding.parameters())
    head = None if parts.head is None else next(parts.head.parameters())
    layers = tuple(_layer_shape(layer) for layer in parts.layers)
    vocabulary, width = table.shape
    return ModelShape(width, vocabulary, attention_width, layers, head is table, table.element_size())


def _layer_shape(layer: nn.Module) -> LayerShape:
    parameters = list(layer.parameters())
    matrices = [parameter for parameter in parameters if parameter.ndim == 2]
    return LayerShape(
        sum(parameter.numel() for parameter in parameters),
        sum(matrix.numel() for matrix in matrices),
        sum(matrix.shape[0] for matrix in matrices),
    )
