"""The record of a scan, schema "hybridizer.scan/1", and how it is made of the figures per item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from hybridizer.core.bootstrap import Array
from hybridizer.core.records import to_jsonable
from hybridizer.recipe.layers import format_layers
from hybridizer.scan.candidates import Candidate, Layers, Mix, to_slices
from hybridizer.scan.request import ACCURACY, BITS, ScanRequest
from hybridizer.scan.search import Scored, Search
from hybridizer.scan.select import BETTER, Decision, Null, decide, find_null, sum_groups

if TYPE_CHECKING:
    from hybridizer.scan.items import Part
    from hybridizer.scan.score import Score

SCHEMA = "hybridizer.scan/1"
NOTHING_BETTER = "no change was better than the model as it is"


@dataclass(frozen=True)
class ScannedDonor:
    """One donor, under the name that it has in the record and in recipes."""

    name: str
    reference: str
    fingerprint: str
    num_layers: int


@dataclass(frozen=True)
class Figures:
    """The items of one purpose, and the host's figures on them; None where there is no document, or no prompt."""

    num_documents: int
    num_bytes: int
    num_tokens: int
    num_prompts: int
    num_groups: int
    bits_per_byte: float | None
    accuracy: float | None
    target_prob: float | None


@dataclass(frozen=True)
class Row:
    """One candidate of the search. Both changes are of the figure that was searched by, against the host.

    `screened` is its change on the first `screened_items` documents or groups of prompts of the screen, all that it was
    looked at on, both None where there was none; `change` that on the items of the search, None where the candidate did
    not pass the screen. `slices` are those of a recipe's layout, `place` the numbers of the change, such as its first
    and last layer.
    """

    name: str
    kind: str
    place: Mapping[str, Any]
    slices: tuple[Mapping[str, Any], ...]
    num_layers: int
    screened: float | None
    screened_items: int | None
    change: float | None


@dataclass(frozen=True)
class Winner:
    """One of the best of the search, on the items of the test.

    `bits_per_byte` and `accuracy` are its figures, `bits_change` and `accuracy_change` their comparison with the host;
    None where there is nothing to measure them on. `verdict` is that of the figure that was searched by.
    """

    row: Row
    bits_per_byte: float | None
    accuracy: float | None
    bits_change: Decision | None
    accuracy_change: Decision | None
    verdict: str


@dataclass(frozen=True)
class ScanRecord:
    """A scan: what was asked for, every candidate best first, what chance would find, and the winners tested.

    `settings` hold whatever decides the result. `num_possible` is how many candidates there are (None for a search step
    by step), `num_tried` how many were looked at, `num_scored` how many of these were scored in full, `num_refused` how
    many the family cannot have. `screen` is None where nothing was screened, `null` where it cannot be computed.
    """

    donors: tuple[ScannedDonor, ...]
    settings: Mapping[str, Any]
    text: str | None
    probes: str | None
    screen: Figures | None
    search: Figures
    test: Figures
    num_possible: int | None
    num_tried: int
    num_scored: int
    num_refused: int
    candidates: tuple[Row, ...]
    null: Null | None
    winners: tuple[Winner, ...]
    sentence: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        null = None
        if self.null is not None:
            null = {**asdict(self.null), "false_discovery_rate": self.null.false_discovery_rate}
        return {"schema": SCHEMA, **to_jsonable({f.name: getattr(self, f.name) for f in fields(self)}), "null": null}


def measure(part: Part, host: Score) -> Figures:
    """The items of one purpose and the host's figures on them."""
    bits, accuracy = _figure(part, host, BITS), _figure(part, host, ACCURACY)
    return Figures(
        num_documents=part.num_documents,
        num_bytes=int(part.items.num_bytes.sum()),
        num_tokens=part.items.num_tokens,
        num_prompts=len(part.groups),
        num_groups=len(part.group_sizes),
        bits_per_byte=bits,
        accuracy=accuracy,
        target_prob=float(host.target_prob.mean()) if part.groups else None,
    )


def value_of(part: Part, score: Score, by: str) -> float:
    """What a search minimises: bits per byte, or the accuracy with its sign changed."""
    found = _figure(part, score, by)
    assert found is not None, "a search goes by a figure that there is"
    return found if by == BITS else -found


