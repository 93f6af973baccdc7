"""What a scan is to do. Nothing heavy is imported here: the command line reads its defaults from this class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from hybridizer.core.errors import DidYouMean, Problem

KINDS = ("cut", "repeat", "seam", "swap", "band")
OF_ONE_DONOR = ("cut", "repeat")
BITS, ACCURACY = "bits", "accuracy"
BY = (BITS, ACCURACY)
_COUNTS = ("span", "beam", "candidates", "best", "document_tokens")


@dataclass(frozen=True)
class ScanRequest:
    """The search, its budget, and the items that models are scored on.

    Attributes:
        changes: kinds of candidates; all that the number of donors allows if empty.
        span: the most layers that a change cuts, repeats or takes from another donor, or a seam adds or loses.
        drop: leave this many layers out, one after the other, in place of `changes`.
        per_layer: choose a donor for each layer, one after the other, in place of `changes`.
        beam: how many models `drop` and `per_layer` go on from at each step.
        by: the figure that is searched by and decided on: bits (per byte) or accuracy (of the probes).
        candidates: the most models that the search scores.
        screen: look at many candidates on few items first, and score the best of them in full.
        best: how many of the best are tested again.
        documents, document_tokens: beginnings of documents, of so many tokens each, for search and test together.
        prompts: the most probes, likewise.
        seed: of the division of the items, draws and resamples.
    """

    changes: tuple[str, ...] = ()
    span: int = 4
    drop: int | None = None
    per_layer: bool = False
    beam: int = 1
    by: str = BITS
    candidates: int = 300
    screen: bool = True
    best: int = 5
    documents: int = 72
    document_tokens: int = 64
    prompts: int = 120
    seed: int = 0

    @property
    def steps(self) -> bool:
        """Whether the search goes step by step."""
        return self.drop is not None or self.per_layer

    def kinds(self, num_donors: int) -> tuple[str, ...]:
        """The kinds of candidates for so many donors."""
        return self.changes or (KINDS if num_donors > 1 else OF_ONE_DONOR)

    def settings(self) -> dict[str, Any]:
        """All settings that apply, for the record."""
        unused = {"changes", "span"} if self.steps else {"drop", "per_layer", "beam"}
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in unused}

    def problems(self, num_donors: int) -> Iterator[Problem]:
        """What is wrong with the request, whatever the donors are."""
        for name in _COUNTS:
            if getattr(self, name) < 1:
                yield Problem(name, f"{getattr(self, name)} is not possible; the least is 1.", "Give a larger number.")
        for name in self.changes:
            if name not in KINDS:
                yield Problem("changes", f"there is no change '{name}'.", DidYouMean(name, KINDS))
            elif name not in OF_ONE_DONOR and num_donors < 2:
                yield Problem("changes", f"a {name} needs a second donor.", "Name another donor, or leave it out.")
        if self.by not in BY:
            yield Problem("by", f"there is no figure '{self.by}'.", DidYouMean(self.by, BY))
        yield from self._clashes(num_donors)
        yield from self._item_problems()

    def _clashes(self, num_donors: int) -> Iterator[Problem]:
        asked = {"changes": bool(self.changes), "drop": self.drop is not None, "per_layer": self.per_layer}
        chosen = [name for name, is_asked in asked.items() if is_asked]
        if len(chosen) > 1:
            yield Problem(" and ".join(chosen), "these are different searches.", "Give one of them.")
        if self.drop is not None and self.drop < 1:
            yield Problem("drop", f"{self.drop} is not possible; the least is 1.", "Give a larger number.")
        if self.per_layer and num_donors < 2:
            yield Problem("per_layer", "there is one donor to choose from.", "Name another donor.")

    def _item_problems(self) -> Iterator[Problem]:
        counts = {"documents": self.documents, "prompts": self.prompts}
        yield from (Problem(name, f"{n} is negative.", "Give 0 or more.") for name, n in counts.items() if n < 0)
        needed = "documents" if self.by == BITS else "prompts"
        if counts[needed] in (0, 1):
            what = f"{counts[needed]} cannot be divided into those for the search by {self.by} and those for the test."
            yield Problem(needed, what, "Give 2 or more, or search by the other figure.")
        if self.document_tokens == 1:
            yield Problem("document_tokens", "the first token is not predicted.", "Give 2 or more.")
