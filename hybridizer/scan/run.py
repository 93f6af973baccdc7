"""Donors and a request -> the record of a scan. Scores are kept in the cache as they are computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hybridizer import __version__
from hybridizer.core.cache import cache_folder
from hybridizer.core.errors import InputError, Problem
from hybridizer.core.journal import Journal, JournalError
from hybridizer.core.progress import Monitor
from hybridizer.core.records import content_hash
from hybridizer.data.batches import Source
from hybridizer.data.tokenizer import TokenizerEncoder
from hybridizer.donors.donor import Donor
from hybridizer.evaluate.model import compute_dtype, default_device
from hybridizer.models.load import load_causal_lm, load_tokenizer
from hybridizer.models.parts import find_parts
from hybridizer.models.quiet import without_bars
from hybridizer.scan.candidates import Candidate, Layers, Space, describe, draw, list_candidates
from hybridizer.scan.items import (
    Division,
    Part,
    divide_items,
    draw_probes,
    encode_beginnings,
    take_beginnings,
    take_documents,
)
from hybridizer.scan.record import (
    Figures,
    Row,
    ScannedDonor,
    ScanRecord,
    find_chance,
    list_rows,
    measure,
    retest,
    summarise,
    value_of,
)
from hybridizer.scan.request import ScanRequest
from hybridizer.scan.score import Score, Scorer, builtin_documents, join, prepare_items
from hybridizer.scan.score_log import ScoreLog
from hybridizer.scan.search import (
    Objective,
    Rung,
    Scored,
    Screen,
    Search,
    rounds_of_drops,
    search_all,
    search_drops,
    search_mixes,
)
from hybridizer.trace.perturbation import can_reuse_prefix
from hybridizer.trace.probes import ProbeSet

BUILTIN_TEXT = "Python reference"
BUILTIN_BYTES = 1 << 20  # more than there is
BYTES_PER_TOKEN = 5  # of passages that are long enough
SCORES = "hybridizer.scan_scores/1"  # of the journals
LEAST_PASSING = 6  # of a screen
# The share of the screen's documents that has been looked at after each rung, and one in how many candidates passes:
# chosen by simulation from the bits of 228 cuts and repeats (docs/log.md).
RUNGS, ONE_IN = (1 / 8, 3 / 8, 1), 12
ONE_IN_BY_PROMPTS = 8


@dataclass(frozen=True)
class Workbench:
    """The donors by name, the host first, and the items of each purpose."""

    donors: Mapping[str, Donor]
    items: Division

    @property
    def dtype(self) -> str:
        """What all donors are loaded in: "auto", as they are stored, or float32 where they differ in that.

        Also float32 where the device would emulate what is stored.
        """
        one = len({donor.main_dtype for donor in self.donors.values()}) == 1
        return compute_dtype() if one else "float32"

    @cached_property
    def models(self) -> dict[str, Any]:
        """Every donor's model, on this machine's device, and its parts; loaded at first use."""
        models = {}
        for name, donor in self.donors.items():
            with without_bars():
                model, _ = load_causal_lm(donor.folder, self.dtype, None, "remote_code" in donor.allow)
            model = model.to(default_device())
            models[name] = (model, find_parts(model))
        return models

    @cached_property
    def reuses(self) -> bool:
        """Whether compositions on the host may start from stored states."""
        return can_reuse_prefix(*self.models[next(iter(self.donors))])

    def log(self, part: Part, monitor: Monitor) -> ScoreLog:
        """The scores of models on some items: those in the cache, and those to come."""
        path = cache_folder() / "scans" / f"{self._key(part).removeprefix('sha256:')}.jsonl"

        def make() -> Scorer:
            return Scorer(self.models, next(iter(self.donors)), part.items, reuse=self.reuses)

        work = "scan (same donors and items)"
        sizes = (part.num_documents, len(part.items.prompts))
        try:
            return ScoreLog(Journal(path, path.stem, work), make, sizes)
        except JournalError as error:
            monitor.note(f"scan: cannot resume, started over ({error.problems[0].what})")
            path.unlink()
            return ScoreLog(Journal(path, path.stem, work), make, sizes)

    def _key(self, part: Part) -> str:
        """A hash of what scores depend on."""
        donors = [(name, donor.fingerprint) for name, donor in self.donors.items()]
        prompts = [(prompt.ids, prompt.answer) for prompt in part.items.prompts]
        texts = [text.identity for text in part.items.texts]
        place = (default_device().type, self.dtype)
        return content_hash([SCORES, donors, texts, prompts, part.items.context, place, __version__])


def set_up(donors: Sequence[Donor], request: ScanRequest, probes: ProbeSet | None, source: Source | None) -> Workbench:
    """The items of a scan, in the tokens of the first donor, the host.

    `source` is a text in these tokens, None for the built-in one. Raises InputError for probes and texts that cannot
    be used.
    """
    host = donors[0]
    tokenizer = load_tokenizer(host.folder, "remote_code" in host.allow)
    encoder = TokenizerEncoder(tokenizer)
    count, max_tokens = request.documents, request.document_tokens
    if source is None:
        documents = builtin_documents(BUILTIN_BYTES, BYTES_PER_TOKEN * max_tokens)
        text = encode_beginnings(BUILTIN_TEXT, documents, encoder, count, max_tokens)
    else:
        text = take_beginnings(source, encoder, count, max_tokens)
    drawn = draw_probes(probes, request.prompts, request.seed) if probes and request.prompts else None
    items = prepare_items(tokenizer, drawn if drawn and drawn.probes else None, [text], context=max_tokens)
    division = divide_items(items, drawn.probes if drawn else (), request.by, request.seed)
    return Workbench({donor.name: donor for donor in donors}, division)


def scan(
    donors: Sequence[Donor], request: ScanRequest, probes: ProbeSet | None, source: Source | None, monitor: Monitor
) -> ScanRecord:
    """Search on some of the items, test the best on the others.

    The donors are of one shape, the host first, their fingerprints known; `probes` and `source` as for `set_up`. Raises
    InputError for requests that these donors or items cannot meet.
    """
    space = Space({donor.name: donor.structure.num_layers for donor in donors}, request.span)
    if problems := list(find_space_problems(space, request)):
        raise InputError(*problems)
    bench = set_up(donors, request, probes, source)
    candidates = None if request.steps else list_candidates(space, request.kinds(len(donors)))
    found = _search(bench, space, candidates, request, monitor)
    finalists = _choose(found.scored, space, request)
    scores, host_again = _test(bench, space, finalists, monitor)
    rows = found.list_rows(request.by)
    by_name = {row.name: row for row in rows}
    best = [by_name[finalist.candidate.name] for finalist in finalists]
    winners = retest(best, scores, bench.items.test, host_again, request.by, request.seed)
    test = measure(bench.items.test, host_again)
    return ScanRecord(
        donors=tuple(_describe(donor) for donor in donors),
        settings={**request.settings(), "dtype": bench.dtype, "device": default_device().type},
        text=bench.items.test.items.texts[0].name if test.num_documents else None,
        probes=probes.name if probes and test.num_prompts else None,
        screen=found.screen_figures,
        search=measure(bench.items.search, found.host),
        test=test,
        num_possible=None if candidates is None else len(candidates),
        num_tried=len(found.search.tried) - (space.host in found.search.tried),
        num_scored=len(found.scored),
        num_refused=len(found.search.refused),
        candidates=tuple(rows),
        null=find_chance(found.scored, bench.items.search, found.host, request.by, request.seed),
        winners=winners,
        sentence=summarise(winners, finalists[0].candidate.layers if finalists else None, space.host, request),
    )


@dataclass(frozen=True)
class Found:
    """A finished search. `host` is the host's score on the items of the search, `screen` those of each rung of it."""

    search: Search
    bench: Workbench
    layers: Layers
    host: Score
    screen: tuple[Score, ...]

    @property
    def scored(self) -> list[Scored]:
        """The candidates that were scored in full, the host left out, best first."""
        tried = [scored for layers, scored in self.search.scored.items() if layers != self.layers]
        return sorted(tried, key=lambda scored: scored.value)

    @property
    def screen_figures(self) -> Figures | None:
        """The items of the screen, and the host's figures on them."""
        part = self.bench.items.screen
        return measure(part, join(self.screen)) if part is not None and self.screen else None

    def list_rows(self, by: str) -> list[Row]:
        """Every candidate, best first."""
        rungs = self.search.screen.rungs if self.search.screen is not None else ()
        screened = [rung.objective(self.screen[:number]) for number, rung in enumerate(rungs, start=1)]
        rows = list_rows(self.search, value_of(self.bench.items.search, self.host, by), screened, by)
        own = describe(self.layers)
        return [row for row in rows if row.name != own]


