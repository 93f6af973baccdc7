"""Learning rate over a run: a factor between 0 and 1 for each optimizer step."""

from __future__ import annotations

import math
from collections.abc import Callable

from hybridizer.recipe.models import Train

_ROUNDING = 1e-9  # 0.1 * 30 is slightly more than 3 in floating point


def rate_factor(settings: Train, step: int, num_steps: int) -> float:
    """The factor on the peak learning rate at `step` (0..num_steps-1): above 0 in the first step, at most 1.

    The shape is cosine, wsd (warm-up, stable, decay) or constant; the ratios are of all steps and round up. cosine and
    wsd have the factor `min_lr_ratio` in the last step, and 1 in the first step after the warm-up. The warm-up leaves
    two steps for these. A run of one step takes it at the peak. `decay_ratio` is the length of the decay of wsd; with 0
    there is none.
    """
    warmup_steps = min(_share(settings.warmup_ratio, num_steps), max(0, num_steps - 2))
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    decay = SHAPES[settings.schedule](step - warmup_steps, num_steps - 1 - warmup_steps, num_steps, settings)
    return settings.min_lr_ratio + (1 - settings.min_lr_ratio) * decay


def _share(ratio: float, num_steps: int) -> int:
    return math.ceil(ratio * num_steps - _ROUNDING)


def _cosine(step: int, last: int, num_steps: int, settings: Train) -> float:
    return (1 + math.cos(math.pi * step / max(1, last))) / 2


def _wsd(step: int, last: int, num_steps: int, settings: Train) -> float:
    decay_steps = min(_share(settings.decay_ratio, num_steps), last)
    return min(1.0, (last - step) / decay_steps) if decay_steps else 1.0


def _constant(step: int, last: int, num_steps: int, settings: Train) -> float:
    return 1.0


# From the peak (1) to the end (0), by the step after the warm-up (0..last), `last`, and the steps of the whole run.
SHAPES: dict[str, Callable[[int, int, int, Train], float]] = {"cosine": _cosine, "wsd": _wsd, "constant": _constant}
