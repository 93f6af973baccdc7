"""What a user can set of a trace, with defaults; and the check that names every value that makes no sense."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from hybridizer.core.errors import InputError, Problem, nearest

PERTURBATIONS = ("context", "layer", "both")


@dataclass(frozen=True)
class TraceSettings:
    """Settings of one trace; all but `batch_size` are written into the record.

    perturb: "context" (arXiv 2605.11416), "layer" (arXiv 2604.20556), or "both".
    mask_ratio, mask_with: the share (0..1) of context tokens masked, and the token put there ("auto", a text, an id).
    noise_share: the norm of the layer perturbation's noise as a share of the residual stream's norm.
    tau, p_min: the task particle is the first layer where the target's probability rises to p_min or more, by a ratio
    of tau or more. [ours] 0.5 is a doubling within one layer; below 0.1 a token is one guess among many.
    epsilon: keeps the ratio finite where a probability is 0; below any probability that matters.
    num_resamples: bootstrap samples of the prompts behind every interval. batch_size: prompts a run, at most.
    """

    perturb: str = "context"
    mask_ratio: float = 0.3
    mask_with: str | int = "auto"
    noise_share: float = 0.1
    epsilon: float = 1e-10
    tau: float = 0.5
    p_min: float = 0.1
    seed: int = 0
    num_resamples: int = 2000
    batch_size: int = 64


def check_settings(settings: TraceSettings) -> None:
    """Raise InputError with every setting that has no meaning."""
    problems = list(_problems(settings))
    if problems:
        raise InputError(*problems)


def _problems(settings: TraceSettings) -> Iterator[Problem]:
    if settings.perturb not in PERTURBATIONS:
        what = f"there is no perturbation '{settings.perturb}'."
        yield Problem("perturb", what, nearest(str(settings.perturb), PERTURBATIONS))
    for name in ("mask_ratio", "tau", "p_min"):
        value = getattr(settings, name)
        if not 0 <= value <= 1:
            yield Problem(name, f"{value} is no share.", "Give a number from 0 to 1.")
    for name in ("noise_share", "epsilon"):
        value = getattr(settings, name)
        if not (value > 0 and math.isfinite(value)):
            yield Problem(name, f"{value} is not positive.", "Give a number above 0.")
    for name in ("num_resamples", "batch_size"):
        value = getattr(settings, name)
        if value < 1:
            yield Problem(name, f"{value} is too few.", "Give 1 or more.")
    if settings.seed < 0:
        yield Problem("seed", f"{settings.seed} is negative.", "Give 0 or more.")
