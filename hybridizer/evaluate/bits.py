"""Bits per document: -log2 of the probability of each token, given those before it, summed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hybridizer.core.bootstrap import Array
from hybridizer.core.errors import InputError, Problem, RunError
from hybridizer.evaluate.fitting import batch_tokens, run_batches
from hybridizer.evaluate.texts import LEAST_TOKENS, TextSet
from hybridizer.models.batching import MAX_BATCH_TOKENS, make_batches
from hybridizer.models.objective import CausalLMLoss
from hybridizer.models.parts import Parts

BATCH_ROWS = 64


@dataclass(frozen=True)
class Window:
    """Tokens `begin` to `end` of one document as one row of a batch; those from `first` on are scored there.

    `num_prefix` tokens are repeated before them: what the tokenizer puts before any text, in all windows but the first.
    """

    document: int
    begin: int
    first: int
    end: int
    num_prefix: int = 0

    @property
    def num_tokens(self) -> int:
        """The length of the row."""
        return self.num_prefix + self.end - self.begin


@dataclass(frozen=True)
class TextBatch:
    """Windows of one length: their token ids, int64 (rows, tokens), and which tokens of which document they score."""

    ids: npt.NDArray[np.int64]
    rows: tuple[Window, ...]


def score_documents(
    model: nn.Module, parts: Parts, text: TextSet, context: int, advance: Callable[[int], None] = lambda tokens: None
) -> Array:
    """The bits of each document, float64 (documents,): the sum of -log2 p over its tokens except the first.

    Documents longer than `context` go through in windows that overlap by half, each beginning with the text's prefix,
    see `cut_windows`. Rows of one length share a batch, so that nothing is padded and no figure depends on its
    neighbours, for any kind of layer. Token losses are float32, sums float64. `advance` gets the tokens of each
    batch; their sum is `num_scored_tokens`.

    The end token after a document counts, and so do the tokens of the tokenizer's prefix, except the first token: with
    a tokenizer without a prefix the first token of the text is free, before and after training alike.
    Raises InputError for token ids that the model has no embedding for, RunError where a loss is not finite.
    """
    refuse_unknown_tokens(parts, text)
    objective = CausalLMLoss(model, parts)

    def token_losses(ids: Tensor) -> Tensor:
        return objective.token_losses(ids.to(parts.device))

    return sum_bits(token_losses, text, context, batch_tokens(parts.device), advance)


def sum_bits(
    token_losses: Callable[[Tensor], Tensor],
    text: TextSet,
    context: int,
    max_tokens: int = MAX_BATCH_TOKENS,
    advance: Callable[[int], None] = lambda tokens: None,
) -> Array:
    """`score_documents` of any model, given by its token losses: ids (rows, tokens) on the host to (rows, tokens - 1).

    A batch has at most `max_tokens`, or one row.
    """
    bits = np.zeros(len(text.documents))

    def losses_of(rows: tuple[Window, ...]) -> tuple[TextBatch, Tensor]:
        batch = _fill(text, rows)
        return batch, token_losses(torch.from_numpy(batch.ids))

    windows = list(_windows(text, context))
    lengths = [window.num_tokens for window in windows]
    batches = make_batches(lengths, BATCH_ROWS, max_tokens)
    rows_of_batches = [tuple(windows[i] for i in batch) for batch in batches]
    for _, (batch, losses) in run_batches(rows_of_batches, losses_of, f"text '{text.name}'"):
        add_bits_(bits, batch, losses)
        advance(batch.ids.size)
    refuse_broken(bits, text)
    return bits


def text_batches(text: TextSet, context: int) -> Iterator[TextBatch]:
    """The windows of `text` in batches of equal length, in the order in which they are scored."""
    windows = list(_windows(text, context))
    for batch in make_batches([window.num_tokens for window in windows], BATCH_ROWS):
        yield _fill(text, tuple(windows[i] for i in batch))


def _fill(text: TextSet, rows: tuple[Window, ...]) -> TextBatch:
    """The batch of windows of one length, with the tokens of `text` in them."""
    prefix = np.asarray(text.prefix, np.int64)
    parts_of_rows = [
        (prefix[: row.num_prefix], text.documents[row.document].tokens[row.begin : row.end]) for row in rows
    ]
    return TextBatch(np.stack([np.concatenate(parts_of_row) for parts_of_row in parts_of_rows]), rows)


def add_bits_(bits: Array, batch: TextBatch, losses: Tensor) -> None:
    """Add the losses of one batch, (rows, tokens - 1) in nats, to the bits of its documents (documents,)."""
    in_bits = losses.cpu().double().numpy() / math.log(2)
    for row, of_tokens in zip(batch.rows, in_bits, strict=True):
        bits[row.document] += of_tokens[row.num_prefix + row.first - row.begin - 1 :].sum()


def cut_windows(document: int, length: int, context: int, num_prefix: int = 0) -> Iterator[Window]:
    """Windows over `length` tokens, at most `context` long, in which every token but the first is scored once.

    Windows after the first hold `num_prefix` repeated tokens and `context - num_prefix` of the document, half of which
    are scored there and half are what they are predicted from; the last one scores what is left.
    """
    assert context - num_prefix >= 2, (context, num_prefix)
    scored = min(context, length)
    yield Window(document, 0, 1, scored)
    room = context - num_prefix
    while scored < length:
        end = min(scored + room // 2, length)
        yield Window(document, end - room, scored, end, num_prefix)
        scored = end


def num_scored_tokens(text: TextSet, context: int) -> int:
    """How many tokens go through the model for `text`, overlaps and repeated prefixes included."""
    return sum(window.num_tokens for window in _windows(text, context))


def _windows(text: TextSet, context: int) -> Iterator[Window]:
    num_prefix = len(text.prefix)
    if context - num_prefix < LEAST_TOKENS:
        what = f"windows of {context} tokens have no room beside the {num_prefix} prefix tokens of every text."
        raise InputError(Problem("evaluate.context", what, f"Give at least {num_prefix + LEAST_TOKENS}."))
    for number, document in enumerate(text.documents):
        yield from cut_windows(number, len(document.tokens), context, num_prefix)


def refuse_unknown_tokens(parts: Parts, text: TextSet) -> None:
    """Raise InputError for token ids that the model has no embedding for."""
    known = len(next(parts.embedding.parameters()))
    largest = max((int(document.tokens.max()) for document in text.documents), default=0)
    if largest >= known:
        what = f"token {largest}, and the model has embeddings for {known}: tokenizer and model do not match."
        raise InputError(Problem(f"text '{text.name}'", what, "Use the tokenizer the model was trained with."))


def refuse_broken(bits: Array, text: TextSet) -> None:
    """Raise RunError where the bits of a document are not finite."""
    broken = np.flatnonzero(~np.isfinite(bits))
    if len(broken):
        what = f"the loss is not a number on {len(broken)} of {len(bits)} documents, the first being {broken[0] + 1}."
        fix = "The weights are damaged, or their precision is too low for this model: use float32 or bfloat16."
        raise RunError(Problem(f"text '{text.name}'", what, fix))
