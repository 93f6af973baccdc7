"""Bits per document: what a model needs to write down each token of a text, given those before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from hybridizer.core.bootstrap import Array
from hybridizer.core.errors import InputError, Problem, RunError
from hybridizer.evaluate.texts import TextSet
from hybridizer.models.batching import make_batches
from hybridizer.models.objective import CausalLMLoss
from hybridizer.models.parts import Parts

BATCH_ROWS = 64


@dataclass(frozen=True)
class Window:
    """Tokens `begin` to `end` of one document as one row of a batch; those from `first` on are scored there."""

    document: int
    begin: int
    first: int
    end: int


def score_documents(
    model: nn.Module, parts: Parts, text: TextSet, context: int, advance: Callable[[int], None] = lambda tokens: None
) -> Array:
    """The bits of each document, float64 (documents,): the sum of -log2 p over its tokens but the first.

    Documents longer than `context` go through in windows that overlap by half, see `cut_windows`. Rows of one length
    share a batch, so that nothing is padded, and no figure depends on its neighbours whatever the kind of layer. Token
    losses are float32, sums float64. `advance` is told of the tokens of each batch; their sum is `num_scored_tokens`.

    The end token that the tokenizer puts behind a document counts, and so does what it puts before it, but for the
    first token: a tokenizer that begins with the text itself leaves that token free, before and after training alike.
    Raises InputError for token ids that the model has no embedding for, RunError where a loss is not finite.
    """
    _refuse_unknown_tokens(parts, text)
    objective = CausalLMLoss(model, parts)
    windows = [window for i, d in enumerate(text.documents) for window in cut_windows(i, len(d.tokens), context)]
    bits = np.zeros(len(text.documents))
    for batch in make_batches([window.end - window.begin for window in windows], BATCH_ROWS):
        rows = [windows[i] for i in batch]
        ids = np.stack([text.documents[row.document].tokens[row.begin : row.end] for row in rows])
        losses = objective.token_losses(torch.from_numpy(ids).to(parts.device)).cpu().double().numpy() / math.log(2)
        for row, of_tokens in zip(rows, losses, strict=True):
            bits[row.document] += of_tokens[row.first - row.begin - 1 :].sum()
        advance(ids.size)
    _refuse_broken(bits, text)
    return bits


def cut_windows(document: int, length: int, context: int) -> Iterator[Window]:
    """Windows over `length` tokens, at most `context` long, in which every token but the first is scored once.

    Each begins half a window after the one before it, the last one earlier so that it is as long as the others: beyond
    the first window every token has at least context / 2 before it.
    """
    assert context >= 2, context
    scored = 1
    for begin in range(0, length, context // 2):
        end = min(begin + context, length)
        yield Window(document, max(0, end - context), scored, end)
        scored = end
        if end == length:
            return


def num_scored_tokens(text: TextSet, context: int) -> int:
    """How many tokens go through the model for `text`, overlaps included."""
    windows = (window for d in text.documents for window in cut_windows(0, len(d.tokens), context))
    return sum(window.end - window.begin for window in windows)


def _refuse_unknown_tokens(parts: Parts, text: TextSet) -> None:
    known = len(next(parts.embedding.parameters()))
    largest = max((int(document.tokens.max()) for document in text.documents), default=0)
    if largest >= known:
        what = f"token {largest}, and the model has embeddings for {known}: tokenizer and model do not match."
        raise InputError(Problem(f"text '{text.name}'", what, "Use the tokenizer the model was trained with."))


def _refuse_broken(bits: Array, text: TextSet) -> None:
    broken = np.flatnonzero(~np.isfinite(bits))
    if len(broken):
        what = f"the loss is not a number on {len(broken)} of {len(bits)} documents, the first being {broken[0] + 1}."
        fix = "The weights are damaged, or their precision is too low for this model: use float32 or bfloat16."
        raise RunError(Problem(f"text '{text.name}'", what, fix))
