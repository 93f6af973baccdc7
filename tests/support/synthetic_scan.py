"""Records of scans without a model: changes drawn at random, the best tested."""

from typing import Any

import numpy as np

from hybridizer.scan.candidates import Candidate, Mix, Space, list_candidates
from hybridizer.scan.record import Figures, Row, ScannedDonor, ScanRecord, Winner, make_row
from hybridizer.scan.request import KINDS, OF_ONE_DONOR
from hybridizer.scan.select import Decision, Null

PART = Figures(8, 4000, 900, 0, 0, 1.05, None, None)
TEST = Figures(8, 4100, 910, 20, 10, 1.07, 0.4, 0.21)


def synthetic_scan(
    depths: dict[str, int], by: str = "bits", screened: bool = False, steps: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The JSON object of a scan of donors of these depths; two winners, of which the first is better."""
    generator = np.random.default_rng(len(depths))
    space = Space(depths, 2)
    candidates = _steps(space, steps) if steps else list_candidates(space, KINDS if len(depths) > 1 else OF_ONE_DONOR)
    rows = []
    for candidate in candidates:
        change = float(generator.normal(0.03, 0.05))
        rows.append(make_row(candidate, change + 0.01 if screened else None, change))
    rows.sort(key=lambda row: row.change if by == "bits" else -row.change)
    winners = tuple(_winner(row, by, verdict) for row, verdict in zip(rows, ("better", "worse"), strict=False))
    return ScanRecord(
        donors=tuple(ScannedDonor(name, name, "sha256:0", depth) for name, depth in depths.items()),
        settings={"by": by, "candidates": 300, "seed": 0, **(steps or {})},
        text="Python reference",
        probes="antonyms-en",
        screen=PART if screened else None,
        search=PART,
        test=TEST,
        num_possible=None if steps else len(rows),
        num_tried=len(rows),
        num_scored=len(rows),
        num_refused=0,
        candidates=tuple(rows),
        null=Null(len(rows), 2.1, 3, 0.7, 3.1, 3.4),
        winners=winners,
        sentence=f"'{rows[0].name}' is better than the model as it is, on items that the search did not see.",
    ).to_json()


def _steps(space: Space, steps: dict[str, Any]) -> list[Candidate]:
    host = space.host
    if "drop" in steps:
        found = [host[:i] + host[i + 1 :] for i in range(3)] + [host[:i] + host[i + 2 :] for i in range(3)]
    else:
        found = [(*host[:i], ("b", i), *host[i + 1 :]) for i in range(3)]
        found += [(("b", 0), *host[1 : i + 2], ("b", i + 2), *host[i + 3 :]) for i in range(3)]
    return [Candidate(Mix(layers), layers) for layers in found]


def _winner(row: Row, by: str, verdict: str) -> Winner:
    assert row.change is not None
    decision = Decision(row.change, (row.change - 0.01, row.change + 0.01), verdict)
    other = Decision(-0.025, None, "no difference shown")
    bits, accuracy = (decision, other) if by == "bits" else (other, decision)
    return Winner(row, 1.02, 0.375, bits, accuracy, verdict)
