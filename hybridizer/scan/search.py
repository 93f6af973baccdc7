"""Three searches over arrangements of layers: every candidate of a list, layers to leave out, a donor for each layer.

They see a scorer, which turns layers into figures per item, and an objective, which turns those into one number; lower
is better. What is scored together is in an order that shares beginnings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

from hybridizer.core.errors import PlanError
from hybridizer.scan.candidates import Candidate, Layers, Mix, Space, draw, sort_for_reuse

if TYPE_CHECKING:
    from hybridizer.scan.score import Score


class Scores(Protocol):
    """Scores models by the layers that they are made of."""

    def score(self, layers: Layers) -> Score:
        """The figures of a model. Raises PlanError when there can be no such model."""
        ...

    def prepare(self, paths: Sequence[Layers]) -> None:
        """Be ready for models that begin as `paths` do. Changes no figure."""
        ...


Objective: TypeAlias = "Callable[[Score], float]"
Advance: TypeAlias = Callable[[int, str], None]


@dataclass(frozen=True)
class Scored:
    """A candidate, its figures per item, and the number that the search goes by."""

    candidate: Candidate
    score: Score
    value: float


@dataclass(frozen=True)
class Rung:
    """Some items of a screen. `objective` is of the scores on those of the rungs so far, `num_items` their number."""

    scorer: Scores
    objective: Callable[[Sequence[Score]], float]
    num_items: int


@dataclass(frozen=True)
class Screen:
    """A quick look at many candidates, on items of its own: the best of each round are scored in full.

    One in `one_in` candidates passes, at least `least`. Each rung leaves the same share of them to the next, which
    looks at more items (after successive halving, Jamieson and Talwalkar 2016). A round of up to twice `least` is not
    screened.
    """

    rungs: tuple[Rung, ...]
    least: int
    one_in: int

    def sizes(self, count: int) -> list[int]:
        """How many candidates of a round of `count` each rung looks at, and last how many are scored in full."""
        if count <= 2 * self.least:
            return [count]
        passing, last = max(self.least, -(-count // self.one_in)), len(self.rungs)
        left = [math.ceil(count * (passing / count) ** (number / last)) for number in range(1, last)]
        return [count, *left, passing]


@dataclass(frozen=True)
class Screened:
    """What a screen saw of a candidate: its value on the items of the rungs up to `rung`, the last that it reached."""

    value: float
    rung: int


@dataclass
class Search:
    """The state of a search: at most `budget` arrangements are tried, each once.

    `tried` are all, in order, as candidates; `screened` what the screen saw of them, where there is one;
    `scored` those that were scored in full; `refused` those that the family cannot have, each with the reason.
    """

    scorer: Scores
    objective: Objective
    advance: Advance
    budget: int
    screen: Screen | None = None
    tried: dict[Layers, Candidate] = field(default_factory=dict)
    screened: dict[Layers, Screened] = field(default_factory=dict)
    scored: dict[Layers, Scored] = field(default_factory=dict)
    refused: dict[Layers, str] = field(default_factory=dict)

    @property
    def left(self) -> int:
        """How many arrangements may still be tried."""
        return self.budget - len(self.tried)

    def score(self, candidates: Sequence[Candidate], paths: Sequence[Layers]) -> list[Scored]:
        """The candidates that can be and pass the screen, with their figures, in order.

        None of them was tried before, and all that are tried in one round are compared with each other. Most of them
        begin as one of `paths` does.
        """
        self.tried |= {candidate.layers: candidate for candidate in candidates}
        self.scorer.prepare(paths)
        passed = self._pass_screen(candidates, paths)
        for candidate in passed:
            score = self._try(self.scorer, candidate)
            if score is not None:
                self.scored[candidate.layers] = Scored(candidate, score, self.objective(score))
            self.advance(1, candidate.name)
        return [self.scored[candidate.layers] for candidate in passed if candidate.layers in self.scored]

    def _pass_screen(self, candidates: Sequence[Candidate], paths: Sequence[Layers]) -> list[Candidate]:
        """The best of a round, in the order for reuse; all of a round that is not screened."""
        sizes = [len(candidates)] if self.screen is None else self.screen.sizes(len(candidates))
        if self.screen is None or len(sizes) == 1:
            return list(candidates)
        left = list(candidates)
        seen: dict[Layers, list[Score]] = {}
        for number, (rung, size) in enumerate(zip(self.screen.rungs, sizes[1:], strict=True)):
            rung.scorer.prepare(paths)
            for candidate in left:
                score = self._try(rung.scorer, candidate)
                if score is not None:
                    scores = seen.setdefault(candidate.layers, [])
                    scores.append(score)
                    self.screened[candidate.layers] = Screened(rung.objective(scores), number)
                self.advance(1, f"screen: {candidate.name}")
            known = [candidate for candidate in left if candidate.layers in seen]
            left = sort_for_reuse(sorted(known, key=lambda one: self.screened[one.layers].value)[:size])
        return left

    def _try(self, scorer: Scores, candidate: Candidate) -> Score | None:
        try:
            return scorer.score(candidate.layers)
        except PlanError as error:
            self.refused[candidate.layers] = error.problems[0].what
            return None


def search_all(search: Search, space: Space, candidates: Sequence[Candidate]) -> None:
    """Score every candidate of a list."""
    first = {candidate.layers[0][0] for candidate in candidates}
    search.score(sort_for_reuse(candidates), [space.of(donor) for donor in space.depths if donor in first])


def search_drops(search: Search, space: Space, count: int, beam: int, seed: int) -> None:
    """Leave `count` layers of the host out, one after the other, so that the model loses least.

    At each step every remaining layer of the `beam` best models is tried (`beam` 1 is greedy). Models of every depth on
    the way are scored too; `finalists` picks those of the last.
    """
    states = [space.host]
    for _ in range(count):
        tried = search.score(_within(search, (_without(state) for state in states), seed), states)
        if not tried:
            return
        states = [scored.candidate.layers for scored in sorted(tried, key=lambda scored: scored.value)[:beam]]


def search_mixes(search: Search, space: Space, beam: int, seed: int) -> None:
    """Choose a donor for each layer of the host: change one layer at a time, as long as the best model gets better.

    At each step every single change of the `beam` best models is tried. Ends when no change improves the best one, or
    when the budget is used up.
    """
    (start,) = search.score([Candidate(Mix(space.host), space.host)], [space.host])
    states = [start]
    while search.left > 0:
        before = states[0].value
        paths = [state.candidate.layers for state in states]
        tried = search.score(_within(search, (_with_one_change(path, space) for path in paths), seed), paths)
        known = {scored.candidate.layers: scored for scored in (*states, *tried)}
        states = sorted(known.values(), key=lambda scored: scored.value)[:beam]
        if states[0].value >= before:
            return


def rounds_of_drops(depth: int, count: int, beam: int) -> list[int]:
    """At most how many models each step of `search_drops` tries."""
    return [(depth - step) * (beam if step else 1) for step in range(count)]


def _within(search: Search, moves: Iterable[Iterator[Layers]], seed: int) -> list[Candidate]:
    """The new arrangements that `moves` lead to, in the order for reuse; a draw of them where the budget is smaller."""
    reached = dict.fromkeys(layers for move in moves for layers in move)
    fresh = sort_for_reuse(Candidate(Mix(layers), layers) for layers in reached if layers not in search.tried)
    return draw(fresh, max(search.left, 0), seed)


def _without(layers: Layers) -> Iterator[Layers]:
    if len(layers) > 1:
        yield from (layers[:place] + layers[place + 1 :] for place in range(len(layers)))


def _with_one_change(layers: Layers, space: Space) -> Iterator[Layers]:
    for place in range(len(layers)):
        for donor, depth in space.depths.items():
            if place < depth and layers[place] != (donor, place):
                yield (*layers[:place], (donor, place), *layers[place + 1 :])
