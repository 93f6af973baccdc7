"""Learning rate over a run: a factor between 0 and 1 for each optimizer step."""

from __future__ import annotations

import math
from collections.abc import Callable

from hybridizer.recipe.models import Train


def rate_factor(settings: Train, step: int, num_steps: int) -> float:
    """The factor on the peak learning rate at `step` (0..num_steps-1): above 0 from the first step on, at most 1.

    The shape is cosine, wsd (warm-up, stable, decay) or constant; the ratios are of all steps. Both decays end at
    `min_lr_ratio` of the peak rate; `decay_ratio` is the length of the decay of wsd.
    """
    warmup_steps = round(settings.warmup_ratio * num_steps)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return settings.min_lr_ratio + (1 - settings.min_lr_ratio) * SHAPES[settings.schedule](progress, settings)


def _cosine(progress: float, settings: Train) -> float:
    return (1 + math.cos(math.pi * progress)) / 2


def _wsd(progress: float, settings: Train) -> float:
    # The decay is a share of the whole run, progress one of what follows the warm-up.
    share = min(1.0, settings.decay_ratio / max(1e-9, 1 - settings.warmup_ratio))
    return min(1.0, (1 - progress) / share) if share > 0 else 1.0


def _constant(progress: float, settings: Train) -> float:
    return 1.0


SHAPES: dict[str, Callable[[float, Train], float]] = {"cosine": _cosine, "wsd": _wsd, "constant": _constant}