def list_rows(search: Search, host: float, screened_host: Sequence[float], by: str) -> list[Row]:
    """Every candidate that could be, best first: those that were scored in full, then those that were screened.

    Those that were screened on more items come first. `host` and `screened_host` are the host's values on the items of
    the search, and of the screen up to each rung.
    """
    sign = 1 if by == BITS else -1
    rows = []
    for layers, candidate in search.tried.items():
        full, quick = search.scored.get(layers), search.screened.get(layers)
        if full is None and quick is None:
            continue
        change = None if full is None else sign * (full.value - host)
        if quick is None or search.screen is None:
            rows.append(make_row(candidate, None, change))
            continue
        screened, items = sign * (quick.value - screened_host[quick.rung]), search.screen.rungs[quick.rung].num_items
        rows.append(make_row(candidate, screened, change, items))

    def place(row: Row) -> tuple[bool, int, float]:
        """Best first; what was scored in full was screened on the most items."""
        items = 0 if row.change is not None else -(row.screened_items or 0)
        return row.change is None, items, sign * _first(row.change, row.screened)

    return sorted(rows, key=place)


def make_row(
    candidate: Candidate, screened: float | None, change: float | None, screened_items: int | None = None
) -> Row:
    """The row of a candidate."""
    return Row(
        name=candidate.name,
        kind=type(candidate.change).__name__.lower(),
        place={} if isinstance(candidate.change, Mix) else asdict(candidate.change),
        slices=tuple(to_slices(candidate.layers)),
        num_layers=len(candidate.layers),
        screened=screened,
        screened_items=screened_items,
        change=change,
    )


def find_chance(scored: Sequence[Scored], part: Part, host: Score, by: str, seed: int) -> Null | None:
    """What the items of the search would show by chance, for all candidates that were scored in full."""
    if not scored:
        return None
    differences, sizes = _differences([one.score for one in scored], part, host, by)
    return find_null(differences, sizes, lower_is_better=by == BITS, seed=seed)


def retest(
    rows: Sequence[Row], scores: Sequence[Score], part: Part, host: Score, by: str, seed: int
) -> tuple[Winner, ...]:
    """The best of the search on the items of the test, in their order; `scores` are theirs on these items.

    The intervals and verdicts of one figure hold for all winners together.
    """
    changes: dict[str, Sequence[Decision | None]] = {}
    for figure, present in ((BITS, part.num_documents > 0), (ACCURACY, bool(part.groups))):
        changes[figure] = [None] * len(rows)
        if rows and present:
            differences, sizes = _differences(scores, part, host, figure)
            changes[figure] = decide(differences, sizes, lower_is_better=figure == BITS, seed=seed)
    winners = []
    for row, score, bits, accuracy in zip(rows, scores, changes[BITS], changes[ACCURACY], strict=True):
        decision = bits if by == BITS else accuracy
        assert decision is not None, "a search goes by a figure that there is"
        figures = _figure(part, score, BITS), _figure(part, score, ACCURACY)
        winners.append(Winner(row, *figures, bits, accuracy, decision.verdict))
    return tuple(winners)


def summarise(winners: Sequence[Winner], best: Layers | None, host: Layers, request: ScanRequest) -> str:
    """The result in one sentence; `best` are the layers of the first winner."""
    if best is None:
        return f"{NOTHING_BETTER}: there was nothing to try."
    if request.drop is not None:
        return _summarise_drop(winners[0], best, host, request.by)
    better = [f"'{winner.row.name}'" for winner in winners if winner.verdict == BETTER]
    if not better:
        return f"{NOTHING_BETTER}: none of the {len(winners)} best of the search is, on items that it did not see."
    verb = "is" if len(better) == 1 else "are"
    return f"{', '.join(better)} {verb} better than the model as it is, on items that the search did not see."


def _summarise_drop(winner: Winner, best: Layers, host: Layers, by: str) -> str:
    gone = format_layers([layer for donor, layer in host if (donor, layer) not in best])
    decision = winner.bits_change if by == BITS else winner.accuracy_change
    assert decision is not None, "a search goes by a figure that there is"
    change = f"{decision.change:+.4f} bits per byte" if by == BITS else f"{decision.change:+.1%} of the probes answered"
    return f"the layers that matter least are {gone}: without them {change} on items that the search did not see."


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


def _figure(part: Part, score: Score, figure: str) -> float | None:
    if figure == BITS:
        return float(score.bits.sum() / part.items.num_bytes.sum()) if part.num_documents else None
    return float(score.hit.mean()) if part.groups else None


def _differences(scores: Sequence[Score], part: Part, host: Score, figure: str) -> tuple[Array, Array]:
    """Candidate less host per item (candidates, items), and the sizes (items,): documents, or groups of prompts."""
    if figure == BITS:
        return np.stack([score.bits - host.bits for score in scores]), part.items.num_bytes
    return sum_groups(np.stack([score.hit - host.hit for score in scores]), part.groups), part.group_sizes
