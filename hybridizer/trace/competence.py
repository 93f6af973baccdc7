"""Whether a donor does the probes better than chance, and whether it may have memorised half of them.

Competence is measured on the held-out half of the probes, which decides nothing else; the other half, on which choices
are made, is reported beside it. Probes that are too few to be halved are used whole. Ours, except the intervals.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybridizer.core.bootstrap import Array, Clusters, Interval, count_clusters, number_clusters, proportion_interval
from hybridizer.core.errors import InputError, Problem
from hybridizer.trace.probes import Probe, ProbeSet, continuation

LEAST_TO_HALVE = 40  # usable targets
LEAST_IN_HALF = 10
SELECTION, HELD_OUT = "selection", "held-out"


@dataclass(frozen=True)
class Halves:
    """Masks (n,) over the probes: `measured` on, and of the selection half, None where the probes are used whole.

    `clusters` are those of all probes. Probes without a usable target are in neither.
    """

    measured: NDArray[np.bool_]
    selection: NDArray[np.bool_] | None
    clusters: Clusters | None

    @property
    def num_clusters(self) -> int:
        """How many clusters competence is measured on."""
        chosen = None if self.clusters is None else number_clusters(self.clusters[self.measured].tolist())
        return count_clusters(int(self.measured.sum()), chosen)


def split_answered(probes: Sequence[Probe], answered: NDArray[np.bool_]) -> Halves:
    """What competence is measured on, of the probes that are `answered` (n,): those with a target that can be given.

    All of them where there are fewer than LEAST_TO_HALVE, fewer than LEAST_IN_HALF in a half, or all targets of the
    held-out half are alike.
    """
    clusters = number_clusters([probe.cluster for probe in probes])
    held_out = np.array([probe.held_out for probe in probes], np.bool_)
    halves = answered & held_out, answered & ~held_out
    different = {probe.target for probe, chosen in zip(probes, halves[0], strict=True) if chosen}
    enough = answered.sum() >= LEAST_TO_HALVE and min(half.sum() for half in halves) >= LEAST_IN_HALF
    if not enough or len(different) < 2:
        return Halves(answered, None, clusters)
    return Halves(halves[0], halves[1], clusters)


def chance_level(targets: Sequence[str | None]) -> float:
    """The share of the most frequent target: the accuracy of a model that always answers with it.

    Raises InputError for fewer than two different targets.
    """
    counts = Counter(targets)
    if len(counts) < 2:
        what = "no probe has a target that every donor could give" if not counts else "every probe has the same target"
        fix = "Give probes with different one-token targets; by stability alone a random model would rank first."
        raise InputError(Problem("probes", f"{what}, so that competence cannot be distinguished from chance.", fix))
    return max(counts.values()) / len(targets)


def is_at_chance(hit: Array, probes: Sequence[Probe]) -> bool:
    """Whether a donor that gave these answers, 1 or 0 and NaN without one, may be no better than chance.

    Judged on the held-out half where the probes can be halved. False where the targets cannot distinguish: none that it
    can give, or all the same.
    """
    halves = split_answered(probes, ~np.isnan(hit))
    targets = [probe.target for probe, chosen in zip(probes, halves.measured, strict=True) if chosen]
    if len(set(targets)) < 2:
        return False
    band = accuracy_interval(hit, halves.measured, halves.clusters)
    return band is not None and band[0] <= chance_level(targets)


def accuracy_interval(hit: Array, chosen: NDArray[np.bool_], clusters: Clusters | None) -> Interval | None:
    """The interval of the accuracy on the `chosen` probes (n,), Wilson's with clusters; None without any."""
    return proportion_interval(np.where(chosen, hit, np.nan), clusters)


def accuracy_gap(hit: Array, halves: Halves) -> tuple[float, Interval] | None:
    """Accuracy on the selection half less that on the held-out half, with its 95% interval; None without halves.

    Source: Newcombe (1998, Statistics in Medicine 17, method 10), from the two intervals with clusters. Unlike the
    bootstrap it has a width where all answers of a half are right or wrong, as those of a memoriser are.
    """
    if halves.selection is None:
        return None
    shares, ends = [], []
    for half in (halves.selection, halves.measured):
        band = accuracy_interval(hit, half, halves.clusters)
        assert band is not None, "both halves have answers"
        shares.append(float(hit[half].mean()))
        ends.append(band)
    gap = shares[0] - shares[1]
    below = math.hypot(shares[0] - ends[0][0], ends[1][1] - shares[1])
    above = math.hypot(ends[0][1] - shares[0], shares[1] - ends[1][0])
    return gap, (gap - below, gap + above)


def compare_halves(hit: Array, halves: Halves) -> dict[str, Any]:
    """The fields of a RankedDonor that compare its accuracy on both halves; None for each without halves."""
    found = accuracy_gap(hit, halves)
    fields = ("selection_accuracy", "selection_accuracy_ci", "gap", "gap_ci", "memorised")
    if found is None or halves.selection is None:
        return dict.fromkeys(fields)
    gap, (low, high) = found
    memorised = SELECTION if low > 0 else HELD_OUT if high < 0 else None
    accuracy = float(hit[halves.selection].mean())
    band = accuracy_interval(hit, halves.selection, halves.clusters)
    return dict(zip(fields, (accuracy, band, gap, (low, high), memorised), strict=True))


def describe_halves(probes: ProbeSet, answered_n: int, selection_n: int) -> Iterator[str]:
    """Yield that the probes were used whole, or how far the halves are from being independent."""
    if not selection_n:
        yield f"{probes.name}: {answered_n} usable targets are too few to be halved; competence is on all of them."
        return
    leaks, asked = count_leaks(probes.probes)
    if leaks:
        yield (
            f"{probes.name}: {leaks} of {asked} held-out questions are among the examples of the selection half; a "
            f"donor that learnt its text may know them. The built-in tasks-en and tasks-zh have no such question."
        )


def count_leaks(probes: Sequence[Probe]) -> tuple[int, int]:
    """How many held-out probes have their question with its answer among the examples of the other half, and of how
    many: a donor that learnt the text of that half has seen them.
    """
    texts = [probe.prompt[: _question_at(probe)] for probe in probes if not probe.held_out]
    lines = sorted({text[line.start() :] for text in texts for line in re.finditer("^(?=.)", text, re.MULTILINE)})
    asked = [probe for probe in probes if probe.held_out and probe.target is not None]
    found = [_begins_a_line(probe.prompt[_question_at(probe) :] + continuation(probe), lines) for probe in asked]
    return sum(found), len(asked)


def _question_at(probe: Probe) -> int:
    """Where the last line of the prompt begins, an empty one left out: examples come before it."""
    return probe.prompt.rstrip("\n").rfind("\n") + 1


def _begins_a_line(words: str, lines: Sequence[str]) -> bool:
    """Whether one of the sorted `lines` begins with these words, and not with longer ones: 1 is not 12."""
    for at in range(bisect_left(lines, words), len(lines)):
        if not lines[at].startswith(words):
            return False
        if not (after := lines[at][len(words) : len(words) + 1]).isascii() or not after.isalnum():
            return True
    return False


def above_chance(share: Array, chance: float) -> Array:
    """Shares (...) on a scale on which `chance` and everything below it is 0, and 1 is 1."""
    return np.maximum(0, (share - chance) / (1 - chance))
