"""The shape of a loaded model, to compare planned shapes with."""

from hybridizer.models.parts import ModelParts
from hybridizer.plan.dimensions import ModelShape
from hybridizer.plan.shapes import layer_shape


def shape_of(parts: ModelParts, attention_width: int) -> ModelShape:
    """The shape of the model with these parts, all of whose layers have the same attention and process every token.

    `attention_width` (heads x head size) is in its config only.
    """
    table = next(parts.embedding.parameters())
    head = None if parts.head is None else next(parts.head.parameters())
    vocabulary, width = table.shape
    layers = tuple(
        layer_shape({name: tuple(p.shape) for name, p in layer.named_parameters()}, width, attention_width)
        for layer in parts.layers
    )
    return ModelShape(width, vocabulary, layers, head is table, table.element_size())
