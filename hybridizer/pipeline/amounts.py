"""The amounts of a planned run: steps, tokens and epochs of each text, and space on disk. From sizes alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from hybridizer.checkpoint.dtypes import DTYPE_BITS
from hybridizer.data.documents import TEXT_SUFFIXES, find_files
from hybridizer.pipeline.plan import Planned
from hybridizer.plan.cost import Cost
from hybridizer.recipe.models import DataEntry, Train
from hybridizer.train.run import required_bytes

BYTES_PER_TOKEN = 4  # of English text, roughly; the number of tokens is known only after tokenisation


@dataclass(frozen=True)
class SourceAmount:
    """The tokens that training takes from one source, and about how many epochs that is; None where it is unknown.

    The estimate is BYTES_PER_TOKEN bytes of file per token. Hub datasets and compressed files are unknown.
    """

    name: str
    tokens: int
    epochs: float | None


@dataclass(frozen=True)
class RunAmounts:
    """Bytes on disk at the peak of a build, and the steps and sources of its training; no step where nothing trains."""

    disk_bytes: int
    steps: int
    tokens_per_step: int
    sources: tuple[SourceAmount, ...]


def compute_amounts(planned: Planned, cost: Cost | None) -> RunAmounts:
    """The amounts of a planned run. No text is read, only sizes of files."""
    plan, train = planned.plan, planned.resolved.recipe.train
    model_bytes = sum(math.prod(t.shape) * DTYPE_BITS[t.dtype] // 8 for t in plan.tensors)
    if train is None or plan.train is None or cost is None:
        return RunAmounts(model_bytes, 0, 0, ())
    merged = sum(row.parameters for row in plan.layers if row.layer not in plan.train.frozen_layers)
    trained = cost.asked.trained_parameters
    disk = model_bytes + required_bytes(trained, max(trained, merged), model_bytes)
    folder = planned.resolved.recipe.folder
    total = sum(entry.weight for entry in train.data)
    sources = tuple(_amount(entry, train, entry.weight / total, folder) for entry in train.data)
    return RunAmounts(disk, count_steps(train), train.seq_len * train.global_batch_size, sources)


def count_steps(train: Train) -> int:
    """The optimizer steps that `tokens` take, or `max_steps` if that is fewer."""
    steps = -(-train.tokens // (train.seq_len * train.global_batch_size))
    return steps if train.max_steps is None else min(steps, train.max_steps)


def _amount(entry: DataEntry, train: Train, share: float, folder: Path) -> SourceAmount:
    tokens = round(train.tokens * share)
    return SourceAmount(entry.name, tokens, _epochs(entry, train, tokens, folder))


def _epochs(entry: DataEntry, train: Train, tokens: int, folder: Path) -> float | None:
    if entry.path is None:
        return None
    files = find_files(entry.path, folder)
    if any(path.suffix not in (*TEXT_SUFFIXES, ".jsonl") for path in files):
        return None
    num_bytes = sum(path.stat().st_size for path in files) * (1 - train.heldout_ratio)
    return tokens * BYTES_PER_TOKEN / num_bytes if num_bytes else None
