"""Which tokens the model sees at which step: a pure function of sources, weights, seed and step.

Nothing is read ahead and nothing is consumed: the state of the data is the number of the next step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hybridizer.core.errors import InputError, Problem, RecipeError
from hybridizer.core.records import to_jsonable
from hybridizer.data.packing import MIN_PIECE, Pieces, cut_documents, pack, padded_rows
from hybridizer.data.tokenize import TokenFile
from hybridizer.models.loss import IGNORED
from hybridizer.recipe.models import Train

# The settings that decide which tokens are in which row, beside the sources.
_DECISIVE = ("tokens", "seq_len", "global_batch_size", "heldout_ratio", "packed")


@dataclass(frozen=True)
class Source:
    """Token files that belong together, and their share of the training tokens relative to the other sources."""

    name: str
    token_files: tuple[TokenFile, ...]
    weight: float = 1.0


@dataclass(frozen=True)
class Drawn:
    """How much of one source is used: the tokens it has for training, those taken, and the number of epochs."""

    name: str
    tokens: int
    tokens_taken: int
    epochs: float


@dataclass(frozen=True)
class Batch:
    """Rows of one micro-batch: int64 tensors of shape (rows, tokens), tokens being at most the sequence length.

    `position_ids` restart at 0 where a document begins, which isolates documents from each other. `targets` hold the
    next token, and IGNORED at the last token of each piece, on padding, and on a repeated prefix: what follows it there
    is the middle of a document, which cannot be predicted. `sources` are the numbers of the sources that tokens come
    from, counted from 0 in the order of the recipe. `rows` are their numbers among all rows of the run; those that fill
    up the last step have none and come last.
    """

    input_ids: Tensor
    position_ids: Tensor
    targets: Tensor
    sources: Tensor
    rows: range


class TrainingData:
    """The rows of a whole run: `settings.tokens` tokens of `sources`, of which the last step rounds up.

    `before` are the settings of earlier stages: each source continues where they left it, so that no document is used
    again before all have been. `facts` holds everything that decides the rows, as plain values: equal facts, equal
    batches. Raises RecipeError where a row has no room beside the prefix, InputError for a source that has nothing to
    train on.
    """

    def __init__(
        self, sources: Sequence[Source], settings: Train, seed: int = 0, pad_id: int = 0, before: Sequence[Train] = ()
    ) -> None:
        self.settings, self._pad_id = settings, pad_id
        token_files = [token_file for source in sources for token_file in source.token_files]
        self._tokens = [token_file.tokens for token_file in token_files]
        self._prefixes = [np.asarray(token_file.prefix, np.int64) for token_file in token_files]
        self._offsets = np.cumsum([0, *(len(token_file.tokens) for token_file in token_files)])
        self._owners = np.repeat(np.arange(len(sources)), [len(source.token_files) for source in sources])
        # Every stage has random numbers of its own; the first one's are those of a run without stages.
        generators = [np.random.default_rng([seed, stage] if stage else seed) for stage in range(len(before) + 1)]
        pieces, self.drawn = self._draw(sources, [*before, settings], generators)
        generator = generators[-1]
        size, rows = settings.seq_len, settings.global_batch_size
        self.packed = pack(pieces, size, generator) if settings.packed else padded_rows(pieces, size, rows, generator)
        self.num_steps = -(-self.packed.num_rows // settings.global_batch_size)
        shares = {
            source.name: (source.weight, [token_file.folder.name for token_file in source.token_files])
            for source in sources
        }
        decisive = {name: getattr(settings, name) for name in _DECISIVE}
        self.facts: dict[str, Any] = {**decisive, "seed": seed, "sources": to_jsonable(shares), "pad_id": pad_id}
        if before:
            self.facts["tokens_before"] = [stage.tokens for stage in before]

    def batches(self, step: int, rank: int = 0, num_ranks: int = 1, micro_batch_size: int | None = None) -> list[Batch]:
        """The micro-batches of one step for one of `num_ranks` processes, `micro_batch_size` rows each at most.

        Every process gets the same number of rows; empty rows fill up the last step.
        """
        assert self.settings.global_batch_size % num_ranks == 0, "rows that no process takes would be lost"
        per_rank = self.settings.global_batch_size // num_ranks
        first = step * self.settings.global_batch_size + rank * per_rank
        size = micro_batch_size or per_rank
        return [self._batch(range(at, min(at + size, first + per_rank))) for at in range(first, first + per_rank, size)]

    def num_tokens(self, step: int) -> int:
        """How many tokens of documents, padding aside, one step holds over all processes."""
        return int(self._pieces(step)[:, 1].sum())

    def num_targets(self, step: int) -> int:
        """How many tokens are predicted in one step, over all processes: what the loss is divided by."""
        pieces = self._pieces(step)
        return int((pieces[:, 1] - pieces[:, 2] - 1).sum())

    def target_offsets(self) -> npt.NDArray[np.int64]:
        """Where the predicted tokens of each row begin among those of all rows, and their number: (rows + 1)."""
        pieces = self.packed.pieces
        ends = np.cumsum(pieces[:, 1] - pieces[:, 2] - 1, dtype=np.int64)
        offsets: npt.NDArray[np.int64] = np.concatenate([np.zeros(1, np.int64), ends])[self.packed.starts]
        return offsets

    def num_source_targets(self, step: int) -> list[int]:
        """How many tokens of each source are predicted in one step, over all processes."""
        pieces = self._pieces(step)
        counts = np.bincount(
            self._owners[self._file_numbers(pieces[:, 0])],
            weights=pieces[:, 1] - pieces[:, 2] - 1,
            minlength=len(self.drawn),
        )
        return [int(count) for count in counts]

    def _pieces(self, step: int) -> Pieces:
        rows = self.settings.global_batch_size
        starts = self.packed.starts[step * rows : (step + 1) * rows + 1]
        pieces: Pieces = self.packed.pieces[starts[0] : starts[-1]]
        return pieces

    def _batch(self, rows: range) -> Batch:
        shape = (len(rows), self._width(rows))
        ids = np.full(shape, self._pad_id, np.int64)
        positions = np.tile(np.arange(shape[1]), (len(rows), 1))
        targets = np.full(shape, IGNORED, np.int64)
        sources = np.zeros(shape, np.int64)
        for line, row in enumerate(rows):
            at = 0
            for begin, length, num_prefix in self._row(row):
                piece = self._read(int(begin), int(length), int(num_prefix))
                ids[line, at : at + length] = piece
                positions[line, at:] = np.arange(shape[1] - at)
                targets[line, at + num_prefix : at + length - 1] = piece[num_prefix + 1 :]
                sources[line, at : at + length] = self._owners[self._file_numbers(begin)]
                at += length
            positions[line, at:] = np.arange(shape[1] - at)
        count = self.packed.num_rows
        return Batch(
            torch.from_numpy(ids),
            torch.from_numpy(positions),
            torch.from_numpy(targets),
            torch.from_numpy(sources),
            range(min(rows.start, count), min(rows.stop, count)),
        )

    def _width(self, rows: range) -> int:
        """The length of a batch's rows: that of the longest where each holds one document, else the whole sequence."""
        if self.settings.packed:
            return self.settings.seq_len
        return max((int(length) for row in rows for length in self._row(row)[:, 1]), default=MIN_PIECE)

    def _row(self, row: int) -> Pieces:
        if row >= self.packed.num_rows:
            return np.empty((0, 3), np.int64)
        pieces: Pieces = self.packed.pieces[self.packed.starts[row] : self.packed.starts[row + 1]]
        return pieces

    def _read(self, begin: int, length: int, num_prefix: int) -> npt.NDArray[np.int64]:
        token_file = int(self._file_numbers(np.int64(begin)))
        start = begin - int(self._offsets[token_file])
        own = np.asarray(self._tokens[token_file][start : start + length - num_prefix], np.int64)
        return np.concatenate([self._prefixes[token_file], own]) if num_prefix else own

    def _file_numbers(self, begins: Any) -> Any:
        """The numbers of the token files in which pieces begin; `begins` is a number or an array of them."""
        return np.searchsorted(self._offsets, begins, side="right") - 1

    def _draw(
        self, sources: Sequence[Source], stages: Sequence[Train], generators: Sequence[np.random.Generator]
    ) -> tuple[Pieces, tuple[Drawn, ...]]:
        """Pieces of all sources in one shuffled order, each source with its share of the last stage's tokens."""
        total_weight = sum(source.weight for source in sources)
        orders, first_shard = [], 0
        for source in sources:
            offsets = self._offsets[first_shard : first_shard + len(source.token_files)]
            first_shard += len(source.token_files)
            orders.append(_Order(_training_pieces(source, offsets, self.settings)))
        for settings, generator in zip(stages, generators, strict=True):
            budgets = [round(settings.tokens * source.weight / total_weight) for source in sources]
            kept = [order.take(budget, generator) for order, budget in zip(orders, budgets, strict=True)]
        pieces = np.concatenate(kept)
        counts = [int(taken[:, 1].sum()) for taken in kept]
        drawn = tuple(
            Drawn(source.name, order.available, count, count / order.available)
            for source, order, count in zip(sources, orders, counts, strict=True)
        )
        return pieces[generators[-1].permutation(len(pieces))], drawn


