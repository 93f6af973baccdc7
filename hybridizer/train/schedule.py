"""Learning rate over a run: a factor between 0 and 1 for each optimizer step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from hybridizer.core.errors import Problem, RecipeError, nearest


@dataclass(frozen=True)
class ScheduleSettings:
    """`kind` is cosine, wsd (warm-up, stable, decay) or constant; shares are of all steps, 0..1.

    Both decays end at `min_lr_ratio` of the peak rate; `decay_ratio` is the length of the decay of wsd.
    """

    kind: str = "cosine"
    warmup_ratio: float = 0.1
    min_lr_ratio: float = 0.1
    decay_ratio: float = 0.2


def rate_factor(settings: ScheduleSettings, step: int, num_steps: int) -> float:
    """The factor on the peak learning rate at `step` (0..num_steps-1): above 0 from the first step on, at most 1.

    Raises RecipeError for an unknown kind and for shares outside 0..1.
    """
    shape = SHAPES.get(settings.kind)
    if shape is None:
        raise RecipeError(Problem("train.schedule", f"no schedule '{settings.kind}'.", nearest(settings.kind, SHAPES)))
    shares = (settings.warmup_ratio, settings.min_lr_ratio, settings.decay_ratio)
    if not all(0 <= share <= 1 for share in shares):
        raise RecipeError(
            Problem("train.schedule", f"shares {shares} are not all within 0..1.", "Give shares of the run.")
        )
    warmup_steps = round(settings.warmup_ratio * num_steps)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return settings.min_lr_ratio + (1 - settings.min_lr_ratio) * shape(progress, settings)


def _cosine(progress: float, settings: ScheduleSettings) -> float:
    return (1 + math.cos(math.pi * progress)) / 2


def _wsd(progress: float, settings: ScheduleSettings) -> float:
    # The decay is a share of the whole run, progress one of what follows the warm-up.
    share = min(1.0, settings.decay_ratio / max(1e-9, 1 - settings.warmup_ratio))
    return min(1.0, (1 - progress) / share) if share > 0 else 1.0


def _constant(progress: float, settings: ScheduleSettings) -> float:
    return 1.0


SHAPES: dict[str, Callable[[float, ScheduleSettings], float]] = {"cosine": _cosine, "wsd": _wsd, "constant": _constant}
