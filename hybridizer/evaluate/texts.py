"""Texts to score a model on: documents that training never saw, taken in an order that only their content decides."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from hybridizer.core.errors import InputError, Problem
from hybridizer.core.progress import Monitor
from hybridizer.data.batches import Source, heldout_documents
from hybridizer.data.tokenize import Shard

IN_DOMAIN, GENERAL = "in-domain", "general"
MAX_TOKENS = 100_000
LEAST_TOKENS = 2  # the first token of a document is not predicted

Keys = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Document:
    """One document: its token ids, int64, special tokens included, and the size of its text in bytes of UTF-8."""

    tokens: npt.NDArray[np.int64]
    num_bytes: int


@dataclass(frozen=True)
class TextSet:
    """Documents that are scored together. `role` is "in-domain" (what training is for) or "general" (what it may cost).

    `documents` are those taken of the `documents_available`, which hold `tokens_available`; `documents_trained` more
    were left out because training sees the same text.
    """

    name: str
    role: str
    documents: tuple[Document, ...]
    documents_available: int
    tokens_available: int
    documents_trained: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""
        return sum(len(document.tokens) for document in self.documents)

    @property
    def num_bytes(self) -> int:
        """Bytes of all documents."""
        return sum(document.num_bytes for document in self.documents)

    @property
    def identity(self) -> str:
        """A hash of the tokens and sizes, in order: what scores depend on, besides the model."""
        digest = hashlib.sha256()
        for document in self.documents:
            digest.update(np.array([len(document.tokens), document.num_bytes], "<i8").tobytes())
            digest.update(document.tokens.astype("<i8").tobytes())
        return f"sha256:{digest.hexdigest()}"


def heldout_texts(
    sources: Sequence[Source], share: float, monitor: Monitor, max_tokens: int = MAX_TOKENS
) -> tuple[TextSet, ...]:
    """The documents of each source that training with `heldout_share` = `share` never sees, one set a source.

    Up to `max_tokens` of each, see `_take`. A source without a held-out document is noted to `monitor` and has no set.
    """
    found = []
    for source in sources:
        chosen = [heldout_documents(shard, share) for shard in source.shards]
        if text := _take(source.name, IN_DOMAIN, source.shards, chosen, max_tokens):
            found.append(text)
            continue
        total = sum(shard.num_documents for shard in source.shards)
        what = f"{source.name}: no figure in domain: none of its {total:,} documents is held out at {share:g}"
        monitor.note(f"{what}; raise train.heldout_share, or give the text as more documents")
    return tuple(found)


def general_text(name: str, source: Source, trained: Keys, max_tokens: int = MAX_TOKENS) -> TextSet:
    """The documents of `source` but for those whose text training sees, given by their keys (`trained_keys`).

    Up to `max_tokens` of them, see `_take`. Raises InputError when nothing is left to score.
    """
    seen = [np.isin(shard.keys, trained) for shard in source.shards]
    text = _take(name, GENERAL, source.shards, [~pick for pick in seen], max_tokens)
    if text is None:
        what = "no document of two tokens or more that training does not see."
        raise InputError(Problem(f"evaluate.bits_per_byte '{name}'", what, "Give text that is not in train.data."))
    return replace(text, documents_trained=sum(int(pick.sum()) for pick in seen))


def trained_keys(sources: Sequence[Source], share: float) -> Keys:
    """The keys of all documents that training with `heldout_share` = `share` may see."""
    keys = [shard.keys[~heldout_documents(shard, share)] for source in sources for shard in source.shards]
    return np.unique(np.concatenate(keys)) if keys else np.empty(0, np.uint64)


def _take(
    name: str, role: str, shards: Sequence[Shard], chosen: Sequence[npt.NDArray[np.bool_]], max_tokens: int
) -> TextSet | None:
    """The chosen documents, equal texts once, in the order of their keys until there are `max_tokens`; None for none.

    The document that reaches the limit is cut there, its bytes counted in proportion to its tokens, so that one long
    document costs no more than was asked for.
    """
    lengths = [np.diff(shard.ends, prepend=0) for shard in shards]
    usable = [pick & (length >= LEAST_TOKENS) for pick, length in zip(chosen, lengths, strict=True)]
    places = [(i, int(row)) for i, pick in enumerate(usable) for row in np.flatnonzero(pick)]
    if not places:
        return None
    _, first = np.unique([shards[i].keys[row] for i, row in places], return_index=True)
    ordered = [places[at] for at in first]
    documents: list[Document] = []
    left = max_tokens
    for i, row in ordered:
        if left < LEAST_TOKENS and documents:
            break
        documents.append(_cut(shards[i], row, int(lengths[i][row]), max(left, LEAST_TOKENS)))
        left -= len(documents[-1].tokens)
    available = sum(int(lengths[i][row]) for i, row in ordered)
    return TextSet(name, role, tuple(documents), len(ordered), available)


def _cut(shard: Shard, row: int, length: int, most: int) -> Document:
    end, size = int(shard.ends[row]), int(shard.sizes[row])
    taken = min(length, most)
    tokens = np.asarray(shard.tokens[end - length : end - length + taken], np.int64)
    return Document(tokens, max(1, round(size * taken / length)))
