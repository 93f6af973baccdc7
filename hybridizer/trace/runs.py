"""Donor -> trace: LayerTracer run on one donor, kept in the cache by donor, probes and settings.

On disk a trace is its record as JSON, and its readings, which any other figure can be computed from.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hybridizer import __version__
from hybridizer.core.bootstrap import number_clusters
from hybridizer.core.cache import NPZ_DAMAGE, cache_folder
from hybridizer.core.errors import CheckpointError, Problem
from hybridizer.core.files import new_file
from hybridizer.core.progress import Monitor
from hybridizer.core.records import content_hash, read_json, write_json
from hybridizer.donors.donor import Donor
from hybridizer.recipe.models import Trace
from hybridizer.trace.probes import ProbeSet, load_probes
from hybridizer.trace.readings import Readings
from hybridizer.trace.record import SCHEMA, RecordedDonor, TraceRun, read_trace_record

if TYPE_CHECKING:
    from hybridizer.trace.baselines import LayerScores

_NO_NUMBER = {"probes", "batch_size"}  # the probes' content is hashed, not their name; batches change no result
_ALWAYS = {"target_prob", "kl", "kl_uniform", "hit", "answer_prob"}  # readings that every trace has
_BY_PROMPT = {"kl_uniform", "hit", "answer_prob", "clusters"}  # one per prompt; the others one per state too
_RECORD, _READINGS, _JOURNAL = "record.json", "readings.npz", "journal.jsonl"


@dataclass(frozen=True)
class TraceRequest:
    """What to trace with: the probes that `settings` name, the seed, and settings that recipes do not have.

    `device_map` is accelerate's, None for this device; `mask_positions` is a file of positions in place of drawn ones.
    """

    probes: ProbeSet
    settings: Trace
    seed: int = 0
    device_map: str | None = None
    mask_positions: Path | None = None

    def key(self, donor: Donor) -> str:
        """A hash of what the numbers and the form of the record depend on: everything except batch size and device."""
        positions = read_json(self.mask_positions) if self.mask_positions else None
        settings = {key: value for key, value in asdict(self.settings).items() if key not in _NO_NUMBER}
        parts = [SCHEMA, donor.fingerprint, self.probes.sha256, settings, self.seed, positions, __version__]
        return content_hash(parts)


def request_from_section(section: Trace | None, seed: int, folder: Path) -> TraceRequest:
    """The request of a recipe's `trace` section; the path of a probe file is relative to the recipe's `folder`."""
    settings = section or Trace()
    path = folder / settings.probes
    return TraceRequest(load_probes(str(path) if path.is_file() else settings.probes), settings, seed)


def trace(donor: Donor, request: TraceRequest, monitor: Monitor) -> TraceRun:
    """Trace `donor`, whose fingerprint is known, or return its trace from the cache.

    A trace that was interrupted resumes where it stopped; what is damaged in the cache is traced again. Raises
    InputError for probes that cannot be used and DonorError for a model that cannot be traced.
    """
    from hybridizer.trace.journal import JournalError

    folder = _trace_folder(donor, request)
    if (folder / _RECORD).is_file():
        try:
            run = _read_run(folder, donor.name, donor.reference)
            monitor.note(f"trace of '{donor.name}': unchanged, from the cache")
            return run
        except CheckpointError as error:
            monitor.note(f"trace of '{donor.name}': damaged in the cache, traced again ({error.problems[0].what})")
    try:
        _run(donor, request, folder, monitor)
    except JournalError as error:
        monitor.note(f"trace of '{donor.name}': cannot resume, started over ({error.problems[0].what})")
        (folder / _JOURNAL).unlink()
        _run(donor, request, folder, monitor)
    return _read_run(folder, donor.name, donor.reference)


def is_cached(donor: Donor, request: TraceRequest) -> bool:
    """Whether the cache has a trace of `donor` by this request, which may still prove damaged."""
    return (_trace_folder(donor, request) / _RECORD).is_file()


def _trace_folder(donor: Donor, request: TraceRequest) -> Path:
    return cache_folder() / "traces" / request.key(donor).removeprefix("sha256:")


def check_prompts(donor: Donor, request: TraceRequest) -> tuple[int | None, ...]:
    """Prepare the request's prompts as a trace of `donor` will, with its tokenizer alone; the one-token targets.

    None stands for a target that is not one token. Raises InputError for a mask token, positions and prompts that
    cannot be used.
    """
    from hybridizer.models.load import load_tokenizer
    from hybridizer.trace.masking import choose_mask_token, choose_second_mask
    from hybridizer.trace.prompts import prepare_prompts

    tokenizer, settings = load_tokenizer(donor.folder, "remote_code" in donor.allow), request.settings
    mask_token = choose_mask_token(tokenizer, settings.mask_with) if settings.perturb != "layer" else None
    if mask_token is not None:
        choose_second_mask(tokenizer, mask_token, settings.second_mask_with)  # refuses a token that cannot be used
    prompts = prepare_prompts(request.probes, tokenizer, settings, mask_token, request.mask_positions, request.seed)
    return tuple(prompt.answer for prompt in prompts)


def _write_run(folder: Path, run: TraceRun) -> None:
    """Write a trace into the existing `folder`; the record last, so that a trace is complete or absent."""
    with new_file(folder / _READINGS) as partial, partial.open("wb") as file:
        np.savez(file, **{name: array for name, array in vars(run.readings).items() if array is not None})
    write_json(folder / _RECORD, run.record.to_json())


def _read_run(folder: Path, name: str, reference: str) -> TraceRun:
    """The trace in `folder` under the donor's present name and reference. Raises CheckpointError when it is damaged."""
    record = read_trace_record(folder / _RECORD)
    try:
        with (folder / _READINGS).open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {f.name: stored.get(f.name) for f in fields(Readings)}
    except NPZ_DAMAGE as error:
        what = f"damaged readings: {type(error).__name__}: {error}."
        raise CheckpointError(Problem(str(folder / _READINGS), what, "Trace the donor again.")) from None
    shape = (record.probes.n, record.donor.num_layers + 1)
    for column, array in arrays.items():
        expected = shape[:1] if column in _BY_PROMPT else shape
        if (array is None and column in _ALWAYS) or (array is not None and array.shape != expected):
            what = (
                f"damaged readings: '{column}' is missing or not that of {shape[0]} prompts and {shape[1] - 1} layers."
            )
            raise CheckpointError(Problem(str(folder / _READINGS), what, "Trace the donor again."))
    named = replace(record, donor=replace(record.donor, reference=reference))
    return TraceRun(name, named, Readings(**arrays))


