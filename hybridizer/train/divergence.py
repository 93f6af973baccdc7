"""Whether a loss has diverged: judged by source, over several steps, against the level and the spread before."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WINDOW = 32  # losses that the level and the spread are taken from
LEAST = 10  # losses before there is a level
QUANTILE = 0.9  # of the window: a level that includes the noise of batches
MARGIN = 1.0  # nats per token above the level
STEPS = 12  # consecutive losses above level and margin
EXPLODED_STEPS = 3  # consecutive losses above all before and above those of a uniform guess


@dataclass(frozen=True)
class Fault:
    """A divergence in words, and the step whose loss was the first above."""

    words: str
    first_step: int


class DivergenceGuard:
    """Observes the losses of every step, in nats per token and by source of text, and reports a divergence.

    Each source is compared with itself, so that neither a hard source nor the share that it has of a step looks like a
    divergence, and a rare source that diverges is not hidden by the others.
    """

    def __init__(self, vocab_size: int, sources: Sequence[str], figures: Mapping[str, Any] | None = None) -> None:
        """`figures` are those of `figures()` when the run with the same sources was stopped."""
        stored = (figures or {}).get("sources") or [None] * len(sources)
        self._names, self._series = sources, [_Series(vocab_size, values) for values in stored]
        self._seen: set[int] = set(range(len(sources)))

    @property
    def above(self) -> Mapping[str, int]:
        """Of the sources in the last step, how many losses in a row are above level and margin, where any is."""
        return {self._names[i]: self._series[i].num_above for i in sorted(self._seen) if self._series[i].num_above}

    def fault(self, step: int, losses: Mapping[int, float]) -> Fault | None:
        """Remember the `losses` of `step`, which are finite, by number of the source; what is wrong, or None."""
        self._seen = set(losses)
        found = {source: self._series[source].fault(step, loss) for source, loss in losses.items()}
        faults = {source: fault for source, fault in found.items() if fault is not None}
        for source, fault in faults.items():
            what = "the loss" if len(self._names) == 1 else f"the loss of {self._names[source]}"
            return Fault(f"{what} {fault}", min(self._series[other].above_since for other in faults))
        return None

    def forget_fault_(self) -> None:
        """Take the losses of a reported fault as the new level, so that only a further rise is reported."""
        for series in self._series:
            series.forget_fault_()

    def figures(self) -> dict[str, Any]:
        """Plain values from which a guard resumes."""
        return {"sources": [series.figures() for series in self._series]}


class _Series:
    """The losses of one source.

    The level is the lowest 0.9 quantile of WINDOW losses so far. A loss diverges when STEPS in a row are MARGIN above
    the level, or EXPLODED_STEPS in a row are MARGIN above both the highest loss before them and ln(vocabulary), which a
    uniform guess has.
    """

    def __init__(self, vocab_size: int, figures: Mapping[str, Any] | None) -> None:
        self._uniform = math.log(vocab_size)
        figures = figures or {}
        self._window: list[float] = list(figures.get("window", []))
        self._level: float | None = figures.get("level")
        self._highest: float = figures.get("highest") or -math.inf
        self._above: list[float] = list(figures.get("above", []))
        self.above_since: int = figures.get("above_since", 0)
        self._faulty = False

    @property
    def num_above(self) -> int:
        """How many of the last losses in a row are above level and margin, or above all before: 0 for a sound run."""
        return len(self._above)

    def fault(self, step: int, loss: float) -> str | None:
        """Remember `loss`, which is finite; what is wrong with it and those before it, or None."""
        if not self._is_above(loss):
            self._accept([*self._above, loss])
            return None
        self.above_since = self.above_since if self._above else step
        self._above.append(loss)
        words = None
        if len(self._above) >= STEPS and self._level is not None:
            words = f"diverged: {STEPS} steps in a row above {self._level + MARGIN:.4g}{self._last()}"
        elif all(self._is_exploded(last) for last in self._last_few()):
            words = f"exploded: {EXPLODED_STEPS} steps in a row above all before{self._last()}"
        self._faulty = words is not None
        return words

    def forget_fault_(self) -> None:
        """Take the losses of a reported fault, if there is one, as the new level."""
        if self._faulty:
            window = self._above
            self._window, self._level, self._faulty = [], None, False
            self._accept(window)

    def figures(self) -> dict[str, Any]:
        """Plain values from which a series resumes."""
        highest = self._highest if math.isfinite(self._highest) else None
        return {
            "window": self._window, "level": self._level, "highest": highest, "above": self._above,
            "above_since": self.above_since,
        }  # fmt: skip

    def _last(self) -> str:
        level = f"; the level before was {self._level:.4g}" if self._level is not None else ""
        return f", now {self._above[-1]:.4g} nats per token{level}."

    def _last_few(self) -> Sequence[float]:
        return self._above[-EXPLODED_STEPS:] if len(self._above) >= EXPLODED_STEPS else [-math.inf]

    def _is_above(self, loss: float) -> bool:
        return self._is_exploded(loss) or (self._level is not None and loss > self._level + MARGIN)

    def _is_exploded(self, loss: float) -> bool:
        return math.isfinite(self._highest) and loss > max(self._highest, self._uniform) + MARGIN

    def _accept(self, losses: Sequence[float]) -> None:
        self._window = [*self._window, *losses][-WINDOW:]
        self._highest = max(self._highest, *losses)
        self._above = []
        if len(self._window) >= LEAST:
            quantile = sorted(self._window)[math.ceil(QUANTILE * len(self._window)) - 1]
            self._level = quantile if self._level is None else min(self._level, quantile)
