"""Texts for held-out curves over byte tokens, and curves that measure them."""

import numpy as np

from hybridizer.evaluate.texts import Document, TextSet
from hybridizer.pipeline.curve import curve_text
from hybridizer.recipe.models import Evaluate
from hybridizer.train.curve import CurveRequest
from support.scored_models import text_of

CONTEXT = 32


def like_training(count=8):
    """Documents like the training texts of support.train_runs, and not among them."""
    texts = [f"document {i} " + "abc " * (i % 7) for i in range(200, 200 + count)]
    documents = tuple(Document(np.frombuffer(text.encode(), np.uint8).astype(np.int64), len(text)) for text in texts)
    return TextSet("texts", "in-domain", documents, count, sum(len(d.tokens) for d in documents))


def random_bytes(role="general", name="news", count=8):
    """Documents of random tokens, which a training on words forgets."""
    return text_of(*range(20, 20 + count), name=name, role=role)


def request_of(*texts, every=2, **settings):
    """What measures `texts` every `every` steps, in windows of CONTEXT tokens."""
    return CurveRequest(tuple(curve_text(text, CONTEXT) for text in texts), Evaluate(every=every, **settings))
