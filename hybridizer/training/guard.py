"""Stops a training that has gone wrong before it spoils the weights that are still good."""

from __future__ import annotations

import math

from hybridizer.errors import Problem, RunError

EXPLODED = 2.0  # times the lowest smoothed loss so far, plus one nat: noise of small batches stays below
SMOOTHING = 0.9


class LossGuard:
    """Watches the loss (nats a token) and the gradient norm of every step before the weights change."""

    def __init__(self, smoothed: float | None = None, lowest: float | None = None) -> None:
        self.smoothed, self.lowest = smoothed, lowest

    def check(self, step: int, loss: float, gradient_norm: float, lr: float, saved: str) -> None:
        """Return when the step may be taken; RunError when its loss or gradient is not finite, or the loss exploded."""
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            what = f"loss {loss:.4g} and gradient norm {gradient_norm:.4g} are not finite."
            raise RunError(Problem(f"training step {step}", what, _advice(lr, saved)))
        if self.lowest is not None and loss > EXPLODED * self.lowest + 1:
            what = f"the loss exploded: {loss:.4g} nats a token after {self.lowest:.4g}."
            raise RunError(Problem(f"training step {step}", what, _advice(lr, saved)))
        self.smoothed = loss if self.smoothed is None else SMOOTHING * self.smoothed + (1 - SMOOTHING) * loss
        self.lowest = self.smoothed if self.lowest is None else min(self.lowest, self.smoothed)


def _advice(lr: float, saved: str) -> str:
    return f"Lower `lr` (it was {lr:.2g} here), lengthen the warm-up or lower `clip_norm`. {saved}"
