"""Donors that a command line names, opened and traced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from hybridizer.core.errors import InputError, Problem, nearest
from hybridizer.core.progress import Monitor
from hybridizer.donors.donor import Donor
from hybridizer.donors.open import Access, open_donor
from hybridizer.donors.reference import parse_reference
from hybridizer.pipeline.faults import reporting_os_errors
from hybridizer.recipe.models import Allowed
from hybridizer.recipe.sizes import MAX_SEED
from hybridizer.trace.record import TraceRun
from hybridizer.trace.runs import TraceRequest, check_prompts, is_cached, score_baselines, trace


@reporting_os_errors()
def trace_donors(
    texts: Sequence[str],
    request: TraceRequest,
    allow: tuple[str, ...],
    monitor: Monitor,
    *,
    baselines: bool = False,
    ranked: bool = False,
    json_out: Path | None = None,
    plot: Path | None = None,
) -> list[TraceRun]:
    """Trace donors that a command line names, each called by its reference, with baselines if requested.

    What cannot work is refused before any donor is traced, with InputError: names, seed and permissions, the files
    `json_out` and `plot` that are to be written, prompts that a donor's tokenizer cannot use and, if the donors are to
    be `ranked`, whatever makes ranking impossible.
    """
    problems = [*find_argument_problems(texts, request.seed, allow), *find_output_problems(json_out, plot)]
    problems += _crowd_problems(plot, len(texts))
    if problems:
        raise InputError(*problems)
    donors = open_named({text: text for text in texts}, allow, monitor)
    if ranked:
        _check_rankable(donors, request)
    elif len(donors) > 1:  # a single donor's own trace finds the same before it runs the model
        for donor in donors:
            if not is_cached(donor, request):
                check_prompts(donor, request)
    traces = [trace(donor, request, monitor) for donor in donors]
    if not baselines:
        return traces
    scores = [score_baselines(donor, request, monitor) for donor in donors]
    return [replace(traced, baselines=found) for traced, found in zip(traces, scores, strict=True)]


def open_named(names: Mapping[str, str], allow: tuple[str, ...], monitor: Monitor) -> list[Donor]:
    """Donors by reference, each called by the name that `names` gives it, fetched if needed and fingerprinted.

    Raises DonorError and CheckpointError.
    """
    access = Access(fetch=True, fingerprint=True, allow=allow)
    donors = []
    for text, name in names.items():
        donor = open_donor(name, parse_reference(text, Path.cwd(), where=text), access, text, monitor)
        assert isinstance(donor, Donor), "a donor that may be fetched is there afterwards"
        donors.append(donor)
    return donors


def find_argument_problems(texts: Sequence[str], seed: int, allow: Sequence[str]) -> Iterator[Problem]:
    """Donors named twice, a seed out of range, permissions that do not exist."""
    for text, count in Counter(texts).items():
        if count > 1:
            yield Problem("donors", f"'{text}' is named {count} times.", "Name each donor once.")
    if not 0 <= seed <= MAX_SEED:
        yield Problem("seed", f"{seed} is not in the range 0..{MAX_SEED}.", "Give a number in that range.")
    for name in allow:
        if name not in get_args(Allowed):
            yield Problem("allow", f"'{name}' is not something that can be allowed.", nearest(name, get_args(Allowed)))


def find_output_problems(json_out: Path | None, plot: Path | None) -> Iterator[Problem]:
    """Files that cannot be written: a folder, a file in a folder that does not exist, a picture of an unknown kind."""
    for path in (json_out, plot):
        if path is None or str(path) == "-":
            continue
        if path.is_dir():
            yield Problem(str(path), "this is a folder.", "Give the name of a file.")
        elif not path.parent.is_dir():
            yield Problem(str(path), f"the folder {path.parent} does not exist.", "Create it first.")
    if plot is not None:
        from hybridizer.report.plots import figure_kind

        try:
            figure_kind(plot)
        except InputError as error:
            yield from error.problems


def _crowd_problems(plot: Path | None, num_donors: int) -> Iterator[Problem]:
    if plot is not None:
        from hybridizer.report.plots import MAX_DONORS

        if num_donors > MAX_DONORS:
            what = f"{num_donors} donors cannot be told apart in one picture."
            yield Problem("plot", what, f"Plot at most {MAX_DONORS} at once.")


def _check_rankable(donors: Sequence[Donor], request: TraceRequest) -> None:
    """Raise InputError where `trace.ranking.rank` would after tracing: no boundary, no evidence, no usable targets."""
    from hybridizer.trace.ranking import chance_level

    problems = []
    if request.settings.perturb == "layer":
        what = "ranking needs the context perturbation, and only the layer perturbation is requested."
        problems.append(Problem("perturb", what, "Use context, or both."))
    for donor in donors:
        if donor.structure.num_layers < 2:
            what = "it has a single layer, and a boundary needs one on each side."
            problems.append(Problem(donor.reference, what, "Rank donors of two layers or more."))
    if problems:
        raise InputError(*problems)
    answers = [check_prompts(donor, request) for donor in donors]
    targets = [probe.target for probe in request.probes.probes]
    usable = [target for target, *tokens in zip(targets, *answers, strict=True) if None not in tokens]
    chance_level(usable)
