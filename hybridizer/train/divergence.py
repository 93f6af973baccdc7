"""Whether a loss has diverged: judged over several steps, against the level and the spread of the losses before."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

WINDOW = 32  # losses that the level and the spread are taken from
LEAST = 10  # losses before there is a level
QUANTILE = 0.9  # of the window: a level that includes the noise of batches and the harder sources of a mixture
MARGIN = 1.0  # nats per token above the level
STEPS = 12  # consecutive losses above level and margin
EXPLODED_STEPS = 3  # consecutive losses above all before and above those of a uniform guess


class DivergenceGuard:
    """Observes the loss (nats per token) of every step and reports a divergence.

    The level is the lowest 0.9 quantile of WINDOW losses so far. A loss diverges when STEPS in a row are MARGIN above
    the level, or EXPLODED_STEPS in a row are MARGIN above both the highest loss before them and ln(vocabulary), which a
    uniform guess has. A hard source in a mixture gives single losses above the level, or raises the quantile.
    """

    def __init__(self, vocab_size: int, figures: Mapping[str, Any] | None = None) -> None:
        """`figures` are those of `figures()` when the run was stopped."""
        self._uniform = math.log(vocab_size)
        figures = figures or {}
        self._window: list[float] = list(figures.get("window", []))
        self._level: float | None = figures.get("level")
        self._highest: float = figures.get("highest") or -math.inf
        self._above: list[float] = list(figures.get("above", []))

    @property
    def num_above(self) -> int:
        """How many of the last losses in a row are above level and margin, or above all before: 0 for a sound run."""
        return len(self._above)

    def fault(self, loss: float) -> str | None:
        """Remember `loss`, which is finite; what is wrong with it and those before it, or None."""
        if not self._is_above(loss):
            self._accept([*self._above, loss])
            return None
        self._above.append(loss)
        if len(self._above) >= STEPS and self._level is not None:
            return f"the loss diverged: {STEPS} steps in a row above {self._level + MARGIN:.4g}{self._last()}"
        if all(self._is_exploded(last) for last in self._last_few()):
            return f"the loss exploded: {EXPLODED_STEPS} steps in a row above all before{self._last()}"
        return None

    def forget_fault_(self) -> None:
        """Take the losses of a reported fault as the new level, so that only a further rise is reported."""
        window = self._above
        self._window, self._level = [], None
        self._accept(window)

    def figures(self) -> dict[str, Any]:
        """Plain values from which a guard resumes."""
        highest = self._highest if math.isfinite(self._highest) else None
        return {"window": self._window, "level": self._level, "highest": highest, "above": self._above}

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