def heldout_documents(token_file: TokenFile, share: float) -> npt.NDArray[np.bool_]:
    """True for the documents of `token_file` that are held out: chosen by their text alone, the same in every run."""
    return token_file.keys < np.uint64(int(share * 2**64)) if share > 0 else np.zeros(len(token_file.keys), bool)


def num_training_tokens(source: Source, heldout_ratio: float) -> int:
    """The tokens of the documents of `source` that are not held out."""
    return sum(
        int(np.diff(token_file.ends, prepend=0)[~heldout_documents(token_file, heldout_ratio)].sum())
        for token_file in source.token_files
    )


def _training_pieces(source: Source, offsets: npt.NDArray[np.int64], settings: Train) -> Pieces:
    pieces = []
    for token_file, offset in zip(source.token_files, offsets, strict=True):
        ends = np.asarray(token_file.ends)
        begins = np.concatenate([[0], ends[:-1]])
        train = ~heldout_documents(token_file, settings.heldout_ratio)
        num_prefix = len(token_file.prefix)
        if settings.seq_len - num_prefix < MIN_PIECE:
            what = f"rows of {settings.seq_len} tokens have no room beside the {num_prefix} prefix tokens of each."
            raise RecipeError(Problem("train.seq_len", what, f"Give at least {num_prefix + MIN_PIECE}."))
        pieces.append(cut_documents(begins[train] + offset, (ends - begins)[train], settings.seq_len, num_prefix))
    found = np.concatenate(pieces)
    if not len(found):
        what = (
            f"nothing to train on: no document of two tokens or more outside the held-out {settings.heldout_ratio:g}."
        )
        raise InputError(Problem(source.name, what, "Give more text, or lower `heldout_ratio`."))
    return found


class _Order:
    """The pieces of one source in the order in which they are used, shuffled again for each epoch."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self.available = int(pieces[:, 1].sum())
        self._left = np.empty(0, np.int64)  # numbers of pieces that come next

    def take(self, budget: int, generator: np.random.Generator) -> Pieces:
        """The next whole pieces of at least `budget` tokens; `generator` shuffles the epochs that begin with them."""
        epochs = -(-(budget - int(self._pieces[self._left, 1].sum())) // self.available)
        least = 0 if len(self._left) else 1
        order = np.concatenate(
            [self._left, *(generator.permutation(len(self._pieces)) for _ in range(max(epochs, least)))]
        )
        totals = np.cumsum(self._pieces[order, 1])
        count = int(np.searchsorted(totals, budget)) + 1
        self._left = order[count:]
        taken: Pieces = self._pieces[order[:count]]
        return taken
