"""Best-fit packing: pieces of documents into rows of exactly the training length, with as little padding as possible.

Only documents longer than a row are cut, into full rows and a rest. Every piece after the first begins with the tokens
that the tokenizer puts before any text (BOS, mostly), as at the start of every text: gemma-3-270m
needs 1.234 nats per token for the second half of a window without them, 0.893 with them. Source of the method: arXiv
2404.10830, which packs a whole corpus at once; we pack a window of pieces at a time, so that memory stays bounded and
the order stays close to the shuffled one.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

WINDOW_PIECES = 16_384
MIN_PIECE = 2  # a single token predicts nothing

# (pieces, 3): where a piece starts in the concatenated sources, its length in the row, and how many tokens of that
# length are the repeated prefix, which stand before those read from the source
Pieces = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Packed:
    """Rows of pieces: row r holds `pieces[starts[r]:starts[r + 1]]`, of together at most `row_tokens` tokens."""

    pieces: Pieces
    starts: npt.NDArray[np.int64]
    row_tokens: int

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        return len(self.starts) - 1

    @property
    def fill(self) -> float:
        """The share of positions that hold a token of a document, 0..1."""
        return float(self.pieces[:, 1].sum() / (self.num_rows * self.row_tokens)) if self.num_rows else 0.0


def cut_documents(
    begins: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], row_tokens: int, num_prefix: int = 0
) -> Pieces:
    """Documents as pieces of at most `row_tokens`, in their order; a rest of fewer than MIN_PIECE tokens is dropped.

    `num_prefix` tokens are repeated at the start of every piece after the first of its document.
    """
    assert row_tokens - num_prefix >= MIN_PIECE, "a row must hold the prefix and tokens to predict"
    room = row_tokens - num_prefix
    counts = np.where(lengths > row_tokens, 1 + -(-(lengths - row_tokens) // room), 1)
    owner = np.repeat(np.arange(len(lengths)), counts)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    prefix = np.where(number > 0, num_prefix, 0)
    skipped = np.where(number > 0, row_tokens + (number - 1) * room, 0)
    own = np.minimum(lengths[owner] - skipped, row_tokens - prefix)
    pieces = np.stack([begins[owner] + skipped, own + prefix, prefix], axis=1).astype(np.int64)
    kept: Pieces = pieces[own >= MIN_PIECE]
    return kept


def pack(pieces: Pieces, row_tokens: int, generator: np.random.Generator) -> Packed:
    """All `pieces` in rows, windows of WINDOW_PIECES in the order given, rows shuffled within each window.

    Deterministic for a generator in the same state. Rows of a window that are less than half full join the next one.
    """
    rows: list[list[int]] = []
    waiting: list[int] = []
    for first in range(0, len(pieces), WINDOW_PIECES):
        window = [*waiting, *range(first, min(first + WINDOW_PIECES, len(pieces)))]
        packed = best_fit([int(pieces[i, 1]) for i in window], row_tokens)
        found = [[window[i] for i in row] for row in packed]
        last = first + WINDOW_PIECES >= len(pieces)
        full = [row for row in found if last or 2 * pieces[row, 1].sum() >= row_tokens]
        waiting = [] if last else [i for row in found if 2 * pieces[row, 1].sum() < row_tokens for i in row]
        rows += [full[i] for i in generator.permutation(len(full))]
    order = np.fromiter((i for row in rows for i in row), np.int64, len(pieces))
    starts = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return Packed(pieces[order], starts, row_tokens)


def best_fit(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Indices of `lengths` in rows of at most `row_tokens`: longest first, each into the fullest row that takes it."""
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        assert 0 < length <= row_tokens, (length, row_tokens)
        place = bisect_left(room, (length, -1))
        if place == len(room):
            rows.append([])
            free, row = row_tokens, len(rows) - 1
        else:
            free, row = room.pop(place)
        rows[row].append(index)
        if free > length:
            insort(room, (free - length, row))
    return rows


def padded_rows(pieces: Pieces, row_tokens: int, global_batch_size: int, generator: np.random.Generator) -> Packed:
    """One piece per row: for models whose layers cannot isolate documents inside a row.

    Pieces of similar length share a step, so that cutting its rows to the longest leaves little padding: each window of
    WINDOW_PIECES is sorted by length, and its steps are shuffled.
    """
    order: list[int] = []
    for first in range(0, len(pieces), WINDOW_PIECES):
        window = first + np.argsort(pieces[first : first + WINDOW_PIECES, 1], kind="stable")
        steps = [window[at : at + global_batch_size] for at in range(0, len(window), global_batch_size)]
        shuffled = generator.permutation(len(steps) - 1) if len(steps) > 1 else range(0)
        order += [int(i) for step in (*shuffled, len(steps) - 1) for i in steps[step]]  # the last one may be short
    return Packed(pieces[order], np.arange(len(pieces) + 1, dtype=np.int64), row_tokens)
