"""Whether what models are scored on occurs in training text: runs of 13 words that both have."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hybridizer.core.progress import Monitor
from hybridizer.data.documents import BadRecords, read_documents

NUM_WORDS = 13  # as in the contamination checks of GPT-3 (arXiv 2005.14165)
MAX_DOCUMENT_BYTES = 10_000_000
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
# Scripts without spaces: each character is a word. Case does not count.
_NO_SPACES = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uac00-\ud7af"
_WORD = re.compile(rf"[{_NO_SPACES}]|[^\W{_NO_SPACES}]+")

Ids = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Overlap:
    """How much of one set occurs in the training text.

    Of `num_items` documents or questions, `num_found` share a run of NUM_WORDS words with it, and `num_short` have
    fewer words than that, so that nothing can be said of them. `run_share` is the share of all runs that were found.
    """

    what: str
    num_items: int
    num_found: int
    num_short: int
    run_share: float


def find_overlaps(
    sets: Mapping[str, Sequence[str]], training: Sequence[Path], field: str, monitor: Monitor
) -> tuple[Overlap, ...]:
    """The overlap of each set of texts with the documents of the training files, by hashes of 64 bits."""
    vocabulary: dict[str, int] = {}
    encoded = {name: [_encode(text, vocabulary) for text in texts] for name, texts in sets.items()}
    hashes = {name: [_runs(ids) for ids in texts] for name, texts in encoded.items()}
    wanted = np.unique(np.concatenate([np.empty(0, np.uint64), *(h for texts in hashes.values() for h in texts)]))
    seen = np.zeros(len(wanted), bool)
    total = sum(path.stat().st_size for path in training)
    with monitor.task("look for overlaps", total, "bytes") as advance:
        for text in _documents(training, field):
            found = _runs(np.array([vocabulary.get(word, 0) for word in _words(text)], np.int64))
            places = np.searchsorted(wanted, found)
            places[places == len(wanted)] = 0
            if len(wanted):
                hits = places[wanted[places] == found]
                seen[hits] = True
            advance(len(text.encode()))
    known = wanted[seen]
    return tuple(_count(name, texts, known) for name, texts in hashes.items())


def _count(name: str, texts: Sequence[Hashes], known: Hashes) -> Overlap:
    found = [int(np.isin(runs, known).sum()) for runs in texts]
    short = sum(not len(runs) for runs in texts)
    return Overlap(name, len(texts), sum(map(bool, found)), short, sum(found) / max(1, sum(map(len, texts))))


def _documents(paths: Iterable[Path], field: str) -> Iterator[str]:
    for path in paths:
        yield from read_documents(path, field, MAX_DOCUMENT_BYTES, BadRecords())


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _encode(text: str, vocabulary: dict[str, int]) -> Ids:
    """A number from 1 on for each word; new words are added."""
    return np.array([vocabulary.setdefault(word, len(vocabulary) + 1) for word in _words(text)], np.int64)


def _runs(ids: Ids) -> Hashes:
    """A hash of every run of NUM_WORDS words in which no word is unknown (0)."""
    count = len(ids) - NUM_WORDS + 1
    if count < 1:
        return np.empty(0, np.uint64)
    words = ids.astype(np.uint64)
    total, known = np.zeros(count, np.uint64), np.ones(count, bool)
    for at in range(NUM_WORDS):
        piece = words[at : at + count]
        known &= piece > 0
        total = (total ^ (piece * _FACTOR)) * _FACTOR
        total ^= total >> np.uint64(29)
    return total[known]
