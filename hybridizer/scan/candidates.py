"""The changes of a model that a scan tries: each a typed value, with its name and the layers that it leads to.

The host is the first donor; it gives embeddings, final norm and head, and every change is a change of its layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeAlias

import numpy as np

from hybridizer.recipe.layers import format_layers
from hybridizer.scan.request import KINDS

Layers: TypeAlias = tuple[tuple[str, int], ...]
Depths: TypeAlias = Mapping[str, int]


@dataclass(frozen=True)
class Cut:
    """Layers `first` to `last` of the host are left out."""

    first: int
    last: int

    @property
    def name(self) -> str:
        """Such as "cut 3..5"."""
        return f"cut {_run(self.first, self.last)}"

    def layers(self, host: Layers) -> Layers:
        """What is left of the host."""
        return host[: self.first] + host[self.last + 1 :]


@dataclass(frozen=True)
class Repeat:
    """Layers `first` to `last` of the host run twice, one pass after the other."""

    first: int
    last: int

    @property
    def name(self) -> str:
        """Such as "repeat 3..5"."""
        return f"repeat {_run(self.first, self.last)}"

    def layers(self, host: Layers) -> Layers:
        """The host, longer by the repeated layers."""
        return host[: self.last + 1] + host[self.first :]


@dataclass(frozen=True)
class Seam:
    """The first `end` layers of `shallow`, then the layers of `deep` from `begin` to its last one, `depth` - 1."""

    shallow: str
    end: int
    deep: str
    begin: int
    depth: int

    @property
    def name(self) -> str:
        """Such as "seam a 0..14 | b 15..29"."""
        return f"seam {self.shallow} {_run(0, self.end - 1)} | {self.deep} {_run(self.begin, self.depth - 1)}"

    def layers(self, host: Layers) -> Layers:
        """Both sides; the host's own layers have no part in it unless it is one of the donors."""
        return _span(self.shallow, 0, self.end) + _span(self.deep, self.begin, self.depth)


@dataclass(frozen=True)
class Swap:
    """Layers `first` to `last` of the host are replaced by the same layers of `donor`."""

    donor: str
    first: int
    last: int

    @property
    def name(self) -> str:
        """Such as "swap 3..5 from b"."""
        return f"swap {_run(self.first, self.last)} from {self.donor}"

    def layers(self, host: Layers) -> Layers:
        """As many layers as the host has."""
        return host[: self.first] + _span(self.donor, self.first, self.last + 1) + host[self.last + 1 :]


@dataclass(frozen=True)
class Mix:
    """Any arrangement of layers: what the searches that change a model step by step arrive at."""

    arrangement: Layers

    @property
    def name(self) -> str:
        """The runs of layers, such as "a 0..3, 5 | b 6"."""
        return describe(self.arrangement)

    def layers(self, host: Layers) -> Layers:
        """The arrangement itself."""
        return self.arrangement


Change: TypeAlias = Cut | Repeat | Seam | Swap | Mix


@dataclass(frozen=True)
class Candidate:
    """A change and the layers that it makes of the host, shallow to deep."""

    change: Change
    layers: Layers

    @property
    def name(self) -> str:
        """The name of the change."""
        return self.change.name


@dataclass(frozen=True)
class Space:
    """What a scan may try: `depths` of the donors by name, the host first; `span` is the longest run of layers changed.

    A seam may add or lose up to `span` layers. Swaps of two layers or more are called bands: their borders are two
    boundaries.
    """

    depths: Depths
    span: int

    @property
    def host(self) -> Layers:
        """The host as it is."""
        return self.of(next(iter(self.depths)))

    def of(self, donor: str) -> Layers:
        """All layers of a donor."""
        return _span(donor, 0, self.depths[donor])

    @property
    def guests(self) -> list[str]:
        """The other donors."""
        return list(self.depths)[1:]


def enumerate_cuts(space: Space) -> Iterator[Change]:
    """Every run of up to `span` layers, the whole host excepted."""
    depth = len(space.host)
    yield from (Cut(first, last) for first, last in _runs(depth, 1, min(space.span, depth - 1)))


