"""Donors that a command line names, opened and traced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hybridizer.core.progress import Monitor
from hybridizer.donors.donor import Donor
from hybridizer.donors.open import Access, open_donor
from hybridizer.donors.reference import parse_reference
from hybridizer.pipeline.faults import as_output_errors
from hybridizer.trace.record import TraceRun
from hybridizer.trace.runs import TraceRequest, score_baselines, trace


@as_output_errors()
def trace_donors(
    texts: Sequence[str], request: TraceRequest, allow: tuple[str, ...], monitor: Monitor, *, baselines: bool = False
) -> list[TraceRun]:
    """Trace the donors of a command line, each named by its reference, with baselines if requested."""
    donors = []
    for text in texts:
        reference = parse_reference(text, Path.cwd(), where=text)
        donor = open_donor(text, reference, Access(fetch=True, fingerprint=True, allow=allow), text, monitor)
        assert isinstance(donor, Donor), "a donor that may be fetched is there afterwards"
        donors.append(donor)
    traces = [trace(donor, request, monitor) for donor in donors]
    if not baselines:
        return traces
    scores = [score_baselines(donor, request, monitor) for donor in donors]
    return [replace(traced, baselines=found) for traced, found in zip(traces, scores, strict=True)]
