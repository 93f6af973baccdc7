"""LayerTracer: run the probes through a donor, clean and perturbed, and read every layer through the lens.

Sources: arXiv 2605.11416 (context perturbation, boundary score), arXiv 2604.20556 (task particle, layer perturbation).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hybridizer.core.bootstrap import count_clusters, number_clusters
from hybridizer.core.errors import DonorError, Problem, RunError
from hybridizer.core.records import content_hash, read_json
from hybridizer.models.batching import make_batches
from hybridizer.models.load import max_tokens
from hybridizer.models.parts import Parts
from hybridizer.recipe.models import Trace
from hybridizer.trace.journal import TraceProgress
from hybridizer.trace.lens import Lens, check_lens
from hybridizer.trace.masking import MaskToken, choose_mask_token, choose_second_mask
from hybridizer.trace.measure import Meter
from hybridizer.trace.probes import ProbeSet
from hybridizer.trace.prompts import Prompt, check_fit, prepare_prompts
from hybridizer.trace.readings import Reading, ReadingsTable
from hybridizer.trace.record import RecordedDonor, RecordedProbes, RecordedSettings, TraceRun
from hybridizer.trace.summary import summarise
from hybridizer.trace.tuned_lens import TunedLens


@torch.no_grad()
def trace_model(
    model: nn.Module,
    tokenizer: Any,
    parts: Parts,
    probes: ProbeSet,
    settings: Trace,
    donor: RecordedDonor,
    *,
    seed: int = 0,
    tuned_lens: TunedLens | None = None,
    mask_positions: Path | None = None,
    journal: Path | None = None,
    advance: Callable[[int], None] = lambda prompts: None,
) -> TraceRun:
    """Trace `model` on `probes`; see TraceRecord for every figure and its unit. The run is named by the reference.

    Statistics are float32 or better whatever the dtype of the weights, and within 1e-4 for any `batch_size`. `seed` is
    that of masks, noise and bootstrap; `settings.probes` and `.dtype` are not read here: both are arguments. The lens
    is `tuned_lens` if given, read besides the plain one where `settings.lens` is "both". With a `journal`, finished
    batches are kept there and an interrupted trace resumes with the missing prompts; `advance` gets the number of
    prompts that finished, those found in the journal included.

    Raises InputError for prompts that cannot be used, DonorError for a model whose lens is not exact or that computes
    NaN, RunError when a device runs out of memory.
    """
    check_lens(model, parts)
    mask_token = choose_mask_token(tokenizer, settings.mask_with) if settings.perturb != "layer" else None
    second = choose_second_mask(tokenizer, mask_token, settings.second_mask_with) if mask_token else None
    prompts = prepare_prompts(probes, tokenizer, settings, mask_token, mask_positions, seed, second)
    check_fit(prompts, probes, len(next(parts.embedding.parameters())), max_tokens(model.config))
    used = _used_settings(model, settings, seed, (mask_token, second), mask_positions, tuned_lens)
    clusters = number_clusters([probe.cluster for probe in probes.probes])
    num_clusters = count_clusters(len(prompts), clusters)
    about = RecordedProbes(probes.name, probes.sha256, len(prompts), num_clusters)
    meter = _make_meter(model, parts, settings, seed, tuned_lens)
    log = TraceProgress(journal, content_hash([donor, about, used])) if journal else None
    table = ReadingsTable(len(prompts))
    if log:
        for readings in log.read_finished(len(prompts)):
            table.add(readings)
    advance(len(table.finished))
    for batch in _pending(prompts, table.finished, settings.batch_size):
        measured = _measure_or_explain(meter, batch, prompts, donor)
        table.add(measured)
        if log:
            log.append(measured)
        advance(len(measured))
    del prompts  # the summary needs their memory
    templates = [probe.template for probe in probes.probes]
    stacked = table.stack(clusters)
    return TraceRun(donor.reference, summarise(stacked, donor, about, used, templates), stacked)


def _make_meter(model: nn.Module, parts: Parts, settings: Trace, seed: int, tuned_lens: TunedLens | None) -> Meter:
    tuned = Lens(model, parts, tuned_lens)
    if tuned_lens is not None and settings.lens == "both":
        return Meter(Lens(model, parts), settings, seed, tuned)
    return Meter(tuned, settings, seed)


def _pending(prompts: Sequence[Prompt], finished: frozenset[int], batch_size: int) -> Iterator[tuple[int, ...]]:
    """The batches still to run: planned over all prompts, so that a resumed trace runs the same batches."""
    for batch in make_batches([len(prompt.ids) for prompt in prompts], batch_size):
        missing = tuple(index for index in batch if index not in finished)
        if missing:
            yield missing


def _measure_or_explain(
    meter: Meter, batch: Sequence[int], prompts: Sequence[Prompt], donor: RecordedDonor
) -> list[Reading]:
    try:
        measured = meter.measure(batch, [prompts[index] for index in batch])
    except torch.OutOfMemoryError as error:
        what = f"out of memory on {len(batch)} prompts of {len(prompts[batch[0]].ids)} tokens: {str(error)[:200]}"
        raise RunError(Problem(donor.reference, what, "Use a smaller batch_size, or a device map.")) from error
    for reading in measured:
        if not all(math.isfinite(value) for value in (*reading.target_prob, *reading.kl, *(reading.js or ()))):
            what = f"prompt {reading.index + 1} gives values that are not numbers in {meter.lens.dtype}."
            raise DonorError(Problem(donor.reference, what, "Trace in float32; if it stays, the weights are damaged."))
    return measured


def _used_settings(
    model: nn.Module,
    settings: Trace,
    seed: int,
    mask_tokens: tuple[MaskToken | None, MaskToken | None],
    mask_positions: Path | None,
    tuned_lens: TunedLens | None,
) -> RecordedSettings:
    """The settings that had an effect; None for those that had none."""
    mask_token, second = mask_tokens
    lens = "tuned" if tuned_lens and settings.lens != "both" else "plain"
    positions = content_hash(read_json(mask_positions)) if mask_token and mask_positions else None
    return RecordedSettings(
        perturb=settings.perturb,
        mask_ratio=settings.mask_ratio if mask_token and not positions else None,
        mask_with=mask_token.text if mask_token else None,
        mask_token_id=mask_token.id if mask_token else None,
        mask_chosen_as=mask_token.chosen_as if mask_token else None,
        second_mask_with=second.text if second else None,
        second_mask_token_id=second.id if second else None,
        mask_positions=positions,
        noise_ratio=settings.noise_ratio if settings.perturb != "context" else None,
        lens=lens,
        licence_lenses=(lens, "tuned") if tuned_lens and lens == "plain" else (lens,),
        tuned_lens=tuned_lens.key if tuned_lens else None,
        epsilon=settings.epsilon,
        tau=settings.tau,
        p_min=settings.p_min,
        seed=seed,
        num_resamples=settings.num_resamples,
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
    )