def score_baselines(donor: Donor, request: TraceRequest, monitor: Monitor) -> tuple[LayerScores, ...]:
    """Measures of each layer of `donor` from other papers, on the weights and on the request's prompts, unmasked."""
    from hybridizer.models.encode import encode_prompts
    from hybridizer.trace.baselines import score_activations, score_weights

    model, tokenizer, parts = load_traced(donor, request)
    prompts = encode_prompts(tokenizer, [probe.prompt for probe in request.probes.probes])
    clusters = number_clusters([probe.cluster for probe in request.probes.probes])
    with monitor.task(f"baselines of '{donor.name}'", parts.num_layers + len(prompts), "steps") as advance:
        ratio = score_weights(parts, advance)
        size = request.settings.batch_size
        scores = score_activations(
            model, parts, prompts, batch_size=size, seed=request.seed, clusters=clusters, advance=advance
        )
        return (ratio, *scores)


def load_traced(donor: Donor, request: TraceRequest) -> tuple[Any, Any, Any]:
    """The donor's model, tokenizer and parts, in the dtype and on the devices of the request."""
    from hybridizer.models.load import load_causal_lm
    from hybridizer.models.parts import find_parts
    from hybridizer.models.quiet import without_bars

    dtype = "auto" if request.settings.dtype == "keep" else request.settings.dtype
    with without_bars():
        model, tokenizer = load_causal_lm(donor.folder, dtype, request.device_map, "remote_code" in donor.allow)
    return model, tokenizer, find_parts(model)


def _run(donor: Donor, request: TraceRequest, folder: Path, monitor: Monitor) -> None:
    from hybridizer.trace.tracer import trace_model

    folder.mkdir(parents=True, exist_ok=True)
    assert donor.fingerprint is not None, "a donor is traced with its fingerprint known"
    model, tokenizer, parts = load_traced(donor, request)
    about = RecordedDonor(donor.reference, donor.fingerprint, donor.structure.family, parts.num_layers)
    tuned = _obtain_lens(model, tokenizer, parts, donor, monitor) if request.settings.lens != "plain" else None
    with monitor.task(f"trace '{donor.name}'", len(request.probes.probes), "prompts") as advance:
        traced = trace_model(
            model,
            tokenizer,
            parts,
            request.probes,
            request.settings,
            about,
            seed=request.seed,
            tuned_lens=tuned,
            mask_positions=request.mask_positions,
            journal=folder / _JOURNAL,
            advance=advance,
        )
    _write_run(folder, traced)
    (folder / _JOURNAL).unlink()


def _obtain_lens(model: Any, tokenizer: Any, parts: Any, donor: Donor, monitor: Monitor) -> Any:
    from hybridizer.trace.tuned_lens import builtin_text, obtain_tuned_lens

    assert donor.fingerprint is not None
    folder = cache_folder() / "lenses"
    with monitor.task(f"tuned lens of '{donor.name}'", parts.num_layers, "layers") as advance:
        return obtain_tuned_lens(model, tokenizer, parts, donor.fingerprint, builtin_text(), folder, advance=advance)
