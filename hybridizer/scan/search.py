"""Three searches over arrangements of layers: every candidate of a list, layers to leave out, a donor for each layer.

They see a scorer, which turns layers into figures per item, and an objective, which turns those into one number; lower
is better. What is scored together is in an order that shares beginnings.
"""

from __future__ import annotations

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


@dataclass
class Search:
    """The state of a search: what was scored, in order, each arrangement once, at most `budget` of them.

    `refused` are the arrangements that the family cannot have, each with the reason.
    """

    scorer: Scores
    objective: Objective
    advance: Advance
    budget: int
    scored: dict[Layers, Scored] = field(default_factory=dict)
    refused: dict[Layers, str] = field(default_factory=dict)

    @property
    def left(self) -> int:
        """How many arrangements may still be scored."""
        return self.budget - len(self.scored) - len(self.refused)

    def best(self, count: int) -> list[Scored]:
        """The best so far, best first; of equal ones the first scored."""
        return sorted(self.scored.values(), key=lambda scored: scored.value)[:count]

    def score(self, candidates: Sequence[Candidate], paths: Sequence[Layers]) -> list[Scored]:
        """Those of the candidates that can be, with their figures; what was scored before is not scored again.

        Most of them begin as one of `paths` does.
        """
        self.scorer.prepare(paths)
        for candidate in candidates:
            if candidate.layers in self.scored or candidate.layers in self.refused:
                continue
            try:
                score = self.scorer.score(candidate.layers)
            except PlanError as error:
                self.refused[candidate.layers] = error.problems[0].what
            else:
                self.scored[candidate.layers] = Scored(candidate, score, self.objective(score))
            self.advance(1, candidate.name)
        return [self.scored[candidate.layers] for candidate in candidates if candidate.layers in self.scored]


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


def cost_of_drops(depth: int, count: int, beam: int) -> int:
    """At most how many models `search_drops` scores."""
    return sum((depth - step) * (beam if step else 1) for step in range(count))


def _within(search: Search, moves: Iterable[Iterator[Layers]], seed: int) -> list[Candidate]:
    """The new arrangements that `moves` lead to, in the order for reuse; a draw of them where the budget is smaller."""
    reached = dict.fromkeys(layers for move in moves for layers in move)
    known = search.scored.keys() | search.refused.keys()
    fresh = sort_for_reuse(Candidate(Mix(layers), layers) for layers in reached if layers not in known)
    return draw(fresh, max(search.left, 0), seed)


def _without(layers: Layers) -> Iterator[Layers]:
    if len(layers) > 1:
        yield from (layers[:place] + layers[place + 1 :] for place in range(len(layers)))


def _with_one_change(layers: Layers, space: Space) -> Iterator[Layers]:
    for place in range(len(layers)):
        for donor, depth in space.depths.items():
            if place < depth and layers[place] != (donor, place):
                yield (*layers[:place], (donor, place), *layers[place + 1 :])
