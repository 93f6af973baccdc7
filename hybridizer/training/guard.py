"""Stops a training that has gone wrong before it spoils the weights that are still good."""

from __future__ import annotations

import math

EXPLODED = 2.0  # times the lowest smoothed loss so far, plus one nat: noise of small batches stays below
SMOOTHING = 0.9


class LossGuard:
    """Watches the loss (nats a token) and the gradient norm of every step before the weights change."""

    def __init__(self, smoothed: float | None = None, lowest: float | None = None) -> None:
        self.smoothed, self.lowest = smoothed, lowest

    def fault(self, loss: float, gradient_norm: float) -> str | None:
        """What is wrong with a step of this loss and gradient, or None: it may be taken, and its loss is remembered."""
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            return f"loss {loss:.4g} and gradient norm {gradient_norm:.4g} are not finite."
        if self.lowest is not None and loss > EXPLODED * self.lowest + 1:
            return f"the loss exploded: {loss:.4g} nats a token after {self.lowest:.4g}."
        self.smoothed = loss if self.smoothed is None else SMOOTHING * self.smoothed + (1 - SMOOTHING) * loss
        self.lowest = self.smoothed if self.lowest is None else min(self.lowest, self.smoothed)
        return None
