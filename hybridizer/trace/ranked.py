"""The record of a ranking, "hybridizer.ranking/4": donors in order, and everything that the order rests on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hybridizer.core.bootstrap import Interval
from hybridizer.core.records import to_jsonable
from hybridizer.trace.boundary import Boundary

SCHEMA = "hybridizer.ranking/4"


@dataclass(frozen=True)
class RankedDonor:
    """One donor: `score` and its parts, each with its 95% interval; all 0..1 except bits per byte.

    `competence`, `accuracy`, `target_prob` and `bits_per_byte` are those of the host with the donor's side in place of
    its own (`measured` "side"), or of the donor itself ("whole", for the reason in `why_whole`). The first three are
    those of the held-out half, `selection_accuracy` is that of the other half and `gap` how much larger it is; both are
    None where the probes were used whole. `memorised` names the half that is answered better beyond doubt, if one is.
    `tied_with` names the donors from which the score does not differ beyond doubt.
    """

    donor: str
    score: float
    score_ci: Interval
    stability: float
    stability_ci: Interval
    competence: float
    competence_ci: Interval
    accuracy: float
    accuracy_ci: Interval
    selection_accuracy: float | None
    selection_accuracy_ci: Interval | None
    gap: float | None
    gap_ci: Interval | None
    memorised: str | None
    target_prob: float
    target_prob_ci: Interval
    bits_per_byte: float | None
    bits_per_byte_ci: Interval | None
    first_layer: int
    last_layer: int
    tied_with: tuple[str, ...]
    competent: bool
    measured: str
    why_whole: str | None


@dataclass(frozen=True)
class Ranking:
    """Donors, best first, by the measure `by`, for one `side` of a splice on `host`.

    Stability is measured on `n` prompts in `num_clusters` clusters, competence on `answered_n` in `answered_clusters`,
    which are of the held-out half; `selection_n` are of the other half, 0 where the probes were too few to be halved.
    Bits are those of `num_documents` of `num_bytes` bytes. `boundaries` are where that side begins or ends, by donor;
    `probes` and `settings` those of the traces. `warnings` say which donors may have memorised the probes or have
    other tokens than the host, `notes` what to know of the probes.
    """

    n: int
    num_clusters: int
    answered_n: int
    answered_clusters: int
    selection_n: int
    num_documents: int
    num_bytes: int
    chance: float
    seed: int
    num_resamples: int
    by: str
    side: str
    ranking: tuple[RankedDonor, ...]
    host: str | None = None
    probes: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    boundaries: Mapping[str, Boundary] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The ranking as the plain JSON object of the contract, `schema` first."""
        return {"schema": SCHEMA, **to_jsonable(self)}


def warn_of_memory(row: RankedDonor) -> str:
    """The warning of a donor that answers one half of the probes better beyond doubt."""
    assert row.selection_accuracy is not None and row.gap_ci is not None, "halves were compared"
    low, high = row.gap_ci
    return (
        f"'{row.donor}' may have memorised the {row.memorised} half of the probes: accuracy "
        f"{row.selection_accuracy:.1%} on the selection half and {row.accuracy:.1%} on the held-out half, a difference "
        f"of {row.gap:+.1%} ({low:+.1%} to {high:+.1%})."
    )
