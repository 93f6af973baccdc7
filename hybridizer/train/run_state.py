"""How far a run has come, and whether its loss is still sound: the plain values of a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from hybridizer.train.checkpoints import State

EXPLODED = 2.0  # times the lowest smoothed loss so far, plus one nat: noise of small batches stays below
SMOOTHING = 0.9


class DivergenceGuard:
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


@dataclass
class RunState:
    """Steps taken, tokens and seconds they took up to the last start, and losses in nats per token.

    `changes` are settings that changed on the way: from which `step` on, the `setting`, its value `before` and `now`.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    first_loss: float = float("nan")
    last_loss: float = float("nan")
    guard: DivergenceGuard = field(default_factory=DivergenceGuard)
    changes: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def resumed(cls, checkpoint: State) -> RunState:
        """The state that `checkpoint` was written with; settings that have changed since are added to `changes`."""
        figures = checkpoint.figures
        changes = [{"step": checkpoint.step, **asdict(change)} for change in checkpoint.changes]
        return cls(
            step=checkpoint.step,
            tokens=figures["tokens"],
            seconds=figures["seconds"],
            first_loss=figures["first_loss"],
            last_loss=figures["last_loss"],
            guard=DivergenceGuard(figures["smoothed"], figures["lowest"]),
            changes=(*figures.get("changes", []), *changes),
        )

    def figures(self, seconds: float) -> dict[str, Any]:
        """The values of a checkpoint, written `seconds` into the run."""
        return {
            "tokens": self.tokens,
            "seconds": seconds,
            "first_loss": self.first_loss,
            "last_loss": self.last_loss,
            "smoothed": self.guard.smoothed,
            "lowest": self.guard.lowest,
            "changes": list(self.changes),
        }

    def count_step(self, loss: float, tokens: int) -> None:
        """Count a step that was taken, with its loss and the tokens it saw."""
        self.first_loss = loss if self.step == 0 else self.first_loss
        self.last_loss = loss
        self.tokens += tokens
        self.step += 1
