"""The record of a scan, schema "hybridizer.scan/1", and how it is made of the figures per item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from hybridizer.core.bootstrap import Array
from hybridizer.core.records import to_jsonable
from hybridizer.recipe.layers import expand, format_layers, read_ranges
from hybridizer.scan.candidates import Layers, Mix, to_slices
from hybridizer.scan.request import ACCURACY, BITS, ScanRequest
from hybridizer.scan.search import Scored
from hybridizer.scan.select import BETTER, Decision, Null, decide, find_null, sum_groups

if TYPE_CHECKING:
    from hybridizer.scan.items import Half
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
class HalfFigures:
    """One half of the items and the host's figures on it; None where there is no document or no prompt."""

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
    """A candidate on the search half: its figures, and `change`, the change of the figure that was searched by.

    `slices` are those of a recipe's layout, `place` the numbers of the change, such as first and last layer.
    """

    name: str
    kind: str
    place: Mapping[str, Any]
    slices: tuple[Mapping[str, Any], ...]
    num_layers: int
    bits_per_byte: float | None
    accuracy: float | None
    target_prob: float | None
    change: float


@dataclass(frozen=True)
class Winner:
    """A candidate on the test half. `bits` and `accuracy` are its changes; None where there is nothing to measure them.

    `verdict` is that of the figure that was searched by.
    """

    name: str
    slices: tuple[Mapping[str, Any], ...]
    num_layers: int
    search_change: float
    bits_per_byte: float | None
    bits: Decision | None
    hits: float | None
    accuracy: Decision | None
    verdict: str


@dataclass(frozen=True)
class ScanRecord:
    """A scan: what was asked for, every candidate best first, what chance would find, and the winners re-tested.

    `settings` hold whatever decides the result. `num_possible` is how many candidates there are (None
    for a search step by step), `num_tried` how many were scored, `num_refused` how many the family cannot have. `null`
    is None where it cannot be computed.
    """

    donors: tuple[ScannedDonor, ...]
    settings: Mapping[str, Any]
    text: str | None
    probes: str | None
    search: HalfFigures
    test: HalfFigures
    num_possible: int | None
    num_tried: int
    num_refused: int
    candidates: tuple[Row, ...]
    null: Null | None
    winners: tuple[Winner, ...]
    sentence: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        rate = self.null.false_discovery_rate if self.null else None
        null = {**asdict(self.null), "false_discovery_rate": rate} if self.null else None
        return {"schema": SCHEMA, **to_jsonable({f.name: getattr(self, f.name) for f in fields(self)}), "null": null}


def describe_half(half: Half, host: Score) -> HalfFigures:
    """One half and the host's figures on it."""
    bits, hits, probability = _figures(half, host)
    return HalfFigures(
        num_documents=half.num_documents,
        num_bytes=int(half.items.num_bytes.sum()),
        num_tokens=half.items.num_tokens,
        num_prompts=len(half.items.prompts),
        num_groups=len(half.group_sizes),
        bits_per_byte=bits,
        accuracy=hits,
        target_prob=probability,
    )


def value_of(half: Half, score: Score, by: str) -> float:
    """What a search minimises: bits per byte, or the accuracy with its sign changed."""
    return float(score.bits.sum() / half.items.num_bytes.sum()) if by == BITS else -float(score.hit.mean())


def make_row(scored: Scored, half: Half, host: Score, by: str) -> Row:
    """A candidate's row."""
    candidate = scored.candidate
    bits, hits, probability = _figures(half, scored.score)
    change = scored.value - value_of(half, host, by)
    return Row(
        name=candidate.name,
        kind=type(candidate.change).__name__.lower(),
        place={} if isinstance(candidate.change, Mix) else asdict(candidate.change),
        slices=tuple(to_slices(candidate.layers)),
        num_layers=len(candidate.layers),
        bits_per_byte=bits,
        accuracy=hits,
        target_prob=probability,
        change=change if by == BITS else -change,
    )


def find_chance(scored: Sequence[Scored], half: Half, host: Score, by: str, seed: int) -> Null | None:
    """What the search half would show by chance, for all candidates."""
    if not scored:
        return None
    differences, sizes = _differences([one.score for one in scored], half, host, by)
    return find_null(differences, sizes, lower_is_better=by == BITS, seed=seed)


def retest(
    rows: Sequence[Row], scores: Sequence[Score], half: Half, host: Score, by: str, seed: int
) -> tuple[Winner, ...]:
    """The winners of a search on the test half, in their order; `rows` are theirs, `scores` those of this half.

    The intervals and verdicts of one figure hold for all winners together.
    """
    by_measure: dict[str, Sequence[Decision | None]] = {BITS: [None] * len(rows), ACCURACY: [None] * len(rows)}
    for measure in (BITS, ACCURACY):
        if scores and _has(half, measure):
            differences, sizes = _differences(scores, half, host, measure)
            by_measure[measure] = decide(differences, sizes, lower_is_better=measure == BITS, seed=seed)
    winners = []
    for row, score, bits, accuracy in zip(rows, scores, by_measure[BITS], by_measure[ACCURACY], strict=True):
        decision = bits if by == BITS else accuracy
        assert decision is not None, "a search goes by a figure that there is"
        bits_per_byte, hits, _ = _figures(half, score)
        about = (row.name, row.slices, row.num_layers, row.change)
        winners.append(Winner(*about, bits_per_byte, bits, hits, accuracy, decision.verdict))
    return tuple(winners)


def summarise(winners: Sequence[Winner], host: Layers, request: ScanRequest) -> str:
    """The result in one sentence."""
    if not winners:
        return f"{NOTHING_BETTER}: there was nothing to try."
    if request.drop is not None:
        return _summarise_drop(winners[0], host, request.by)
    better = [f"'{winner.name}'" for winner in winners if winner.verdict == BETTER]
    if not better:
        return (
            f"{NOTHING_BETTER}: none of the {len(winners)} best of the search is better on items that it did not see."
        )
    verb = "is" if len(better) == 1 else "are"
    return f"{', '.join(better)} {verb} better than the model as it is, on items that the search did not see."


def _summarise_drop(best: Winner, host: Layers, by: str) -> str:
    kept = {(entry["donor"], layer) for entry in best.slices for layer in expand(read_ranges(entry["layers"]))}
    gone = format_layers([layer for donor, layer in host if (donor, layer) not in kept])
    decision = best.bits if by == BITS else best.accuracy
    assert decision is not None, "a search goes by a figure that there is"
    change = f"{decision.change:+.4f} bits per byte" if by == BITS else f"{decision.change:+.1%} of the probes answered"
    return f"the layers that matter least are {gone}: without them {change} on items that the search did not see."


def _has(half: Half, measure: str) -> bool:
    return half.num_documents > 0 if measure == BITS else len(half.items.prompts) > 0


def _figures(half: Half, score: Score) -> tuple[float | None, float | None, float | None]:
    """Bits per byte, accuracy and mean probability of the right answer."""
    bits = value_of(half, score, BITS) if _has(half, BITS) else None
    if not _has(half, ACCURACY):
        return bits, None, None
    return bits, float(score.hit.mean()), float(score.target_prob.mean())


def _differences(scores: Sequence[Score], half: Half, host: Score, measure: str) -> tuple[Array, Array]:
    """Candidate less host per item (candidates, items), and the sizes (items,): documents, or groups of prompts."""
    if measure == BITS:
        return np.stack([score.bits - host.bits for score in scores]), half.items.num_bytes
    return sum_groups(np.stack([score.hit - host.hit for score in scores]), half.groups), half.group_sizes
