"""Texts to score a model on: documents that training never saw, taken in an order that only their content decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from hybridizer.checkpoint.hashing import hash_chunks
from hybridizer.core.errors import InputError, Problem
from hybridizer.core.progress import Monitor
from hybridizer.data.batches import Source, heldout_documents
from hybridizer.data.tokenize import TokenFile

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
    """Documents that are scored together. `role` is "in-domain" (held out of training) or "general" (other text).

    `documents` are those taken of the `documents_available`, which hold `tokens_available`; `documents_trained` more
    were left out because training sees the same text. `prefix` are the tokens that the tokenizer puts before any text:
    the documents begin with them, and so does every later window over a long one.
    """

    name: str
    role: str
    documents: tuple[Document, ...]
    documents_available: int
    tokens_available: int
    documents_trained: int = 0
    prefix: tuple[int, ...] = ()

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
        arrays = (array for d in self.documents for array in ([len(d.tokens), d.num_bytes], d.tokens))
        return f"sha256:{hash_chunks(np.asarray(array, '<i8').tobytes() for array in (self.prefix, *arrays))}"


def heldout_texts(
    sources: Sequence[Source],
    share: float,
    monitor: Monitor,
    max_tokens: int = MAX_TOKENS,
    half: int | None = None,
) -> tuple[TextSet, ...]:
    """The documents of each source that training with `heldout_ratio` = `share` never sees, one set per source.

    Up to `max_tokens` of each, see `_take`. With `half`, 0 or 1, only those of one half, by the last bit of their keys:
    a hash of the text, whose first bits decide what is held out. A source without held-out documents is noted to
    `monitor` and gives no set.
    """
    found = []
    for source in sources:
        chosen = [
            heldout_documents(token_file, share) & _in_half(token_file, half) for token_file in source.token_files
        ]
        if text := _take(source.name, IN_DOMAIN, source.token_files, chosen, max_tokens):
            found.append(text)
            continue
        total = sum(token_file.num_documents for token_file in source.token_files)
        what = f"{source.name}: no in-domain figure: none of its {total:,} documents is held out at {share:g}"
        monitor.note(f"{what}; raise train.heldout_ratio, or split the text into more documents")
    return tuple(found)


def general_text(name: str, source: Source, trained: Keys, max_tokens: int = MAX_TOKENS) -> TextSet:
    """The documents of `source` except those whose text training sees, given by their keys (`trained_keys`).

    Up to `max_tokens` of them, see `_take`. Raises InputError when nothing is left to score.
    """
    seen = [np.isin(token_file.keys, trained) for token_file in source.token_files]
    text = _take(name, GENERAL, source.token_files, [~pick for pick in seen], max_tokens)
    if text is None:
        what = "no document of two tokens or more that training does not see."
        raise InputError(Problem(f"evaluate.bits_per_byte '{name}'", what, "Give text that is not in train.data."))
    return replace(text, documents_trained=sum(int(pick.sum()) for pick in seen))


def trained_keys(sources: Sequence[Source], share: float) -> Keys:
    """The keys of all documents that training with `heldout_ratio` = `share` may see."""
    keys = [
        token_file.keys[~heldout_documents(token_file, share)]
        for source in sources
        for token_file in source.token_files
    ]
    return np.unique(np.concatenate(keys)) if keys else np.empty(0, np.uint64)


def _in_half(token_file: TokenFile, half: int | None) -> npt.NDArray[np.bool_]:
    if half is None:
        return np.ones(len(token_file.keys), bool)
    return (token_file.keys & np.uint64(1)) == np.uint64(half)


def _take(
    name: str, role: str, token_files: Sequence[TokenFile], chosen: Sequence[npt.NDArray[np.bool_]], max_tokens: int
) -> TextSet | None:
    """The chosen documents, equal texts once, in the order of their keys until there are `max_tokens`; None for none.

    The document that reaches the limit is cut there, its bytes counted in proportion to its tokens, so that one long
    document takes no more than `max_tokens`.
    """
    lengths = [np.diff(token_file.ends, prepend=0) for token_file in token_files]
    usable = [pick & (length >= LEAST_TOKENS) for pick, length in zip(chosen, lengths, strict=True)]
    places = [(i, int(row)) for i, pick in enumerate(usable) for row in np.flatnonzero(pick)]
    if not places:
        return None
    _, first = np.unique([token_files[i].keys[row] for i, row in places], return_index=True)
    ordered = [places[at] for at in first]
    documents: list[Document] = []
    left = max_tokens
    for i, row in ordered:
        if left < LEAST_TOKENS and documents:
            break
        documents.append(_cut(token_files[i], row, int(lengths[i][row]), max(left, LEAST_TOKENS)))
        left -= len(documents[-1].tokens)
    available = sum(int(lengths[i][row]) for i, row in ordered)
    prefix = token_files[0].prefix
    return TextSet(name, role, tuple(documents), len(ordered), available, prefix=prefix)


def _cut(token_file: TokenFile, row: int, length: int, most: int) -> Document:
    end, size = int(token_file.ends[row]), int(token_file.sizes[row])
    taken = min(length, most)
    tokens = np.asarray(token_file.tokens[end - length : end - length + taken], np.int64)
    return Document(tokens, max(1, round(size * taken / length)))