def find_space_problems(space: Space, request: ScanRequest) -> Iterator[Problem]:
    """What is wrong with a request for donors of these depths."""
    for name, depth in space.depths.items():
        if depth < 2:
            what = "it has a single layer, and nothing can be cut from it or put into it."
            yield Problem(f"donor '{name}'", what, "Scan donors of two layers or more.")
    depth = len(space.host)
    if request.drop is not None and request.drop >= depth:
        what = f"{request.drop} layers cannot be left out of {depth}."
        yield Problem("drop", what, f"Give at most {depth - 1}.")


def _search(
    bench: Workbench, space: Space, candidates: list[Candidate] | None, request: ScanRequest, monitor: Monitor
) -> Found:
    """Score candidates, or go step by step."""
    drawn = None if candidates is None else draw(candidates, request.candidates, request.seed)
    rounds = _rounds(space, drawn, request)
    log, screen = bench.log(bench.items.search, monitor), _make_screen(bench, request, monitor)
    if screen is not None and all(len(screen.sizes(count)) == 1 for count in rounds):
        screen = None
    total = sum(rounds) if screen is None else sum(sum(screen.sizes(count)) for count in rounds)
    with monitor.task("score models", total + 1, "models") as advance:
        log.prepare([space.host])
        host = log.score(space.host)
        advance(1)
        search = Search(log, _objective(bench.items.search, request.by), advance, request.candidates, screen)
        if drawn is not None:
            search_all(search, space, drawn)
        elif request.drop is not None:
            search_drops(search, space, request.drop, request.beam, request.seed)
        else:
            search_mixes(search, space, request.beam, request.seed)
    rungs = () if screen is None else screen.rungs
    return Found(search, bench, space.host, host, tuple(rung.scorer.score(space.host) for rung in rungs))


