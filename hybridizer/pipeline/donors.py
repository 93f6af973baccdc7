"""Donors opened, traced and ranked: those that a command line names, and the sides of a recipe's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from hybridizer import __version__
from hybridizer.core.cache import cache_folder
from hybridizer.core.errors import DidYouMean, InputError, Problem
from hybridizer.core.progress import Monitor
from hybridizer.core.records import content_hash
from hybridizer.donors.donor import Donor
from hybridizer.donors.open import Access, open_donor
from hybridizer.donors.reference import parse_reference
from hybridizer.donors.vocabulary import compare_vocabularies
from hybridizer.pipeline.faults import reporting_os_errors
from hybridizer.recipe.models import Allowed, DataEntry, Recipe
from hybridizer.recipe.sizes import MAX_SEED

if TYPE_CHECKING:
    from hybridizer.scan.score import Items
    from hybridizer.trace.probes import ProbeSet
    from hybridizer.trace.ranked import Ranking
    from hybridizer.trace.ranking import Graft
    from hybridizer.trace.record import TraceRun
    from hybridizer.trace.runs import TraceRequest


SIDES = ("deep", "shallow")


@reporting_os_errors()
def trace_donors(
    texts: Sequence[str],
    request: TraceRequest,
    allow: tuple[str, ...],
    monitor: Monitor,
    *,
    baselines: bool = False,
    json_out: Path | None = None,
    plot: Path | None = None,
) -> list[TraceRun]:
    """Trace donors that a command line names, each called by its reference, with baselines if requested.

    What cannot work is refused before any donor is traced, with InputError: names, seed and permissions, the files
    `json_out` and `plot` that are to be written, and prompts that a donor's tokenizer cannot use.
    """
    problems = [*find_argument_problems(texts, request.seed, allow), *find_output_problems(json_out, plot)]
    problems += _crowd_problems(plot, len(texts))
    if problems:
        raise InputError(*problems)
    donors = open_named({text: text for text in texts}, allow, monitor)
    return _trace_all(donors, request, monitor, baselines=baselines, ranked=False)


@reporting_os_errors()
def rank_donors(
    texts: Sequence[str],
    request: TraceRequest,
    allow: tuple[str, ...],
    monitor: Monitor,
    *,
    boundary: str | float,
    by: str | None = None,
    host: str | None = None,
    side: str = "deep",
    json_out: Path | None = None,
) -> tuple[list[TraceRun], Ranking]:
    """Trace donors that a command line names and rank them by one side of each, on `host`, the first if none is named.

    `by` is a key of trace.ranking.MEASURES; sides are measured on the built-in text, unless it needs none of it.
    Raises InputError as `trace_donors` does, and for a host that is not among the donors.
    """
    from hybridizer.trace.boundary import check_boundary
    from hybridizer.trace.ranking import MEASURES, NEEDS_GRAFT, common_boundary, rank

    problems = [*find_argument_problems(texts, request.seed, allow), *find_output_problems(json_out, None)]
    if by is not None and by not in MEASURES:
        problems.append(Problem("by", f"there is no measure '{by}'.", DidYouMean(by, MEASURES)))
    if host is not None and host not in texts:
        problems.append(Problem("host", f"'{host}' is not one of the donors.", DidYouMean(host, texts)))
    if side not in SIDES:
        problems.append(Problem("side", f"there is no side '{side}'.", DidYouMean(side, SIDES)))
    if problems:
        raise InputError(*problems)
    host = host or texts[0]
    donors = open_named({text: text for text in texts}, allow, monitor)
    check_boundary(boundary, {donor.reference: donor.structure.num_layers for donor in donors})
    traces = _trace_all(donors, request, monitor, baselines=False, ranked=True)
    named, grafts = {donor.name: donor for donor in donors}, None
    if by is None or by in NEEDS_GRAFT:
        cuts = {name: found.layer for name, found in common_boundary(traces, boundary, host).items()}
        grafts = measure_sides(named, host, cuts, request, builtin_documents(), monitor)[side]
    ranking = rank(traces, request.probes, boundary, seed=request.seed, by=by, side=side, host=host, grafts=grafts)
    return traces, replace(ranking, warnings=(*ranking.warnings, *_warn_of_vocabularies(ranking, named, host)))


def _warn_of_vocabularies(ranking: Ranking, donors: Mapping[str, Donor], host: str) -> Iterator[str]:
    """A sentence for each donor whose layers a recipe would refuse on `host` because its tokens are others."""
    for row in ranking.ranking:
        difference = compare_vocabularies(donors[host], donors[row.donor]) if row.why_whole is None else None
        if difference is not None:
            yield f"{difference} Its side is fed the host's tokens; a recipe takes it only with `allow: [vocabulary]`."


def _trace_all(
    donors: Sequence[Donor], request: TraceRequest, monitor: Monitor, *, baselines: bool, ranked: bool
) -> list[TraceRun]:
    from hybridizer.trace.runs import check_prompts, is_cached, score_baselines, trace

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
    """No donor, donors named twice, a seed out of range, permissions that do not exist."""
    if not texts:
        yield Problem("donors", "no donor is given.", "Name at least one.")
    for text, count in Counter(texts).items():
        if count > 1:
            yield Problem("donors", f"'{text}' is named {count} times.", "Name each donor once.")
    places: dict[Path, str] = {}
    for text in dict.fromkeys(texts):
        if Path(text).exists() and (first := places.setdefault(Path(text).resolve(), text)) != text:
            yield Problem("donors", f"'{text}' is '{first}' under another name.", "Name each donor once.")
    if not 0 <= seed <= MAX_SEED:
        yield Problem("seed", f"{seed} is not in the range 0..{MAX_SEED}.", "Give a number in that range.")
    for name in allow:
        if name not in get_args(Allowed):
            yield Problem(
                "allow", f"'{name}' is not something that can be allowed.", DidYouMean(name, get_args(Allowed))
            )


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
    from hybridizer.trace.competence import chance_level
    from hybridizer.trace.runs import check_prompts

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


MAX_HELD_OUT, MAX_SELECTION = 200, 100  # prompts: competence is measured on the first, compared with the second
GRAFT_BYTES = 24_000


def builtin_documents() -> tuple[str, ...]:
    """The text that sides are measured on where none is named: English passages that every Python has."""
    from hybridizer.scan.score import builtin_documents as passages

    return tuple(passages(GRAFT_BYTES))


def evaluation_documents(recipe: Recipe) -> tuple[str, ...]:
    """The beginning of each text of `evaluate.bits_per_byte`, GRAFT_BYTES in all; without such texts the built-in one.

    Every document is cut at 1,000 characters, so that many are heard; those of under 50 characters are left out.
    """
    from hybridizer.data.documents import BadRecords, find_files, read_documents

    entries = recipe.evaluate.bits_per_byte if recipe.evaluate is not None else ()
    found: list[str] = []
    for entry in entries:
        room = GRAFT_BYTES // len(entries)
        for path in find_files(entry.path, recipe.folder):
            for document in read_documents(path, entry.field, DataEntry.max_document_bytes, BadRecords()):
                text = document.strip()[:1000]
                if len(text) >= 50 and room > 0:
                    found.append(text)
                    room -= len(text.encode())
                if room <= 0:
                    break
    return tuple(found) or builtin_documents()


def measure_sides(
    donors: Mapping[str, Donor],
    host: str,
    boundaries: Mapping[str, int],
    request: TraceRequest,
    documents: tuple[str, ...],
    monitor: Monitor,
) -> dict[str, dict[str, Graft]]:
    """Both sides of each donor on `host`, by side ("deep", "shallow") and donor; from the cache if measured before.

    `boundaries` is the first deep layer of each donor. Asked are at most MAX_HELD_OUT of the held-out half of the
    request's probes and MAX_SELECTION of the other, spread evenly over each. A damaged cache entry is measured again.
    Raises what scan.transplant.transplant raises.
    """
    from hybridizer.scan.transplant import read_transplants, transplant, write_transplants
    from hybridizer.trace.ranking import Graft
    from hybridizer.trace.runs import load_traced

    probes = _thin(request.probes)
    about = [[name, donor.fingerprint, boundaries[name]] for name, donor in donors.items()]
    parts = [about, host, request.probes.sha256, request.settings.dtype, list(documents), __version__, 2]
    path = cache_folder() / "sides" / f"{content_hash(parts).removeprefix('sha256:')}.npz"
    found = read_transplants(path) if path.is_file() else None
    if found is None or not found.fits(donors, len(probes.probes), len(documents)):
        if path.is_file():
            monitor.note(f"sides on '{host}': damaged in the cache, measured again")
        with monitor.task(f"measure sides on '{host}'", 2 * len(donors) - 1, "passes") as advance:
            found = transplant(
                host,
                list(donors),
                lambda name: load_traced(donors[name], request),
                lambda tokenizer: _prepare(tokenizer, probes, documents, request),
                boundaries,
                advance=advance,
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_transplants(path, found)
    return {
        side: {
            name: Graft(getattr(sides, side), found.num_bytes, probes.probes, sides.why_whole)
            for name, sides in found.donors.items()
        }
        for side in SIDES
    }


def _thin(probes: ProbeSet) -> ProbeSet:
    """At most MAX_HELD_OUT of the held-out half and MAX_SELECTION of the other, evenly spread, in their order."""
    kept: set[int] = set()
    for held_out, most in ((True, MAX_HELD_OUT), (False, MAX_SELECTION)):
        half = [index for index, probe in enumerate(probes.probes) if probe.held_out == held_out]
        count = min(most, len(half))
        kept.update(half[place * len(half) // count] for place in range(count))
    return replace(probes, probes=tuple(probes.probes[index] for index in sorted(kept)))


def _prepare(tokenizer: Any, probes: ProbeSet, documents: tuple[str, ...], request: TraceRequest) -> Items:
    from hybridizer.scan.score import encode_text, prepare_items

    text = encode_text("text", tokenizer, documents)
    return prepare_items(tokenizer, probes, [text], batch_size=request.settings.batch_size)