def enumerate_repeats(space: Space) -> Iterator[Change]:
    """Every run of up to `span` layers."""
    yield from (Repeat(first, last) for first, last in _runs(len(space.host), 1, space.span))


def enumerate_seams(space: Space) -> Iterator[Change]:
    """Every pair of host and guest, in both orders, with at least one layer on either side."""
    host = next(iter(space.depths))
    for guest in space.guests:
        for shallow, deep in ((host, guest), (guest, host)):
            for end in range(1, space.depths[shallow] + 1):
                for begin in range(max(0, end - space.span), min(end + space.span, space.depths[deep] - 1) + 1):
                    yield Seam(shallow, end, deep, begin, space.depths[deep])


def enumerate_swaps(space: Space) -> Iterator[Change]:
    """Every single layer of the host, from every guest that has a layer of this number."""
    yield from _swaps(space, 1, 1)


def enumerate_bands(space: Space) -> Iterator[Change]:
    """Every run of two to `span` layers from every guest that has them, with layers of the host on both sides."""
    last_inside = len(space.host) - 2
    yield from (swap for swap in _swaps(space, 2, space.span) if swap.first > 0 and swap.last <= last_inside)


ENUMERATIONS: Mapping[str, Callable[[Space], Iterator[Change]]] = {
    "cut": enumerate_cuts,
    "repeat": enumerate_repeats,
    "seam": enumerate_seams,
    "swap": enumerate_swaps,
    "band": enumerate_bands,
}
assert tuple(ENUMERATIONS) == KINDS


def list_candidates(space: Space, kinds: Sequence[str]) -> list[Candidate]:
    """Every candidate of these kinds, sorted for reuse; what leaves the host as it is, or repeats another, once.

    Cuts of a model of one layer do not exist: the list may be empty.
    """
    found = {space.host: None} | {
        layers: Candidate(change, layers)
        for kind in reversed(list(kinds))
        for change in ENUMERATIONS[kind](space)
        if (layers := change.layers(space.host)) != space.host
    }
    return sort_for_reuse(candidate for candidate in found.values() if candidate is not None)


def sort_for_reuse(candidates: Iterable[Candidate]) -> list[Candidate]:
    """In the order of their layers: neighbours share the longest beginnings, whose activations are computed once."""
    return sorted(candidates, key=lambda candidate: candidate.layers)


def draw(candidates: Sequence[Candidate], budget: int, seed: int) -> list[Candidate]:
    """At most `budget` of the candidates, in their order: all of them, or a uniform draw without replacement."""
    if len(candidates) <= budget:
        return list(candidates)
    chosen = np.random.default_rng(seed).choice(len(candidates), size=budget, replace=False)
    return [candidates[index] for index in sorted(chosen)]


def to_slices(layers: Layers) -> list[dict[str, Any]]:
    """`layout.slices` of a recipe: one entry for each run of layers of one donor."""
    return [
        {"donor": donor, "layers": format_layers([layer for _, layer in run])}
        for donor, run in groupby(layers, key=lambda place: place[0])
    ]


def describe(layers: Layers) -> str:
    """The layers in one line, such as "a 0..14 | b 15..29"."""
    return " | ".join(f"{entry['donor']} {entry['layers']}" for entry in to_slices(layers))


def _span(donor: str, begin: int, end: int) -> Layers:
    return tuple((donor, layer) for layer in range(begin, end))


def _run(first: int, last: int) -> str:
    return format_layers(range(first, last + 1))


def _runs(depth: int, shortest: int, longest: int) -> Iterator[tuple[int, int]]:
    for length in range(shortest, min(longest, depth) + 1):
        yield from ((first, first + length - 1) for first in range(depth - length + 1))


def _swaps(space: Space, shortest: int, longest: int) -> Iterator[Swap]:
    for guest in space.guests:
        shared = min(len(space.host), space.depths[guest])
        yield from (Swap(guest, first, last) for first, last in _runs(shared, shortest, longest))