def _make_screen(bench: Workbench, request: ScanRequest, monitor: Monitor) -> Screen | None:
    """The screen of a search; None where none is wanted, or items are few.

    Documents come in rungs, see RUNGS. Prompts come at once.
    """
    part = bench.items.screen
    if part is None or not request.screen:
        return None
    least, total = max(LEAST_PASSING, request.best), part.num_documents
    if not total:
        objective = _objective_of_rungs(part, request.by)
        return Screen((Rung(bench.log(part, monitor), objective, len(part.group_sizes)),), least, ONE_IN_BY_PROMPTS)
    rungs, begin = [], 0
    for share in RUNGS:
        end = math.ceil(total * share)
        new, so_far = (take_documents(part, first, end) for first in (begin, 0))
        rungs.append(Rung(bench.log(new, monitor), _objective_of_rungs(so_far, request.by), end))
        begin = end
    return Screen(tuple(rungs), least, ONE_IN)


def _objective_of_rungs(part: Part, by: str) -> Callable[[Sequence[Score]], float]:
    return lambda scores: value_of(part, join(scores), by)


def _objective(part: Part, by: str) -> Objective:
    return lambda score: value_of(part, score, by)


def _rounds(space: Space, drawn: list[Candidate] | None, request: ScanRequest) -> list[int]:
    """At most how many models each round of the search tries."""
    if drawn is not None:
        return [len(drawn)]
    if request.drop is not None:
        return rounds_of_drops(len(space.host), request.drop, request.beam)
    return [request.candidates]


def _choose(scored: Sequence[Scored], space: Space, request: ScanRequest) -> list[Scored]:
    """The best of the search; of a search for layers to leave out, the best of those that lack as many as requested.

    Raises InputError where the budget ended before there was one.
    """
    if request.drop is not None:
        depth = len(space.host) - request.drop
        scored = [one for one in scored if len(one.candidate.layers) == depth]
        if not scored:
            needed = sum(rounds_of_drops(len(space.host), request.drop, request.beam))
            what = f"the budget of {request.candidates} models ended before {request.drop} layers were left out."
            raise InputError(Problem("candidates", what, f"Give {needed}, or leave out fewer."))
    return list(scored[: request.best])


def _test(bench: Workbench, space: Space, finalists: Sequence[Scored], monitor: Monitor) -> tuple[list[Score], Score]:
    """The finalists' scores on the items of the test, and the host's."""
    log = bench.log(bench.items.test, monitor)
    scores = []
    with monitor.task("test the best", len(finalists) + 1, "models") as advance:
        log.prepare([space.host])
        host = log.score(space.host)
        advance(1)
        for finalist in finalists:
            scores.append(log.score(finalist.candidate.layers))
            advance(1, finalist.candidate.name)
    return scores, host


def _describe(donor: Donor) -> ScannedDonor:
    assert donor.fingerprint is not None, "a donor is scanned with its fingerprint known"
    return ScannedDonor(donor.name, donor.reference, donor.fingerprint, donor.structure.num_layers)
