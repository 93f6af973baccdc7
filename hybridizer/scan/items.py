"""What models are scored on: beginnings of documents, and prompts with one-token answers, in two halves.

One half is searched on, the other one tests what was found. Prompts that ask for the same pair of words both ways are
one group, and a group is never divided.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from hybridizer.core.bootstrap import Array
from hybridizer.core.errors import InputError, Problem
from hybridizer.data.batches import Source
from hybridizer.data.tokenize import Encoder
from hybridizer.evaluate.texts import GENERAL, LEAST_TOKENS, Document, TextSet
from hybridizer.scan.score import Items
from hybridizer.scan.select import Indices, split_halves
from hybridizer.trace.probes import Probe, ProbeSet

LEAST_BUILTIN_BYTES = 1000


@dataclass(frozen=True)
class Half:
    """Items of one half, and the number of the group of each prompt. There may be no document, or no prompt."""

    items: Items
    groups: tuple[int, ...]

    @property
    def num_documents(self) -> int:
        """How many documents there are."""
        return sum(len(text.documents) for text in self.items.texts)

    @property
    def group_sizes(self) -> Array:
        """The number of prompts of each group, in the order of the groups' numbers, float64."""
        return np.unique(np.asarray(self.groups), return_counts=True)[1].astype(np.float64)


def builtin_documents() -> list[str]:
    """The longer reference topics that come with Python, English with examples of code, in the order of their names."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics) if len(topics[name]) >= LEAST_BUILTIN_BYTES]


def encode_beginnings(name: str, documents: Sequence[str], encoder: Encoder, count: int, max_tokens: int) -> TextSet:
    """The first `max_tokens` tokens of up to `count` of the documents, spread evenly over them."""
    chosen = [documents[place] for place in _spread(len(documents), count)]
    rows = [np.array(row, np.int64) for row in encoder.encode(list(chosen))]
    sizes = [len(document.encode()) for document in chosen]
    return _text(name, zip(rows, sizes, strict=True), len(documents), encoder, max_tokens)


def take_beginnings(source: Source, encoder: Encoder, count: int, max_tokens: int) -> TextSet:
    """The same of a tokenised source: documents of different text, in an order that only their content decides."""
    places = [(i, row) for i, file in enumerate(source.token_files) for row in range(file.num_documents)]
    keys = np.concatenate([file.keys for file in source.token_files])
    _, first = np.unique(keys, return_index=True)
    rows = []
    for at in first[:count]:
        file = source.token_files[places[at][0]]
        row = places[at][1]
        begin, end = (int(file.ends[row - 1]) if row else 0), int(file.ends[row])
        rows.append((np.asarray(file.tokens[begin:end], np.int64), int(file.sizes[row])))
    return _text(source.name, rows, len(first), encoder, max_tokens)


def group_prompts(probes: Sequence[Probe]) -> tuple[int, ...]:
    """The group of each probe: those that ask for one pair of words both ways share one, in any template.

    Two probes ask for one pair where the last line of each holds the other's answer. Probes without an answer are
    alone.
    """
    lines = [probe.prompt.rpartition("\n")[2] for probe in probes]
    answers = [probe.target.strip() if probe.target else None for probe in probes]
    groups = list(range(len(probes)))
    for i, answer in enumerate(answers):
        for j in range(i):
            other = answers[j]
            if answer and other and answer in lines[j] and other in lines[i]:
                groups[i] = groups[j]
                break
    return tuple(groups)


def draw_probes(probes: ProbeSet, count: int, seed: int) -> ProbeSet:
    """Up to `count` probes that have an answer, whole groups drawn at random, in their order."""
    answered = [probe for probe in probes.probes if probe.target is not None]
    groups = np.asarray(group_prompts(answered))
    taken: list[int] = []
    for group in np.random.default_rng(seed).permutation(np.unique(groups)):
        if len(taken) >= count:
            break
        taken += np.flatnonzero(groups == group).tolist()
    return replace(probes, probes=tuple(answered[index] for index in sorted(taken)))


def halve(items: Items, probes: Sequence[Probe], seed: int) -> tuple[Half, Half]:
    """Both halves, documents and groups of prompts divided at random.

    `probes` are those of `items.prompts`, in order; prompts whose answer is not one token are left out. Raises
    InputError where there is not one item for each half.
    """
    usable = [index for index, prompt in enumerate(items.prompts) if prompt.answer is not None]
    groups = dict(zip(usable, group_prompts([probes[index] for index in usable]), strict=True))
    numbers = sorted(set(groups.values()))
    (text,) = items.texts
    if max(len(text.documents), len(numbers)) < 2:
        what = f"{len(text.documents)} documents and {len(numbers)} groups of prompts cannot be divided in two."
        raise InputError(Problem("items", what, "Give two documents or more, or more probes."))
    halves = zip(split_halves(len(text.documents), seed), split_halves(len(numbers), seed), strict=True)
    first, second = (_half(items, groups, documents, [numbers[i] for i in drawn]) for documents, drawn in halves)
    return first, second


def _half(items: Items, groups: Mapping[int, int], documents: Indices, drawn: Sequence[int]) -> Half:
    (text,) = items.texts
    taken = replace(text, documents=tuple(text.documents[index] for index in documents))
    prompts = [index for index, group in groups.items() if group in set(drawn)]
    some = replace(items, texts=(taken,), prompts=tuple(items.prompts[index] for index in prompts))
    return Half(some, tuple(groups[index] for index in prompts))


def _text(
    name: str, rows: Iterable[tuple[npt.NDArray[np.int64], int]], available: int, encoder: Encoder, max_tokens: int
) -> TextSet:
    """Beginnings of tokenised documents; the bytes of one that is cut are counted in proportion to its tokens."""
    documents, tokens = [], 0
    for row, size in rows:
        tokens += len(row)
        if len(row) >= LEAST_TOKENS:
            share = min(1.0, max_tokens / len(row))
            documents.append(Document(row[:max_tokens], max(1, round(size * share))))
    return TextSet(name, GENERAL, tuple(documents), available, tokens, prefix=encoder.prefix)


def _spread(total: int, count: int) -> list[int]:
    """Up to `count` places of `total`, evenly spread."""
    return [place * total // count for place in range(count)] if total > count else list(range(total))
