"""Batches that fit: large on an accelerator, and halved where its memory does not hold them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch

from hybridizer.core.errors import Problem, RunError
from hybridizer.models.batching import MAX_BATCH_TOKENS

ACCELERATOR_TOKENS = 8 * MAX_BATCH_TOKENS

Row = TypeVar("Row")
Result = TypeVar("Result")


def batch_tokens(device: torch.device) -> int:
    """How many tokens a batch has at most on `device`: enough to keep it busy. A CPU is busy with few."""
    return MAX_BATCH_TOKENS if device.type == "cpu" else ACCELERATOR_TOKENS


def free_memory() -> None:
    """Give back what an accelerator keeps of freed tensors."""
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def run_batches(
    batches: Iterable[tuple[Row, ...]], run: Callable[[tuple[Row, ...]], Result], where: str
) -> Iterator[tuple[tuple[Row, ...], Result]]:
    """Each batch with `run` of it, in order. Where memory runs out, the batch is halved, and later ones are no larger.

    Raises RunError at `where` if the memory does not hold a batch of one.
    """
    most: int | None = None
    for batch in batches:
        left = batch
        while left:
            part = left[:most]
            try:
                result = run(part)
            except torch.OutOfMemoryError as error:
                if len(part) == 1:
                    what = f"the device's memory does not hold a single row: {str(error)[:200]}"
                    raise RunError(Problem(where, what, "Use a shorter context, or a larger device.")) from error
                most = len(part) // 2
            else:
                yield part, result
                left = left[len(part) :]
                continue
            free_memory()  # outside of the handler, where the error holds the tensors
