"""Tiny models with their parts, and texts of random tokens, for the tests of scoring."""

import numpy as np

from hybridizer.evaluate.texts import Document, TextSet
from hybridizer.models.parts import find_parts
from support.train_models import tiny_model


def model_and_parts(model_type, **overrides):
    """A random tiny model in eval mode and its parts; weights are large enough for losses to differ."""
    model = tiny_model(model_type, **overrides).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.mul_(4.0)
    return model, find_parts(model)


def text_of(*lengths, seed=0, name="text", role="general"):
    """Documents with these numbers of random tokens, two bytes per token."""
    generator = np.random.default_rng(seed)
    documents = tuple(Document(generator.integers(3, 200, n), 2 * n) for n in lengths)
    return TextSet(name, role, documents, len(lengths), sum(lengths))
