"""NaN and infinity in tensors that were computed, found before the model is published."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from hybridizer.checkpoint.reader import open_checkpoint
from hybridizer.checkpoint.scan import find_nonfinite
from hybridizer.core.errors import Problem, VerificationError
from hybridizer.plan.origin import Copy, Join
from hybridizer.plan.plan import Plan

_LISTED = 8


def check_finite(plan: Plan, folder: Path, trained: Collection[str]) -> None:
    """Return if every tensor in `folder` that was trained or computed is finite.

    Reads those tensors once. Raises VerificationError with a problem per tensor, at most 8, each naming how the tensor
    was made. Copied and joined tensors are a donor's own bytes, which `--deep-check` scans.
    """
    found = open_checkpoint(folder).tensors
    problems = []
    for tensor in plan.tensors:
        if tensor.name not in trained and isinstance(tensor.source, Copy | Join):
            continue
        if count := find_nonfinite(found[tensor.name]):
            what = f"{count} values of '{tensor.name}' ({tensor.dtype}) are NaN or infinite"
            problems.append(_describe(plan, tensor.name in trained, tensor.source.describe(plan.blends), folder, what))
    if problems:
        raise VerificationError(*problems[:_LISTED])


def _describe(plan: Plan, trained: bool, method: str, folder: Path, what: str) -> Problem:
    if trained:
        fix = "The training diverged in its last updates: lower `train.lr`, remove training/, and build again."
        return Problem(str(folder), f"{what} after the last step of training.", fix)
    fix = "Scan the donors with `hybridize check RECIPE --deep-check`, or use an output dtype with a wider range."
    return Problem(str(folder), f"{what} after '{method}'.", fix)
