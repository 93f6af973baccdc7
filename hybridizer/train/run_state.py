"""How far a run has come: the plain values of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hybridizer.train.checkpoints import State
from hybridizer.train.divergence import DivergenceGuard


@dataclass
class RunState:
    """Steps taken, tokens and seconds they took up to the last start, and losses in nats per token.

    `measuring_seconds` went into held-out curves, beside the seconds of training.

    `changes` are settings that changed on the way: from which `step` on, the `setting`, its value `before` and `now`.
    """

    guard: DivergenceGuard
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    measuring_seconds: float = 0.0
    first_loss: float = float("nan")
    last_loss: float = float("nan")
    changes: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def untrained(cls) -> RunState:
        """The state of a run that has taken no step, to report and not to train on."""
        return cls(DivergenceGuard(1, ()))

    @classmethod
    def resumed(cls, checkpoint: State, vocab_size: int, sources: Sequence[str]) -> RunState:
        """The state that `checkpoint` was written with; settings that have changed since are added to `changes`.

        `vocab_size` and the names of the `sources` are those of the guard.
        """
        figures = checkpoint.figures
        changes = [{"step": checkpoint.step, **asdict(change)} for change in checkpoint.changes]
        return cls(
            # Earlier versions wrote other figures, from which a guard begins again.
            guard=DivergenceGuard(vocab_size, sources, figures.get("guard")),
            step=checkpoint.step,
            tokens=figures["tokens"],
            seconds=figures["seconds"],
            measuring_seconds=figures.get("measuring_seconds", 0.0),
            first_loss=figures["first_loss"],
            last_loss=figures["last_loss"],
            changes=(*figures.get("changes", []), *changes),
        )

    def figures(self, seconds: float, measuring_seconds: float) -> dict[str, Any]:
        """The values of a checkpoint, written `seconds` into the run, without those of measuring."""
        return {
            "tokens": self.tokens,
            "seconds": seconds,
            "measuring_seconds": measuring_seconds,
            "first_loss": self.first_loss,
            "last_loss": self.last_loss,
            "guard": self.guard.figures(),
            "changes": list(self.changes),
        }

    def count_step(self, loss: float, tokens: int) -> None:
        """Count a step that was taken, with its loss and the tokens it saw."""
        self.first_loss = loss if self.step == 0 else self.first_loss
        self.last_loss = loss
        self.tokens += tokens
        self.step += 1
