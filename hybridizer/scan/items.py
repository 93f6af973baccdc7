"""What models are scored on: beginnings of documents, and prompts with one-token answers, divided by purpose.

What the search found is tested on items that it did not see. Prompts of one cluster are one group, and so are those
without a cluster that ask for the same pair of words both ways; a group is never divided.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from hybridizer.core.bootstrap import Array
from hybridizer.core.errors import InputError, Problem
from hybridizer.data.batches import Source
from hybridizer.data.tokenize import Encoder
from hybridizer.evaluate.texts import GENERAL, LEAST_TOKENS, Document, TextSet
from hybridizer.scan.request import ACCURACY, BITS
from hybridizer.scan.score import Items
from hybridizer.scan.select import Indices, divide
from hybridizer.trace.probes import Probe, ProbeSet


@dataclass(frozen=True)
class Part:
    """Items for one purpose, and the number of the group of each prompt. There may be no document, or no prompt."""

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


@dataclass(frozen=True)
class Division:
    """Items to screen many candidates on (None where items are few), to search on and to test on: all different."""

    screen: Part | None
    search: Part
    test: Part


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
    """The group of each probe: those of one cluster share one; without clusters, those that ask for one pair of words
    both ways, in any template.

    Two probes ask for one pair where the last line of each holds the other's answer. Others without a cluster or an
    answer are alone.
    """
    clusters: dict[str, int] = {}
    lines = [probe.prompt.rpartition("\n")[2] for probe in probes]
    answers = [probe.target.strip() if probe.target else None for probe in probes]
    groups = list(range(len(probes)))
    for i, answer in enumerate(answers):
        if (cluster := probes[i].cluster) is not None:
            groups[i] = clusters.setdefault(cluster, i)
            continue
        for j in range(i):
            other = answers[j] if probes[j].cluster is None else None
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


def divide_items(items: Items, probes: Sequence[Probe], by: str, seed: int) -> Division:
    """The items of each purpose. Those of the figure that is searched by are divided; all others are for the test.

    `probes` are those of `items.prompts`, in order; prompts whose answer is not one token are left out. Raises
    InputError where there is not one item of that figure to search on and one to test on.
    """
    usable = [index for index, prompt in enumerate(items.prompts) if prompt.answer is not None]
    groups = dict(zip(usable, group_prompts([probes[index] for index in usable]), strict=True))
    numbers = sorted(set(groups.values()))
    (text,) = items.texts
    num_documents, num_groups = len(text.documents), len(numbers)
    if (num_documents if by == BITS else num_groups) < 2:
        what = f"{num_documents} documents and {num_groups} groups of usable prompts, too few for a search by {by}."
        fix = "Give more text, or probes whose answers are one token, or search by the other figure."
        raise InputError(Problem("items", what, fix))
    nothing: Indices = np.array([], np.int64)
    documents = divide(num_documents, seed) if by == BITS else (nothing, nothing, np.arange(num_documents))
    drawn = divide(num_groups, seed) if by == ACCURACY else (nothing, nothing, np.arange(num_groups))
    screen, search, test = (
        _part(items, groups, chosen, {numbers[place] for place in places})
        for chosen, places in zip(documents, drawn, strict=True)
    )
    return Division(screen if screen.num_documents or screen.groups else None, search, test)


def take_documents(part: Part, begin: int, end: int) -> Part:
    """Documents `begin` to `end` of a part without prompts."""
    assert not part.groups, "prompts are not taken apart"
    (text,) = part.items.texts
    return replace(part, items=replace(part.items, texts=(replace(text, documents=text.documents[begin:end]),)))


def _part(items: Items, groups: Mapping[int, int], documents: Indices, drawn: Collection[int]) -> Part:
    (text,) = items.texts
    taken = replace(text, documents=tuple(text.documents[index] for index in documents))
    prompts = [index for index, group in groups.items() if group in drawn]
    some = replace(items, texts=(taken,), prompts=tuple(items.prompts[index] for index in prompts))
    return Part(some, tuple(groups[index] for index in prompts))


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
