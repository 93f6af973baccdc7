"""The amounts of a planned run: steps, tokens and epochs of each text, and space on disk. From sizes alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from hybridizer.checkpoint.dtypes import DTYPE_BITS
from hybridizer.data.counts import count_key, read_count, warn_of_epochs
from hybridizer.data.documents import TEXT_SUFFIXES, file_kind, find_files
from hybridizer.pipeline.plan import Planned
from hybridizer.plan.cost import Cost
from hybridizer.plan.dimensions import kept_bytes
from hybridizer.plan.objective import keeps_largest
from hybridizer.plan.plan import Plan
from hybridizer.plan.stage_cost import count_steps
from hybridizer.recipe.models import DataEntry, Evaluate, Recipe, Train
from hybridizer.train.curve import BEST
from hybridizer.train.run import required_bytes

BYTES_PER_TOKEN = 4  # of English text, roughly; the number of tokens is known only after tokenisation


@dataclass(frozen=True)
class SourceAmount:
    """The tokens that training takes from one source, and how many epochs that is; None where it is unknown.

    `available` are the tokens that it has, once a build has tokenised it. Before that `epochs` is an estimate, by
    BYTES_PER_TOKEN bytes of file per token, and unknown for hub datasets and compressed files.
    """

    name: str
    tokens: int
    epochs: float | None
    available: int | None


@dataclass(frozen=True)
class CurveAmount:
    """The held-out curves of a training: how often `texts` texts of up to `tokens` tokens each are measured.

    `share` is how many operations that takes at most, as a share of those of training: about that of its time as well.
    """

    measurements: int
    texts: int
    tokens: int
    share: float


@dataclass(frozen=True)
class RunAmounts:
    """Bytes on disk at the peak of a build, and the steps and sources of its training; no step where nothing trains.

    The bytes include what is kept of teachers in the cache. `tokens_per_step` is 0 where stages differ in it.
    `warnings` name the sources that training repeats too often, as far as their tokens have been counted. `curve` is
    None where no held-out curve is measured.
    """

    disk_bytes: int
    steps: int
    tokens_per_step: int
    sources: tuple[SourceAmount, ...]
    warnings: tuple[str, ...] = ()
    curve: CurveAmount | None = None


def compute_amounts(planned: Planned, cost: Cost | None) -> RunAmounts:
    """The amounts of a planned run. No text is read, only sizes of files and the counts that builds have left."""
    plan, train = planned.plan, planned.resolved.recipe.train
    model_bytes = sum(math.prod(t.shape) * DTYPE_BITS[t.dtype] // 8 for t in plan.tensors)
    if train is None or plan.train is None or cost is None:
        return RunAmounts(model_bytes, 0, 0, ())
    recipe, total = planned.resolved.recipe, sum(entry.weight for entry in train.data)
    disk = model_bytes + training_bytes(plan, cost, model_bytes, recipe.evaluate)
    disk += sum(kept_bytes(stage.tokens, keeps_largest(stage)) for stage in train.as_stages())
    sources = tuple(
        _amount(entry, train, entry.weight / total, recipe.folder, read_count(key))
        for entry, key in zip(train.data, source_keys(recipe, plan), strict=True)
    )
    warnings = tuple(
        warning
        for source in sources
        if source.available and source.epochs is not None
        if (warning := warn_of_epochs(source.name, source.epochs, source.available))
    )
    rows = {stage.global_batch_size for stage in train.as_stages()}
    tokens_per_step = train.seq_len * rows.pop() if len(rows) == 1 else 0
    curve = _curve(recipe.evaluate, train, cost)
    return RunAmounts(disk, count_steps(train), tokens_per_step, sources, warnings, curve)


def _curve(evaluate: Evaluate | None, train: Train, cost: Cost) -> CurveAmount | None:
    if evaluate is None or not evaluate.every:
        return None
    steps = count_steps(train)
    measurements = 1 + math.ceil(steps / evaluate.every)  # step 0, and the last whether it is due or not
    texts = len(evaluate.bits_per_byte) + (len(train.data) if train.heldout_ratio else 0)
    flops = cost.asked.token_flops
    measured = measurements * texts * evaluate.curve_tokens * flops.forward
    trained = cost.mean_token_flops * steps * train.seq_len * train.global_batch_size
    if len({stage.global_batch_size for stage in train.as_stages()}) > 1:
        trained = sum(stage.flops for stage in cost.stages)
    return CurveAmount(measurements, texts, evaluate.curve_tokens, measured / trained)


def training_bytes(plan: Plan, cost: Cost, spliced_bytes: int, evaluate: Evaluate | None) -> int:
    """The bytes that training writes at its peak, beside the spliced model of `spliced_bytes` that it starts from."""
    merged = sum(row.parameters for row in plan.layers if row.layer not in plan.train_plan.frozen_layers)
    keeps_best = evaluate is not None and evaluate.keep == BEST
    if cost.stages:  # each leaves its masters, and only the one that runs has checkpoints
        counts = [stage.trained_parameters for stage in cost.stages]
        return required_bytes(max(counts), sum(counts) + max(counts), spliced_bytes, keeps_best)
    trained = cost.asked.trained_parameters
    return required_bytes(trained, max(trained, merged), spliced_bytes, keeps_best)


def source_keys(recipe: Recipe, plan: Plan) -> list[str]:
    """The names under which the token counts of the training sources of a pinned `plan` are kept."""
    keys = []
    for entry, pin in zip(recipe.train_section.data, plan.train_plan.data, strict=True):
        files = find_files(entry.path, recipe.folder) if entry.path and not entry.generate else ()
        kinds = [file_kind(path) for path in files]
        settings = {name: value for name, value in pin.settings.items() if name != "weight"}
        keys.append(count_key(plan.tokenizer_files, [settings, pin.files, kinds], recipe.train_section.heldout_ratio))
    return keys


def _amount(entry: DataEntry, train: Train, share: float, folder: Path, available: int | None) -> SourceAmount:
    tokens = round(train.tokens * share)
    epochs = train.tokens * share / available if available else _estimate_epochs(entry, train, tokens, folder)
    return SourceAmount(entry.name, tokens, epochs, available)


def _estimate_epochs(entry: DataEntry, train: Train, tokens: int, folder: Path) -> float | None:
    if entry.generate is not None:  # its tokens are the donor's own, which may differ from the host's
        return tokens / (entry.generate.tokens * (1 - train.heldout_ratio))
    if entry.path is None:
        return None
    files = find_files(entry.path, folder)
    if any(path.suffix not in (*TEXT_SUFFIXES, ".jsonl") for path in files):
        return None
    num_bytes = sum(path.stat().st_size for path in files) * (1 - train.heldout_ratio)
    return tokens * BYTES_PER_TOKEN / num_bytes if num_bytes else None
