"""Scores kept on disk as they are computed: a scan that was stopped resumes, and one that is repeated costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hybridizer.core.errors import PlanError, Problem
from hybridizer.core.journal import Journal
from hybridizer.scan.candidates import Layers, describe
from hybridizer.scan.score import Score, Scorer

_FIGURES = ("bits", "hit", "target_prob")


class ScoreLog:
    """The scores of one scan on one half of its items: from the journal, or from a scorer, made when it is needed.

    The journal's key must cover donors, items, dtype and device.
    """

    def __init__(self, journal: Journal, make: Callable[[], Scorer], sizes: tuple[int, int]) -> None:
        """`sizes` are the numbers of documents and prompts. Raises JournalError for a line that holds no such score."""
        self._journal, self._make = journal, make
        self._scorer: Scorer | None = None
        self._paths: tuple[Layers, ...] = ()
        self._kept: tuple[Layers, ...] = ()
        self._known = dict(_read(journal, where, value, sizes) for where, value in journal.lines)

    def prepare(self, paths: Sequence[Layers]) -> None:
        """Keep the activations of `paths`, and of nothing else, once a model has to be run."""
        self._paths = tuple(paths)

    def score(self, layers: Layers) -> Score:
        """The score of a model. Raises PlanError where the family cannot have these layers in this order."""
        if layers not in self._known:
            self._known[layers] = self._run(layers)
            self._journal.append(_to_line(layers, self._known[layers]))
        found = self._known[layers]
        if isinstance(found, str):
            raise PlanError(Problem(describe(layers), found, "Leave this arrangement out."))
        return found

    def _run(self, layers: Layers) -> Score | str:
        scorer = self._scorer = self._scorer or self._make()
        try:
            if self._kept != self._paths:
                scorer.forget()
                self._kept = self._paths
                for path in self._paths:
                    scorer.keep(path)
            return scorer.score(layers)
        except PlanError as error:
            return error.problems[0].what


def _to_line(layers: Layers, found: Score | str) -> dict[str, Any]:
    if isinstance(found, str):
        return {"layers": layers, "refused": found}
    return {"layers": layers, **{name: getattr(found, name).tolist() for name in _FIGURES}}


def _read(journal: Journal, where: str, line: Any, sizes: tuple[int, int]) -> tuple[Layers, Score | str]:
    try:
        layers = tuple((str(donor), int(layer)) for donor, layer in line["layers"])
        if "refused" in line:
            return layers, str(line["refused"])
        score = Score(*(np.array(line[name], np.float64) for name in _FIGURES))
    except (KeyError, TypeError, ValueError, OverflowError):
        raise journal.damage(where, "the line holds no score") from None
    if [array.shape for array in (score.bits, score.hit, score.target_prob)] != [(sizes[0],), (sizes[1],), (sizes[1],)]:
        raise journal.damage(where, "the line holds a score of other items")
    return layers, score
