"""Donors and a request -> the record of a scan. Scores are kept in the cache as they are computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from hybridizer.scan.candidates import Candidate, Space, draw, list_candidates
from hybridizer.scan.items import Half, builtin_documents, draw_probes, encode_beginnings, halve, take_beginnings
from hybridizer.scan.record import (
    ScannedDonor,
    ScanRecord,
    describe_half,
    find_chance,
    make_row,
    retest,
    summarise,
    value_of,
)
from hybridizer.scan.request import ACCURACY, BITS, ScanRequest
from hybridizer.scan.score import Score, Scorer, prepare_items
from hybridizer.scan.score_log import ScoreLog
from hybridizer.scan.search import Scored, Search, cost_of_drops, search_all, search_drops, search_mixes
from hybridizer.trace.probes import ProbeSet

BUILTIN_TEXT = "Python reference"
SCORES = "hybridizer.scan_scores/1"  # of the journals


@dataclass(frozen=True)
class Workbench:
    """The donors by name, the host first, and both halves of the items."""

    donors: Mapping[str, Donor]
    search: Half
    test: Half

    @property
    def halves(self) -> tuple[Half, Half]:
        """Both halves."""
        return self.search, self.test

    @property
    def text_name(self) -> str | None:
        """The name of the text; None without documents."""
        return self.search.items.texts[0].name if self.search.num_documents else None

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

    def log(self, half: Half, monitor: Monitor) -> ScoreLog:
        """The scores of models on one half: those in the cache, and those to come."""
        path = cache_folder() / "scans" / f"{self._key(half).removeprefix('sha256:')}.jsonl"

        def make() -> Scorer:
            return Scorer(self.models, next(iter(self.donors)), half.items)

        work = "scan (same donors and items)"
        try:
            return ScoreLog(Journal(path, path.stem, work), make)
        except JournalError as error:
            monitor.note(f"scan: cannot resume, started over ({error.problems[0].what})")
            path.unlink()
            return ScoreLog(Journal(path, path.stem, work), make)

    def _key(self, half: Half) -> str:
        """A hash of what scores depend on."""
        donors = [(name, donor.fingerprint) for name, donor in self.donors.items()]
        prompts = [(prompt.ids, prompt.answer) for prompt in half.items.prompts]
        texts = [text.identity for text in half.items.texts]
        place = (default_device().type, self.dtype)
        return content_hash([SCORES, donors, texts, prompts, half.items.context, place, __version__])


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
        text = encode_beginnings(BUILTIN_TEXT, builtin_documents(), encoder, count, max_tokens)
    else:
        text = take_beginnings(source, encoder, count, max_tokens)
    drawn = draw_probes(probes, request.prompts, request.seed) if probes and request.prompts else None
    items = prepare_items(tokenizer, drawn if drawn and drawn.probes else None, [text], context=max_tokens)
    search, test = halve(items, drawn.probes if drawn else (), request.seed)
    return Workbench({donor.name: donor for donor in donors}, search, test)


def scan(
    donors: Sequence[Donor], request: ScanRequest, probes: ProbeSet | None, source: Source | None, monitor: Monitor
) -> ScanRecord:
    """Search on one half of the items, test the best on the other.

    The donors are of one shape, the host first, their fingerprints known; `probes` and `source` as for `set_up`. Raises
    InputError for requests that these donors or items cannot meet.
    """
    space = Space({donor.name: donor.structure.num_layers for donor in donors}, request.span)
    if problems := list(find_space_problems(space, request)):
        raise InputError(*problems)
    bench = set_up(donors, request, probes, source)
    _refuse_empty(bench, request)
    candidates = None if request.steps else list_candidates(space, request.kinds(len(donors)))
    search, host = _search(bench, space, candidates, request, monitor)
    tried = [scored for layers, scored in search.scored.items() if layers != space.host]
    finalists = _choose(tried, space, request)
    scores, host_again = _score_again(bench, space, finalists, monitor)
    rows = [make_row(scored, bench.search, host, request.by) for scored in _ordered(tried)]
    best = [make_row(scored, bench.search, host, request.by) for scored in finalists]
    winners = retest(best, scores, bench.test, host_again, request.by, request.seed)
    return ScanRecord(
        donors=tuple(_describe(donor) for donor in donors),
        settings={**request.settings(), "dtype": bench.dtype, "device": default_device().type},
        text=bench.text_name,
        probes=probes.name if probes and bench.search.groups else None,
        search=describe_half(bench.search, host),
        test=describe_half(bench.test, host_again),
        num_possible=None if candidates is None else len(candidates),
        num_tried=len(tried),
        num_refused=len(search.refused),
        candidates=tuple(rows),
        null=find_chance(tried, bench.search, host, request.by, request.seed),
        winners=winners,
        sentence=summarise(winners, space.host, request),
    )


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


def _refuse_empty(bench: Workbench, request: ScanRequest) -> None:
    needed = {
        BITS: min(half.num_documents for half in bench.halves),
        ACCURACY: min(len(h.groups) for h in bench.halves),
    }
    if not needed[request.by]:
        what = f"there are too few usable items for a search by {request.by}: each half needs one."
        fix = "Give more text or probes whose answers are one token, or search by the other figure."
        raise InputError(Problem("items", what, fix))


def _search(
    bench: Workbench, space: Space, candidates: list[Candidate] | None, request: ScanRequest, monitor: Monitor
) -> tuple[Search, Score]:
    """The finished search, and the host's figures on its half."""
    log = bench.log(bench.search, monitor)
    drawn = None if candidates is None else draw(candidates, request.candidates, request.seed)
    total = request.candidates if drawn is None else len(drawn)
    if request.drop is not None:
        total = min(total, cost_of_drops(len(space.host), request.drop, request.beam))
    with monitor.task("score models", total + 1, "models") as advance:
        log.prepare([space.host])
        host = log.score(space.host)
        advance(1)
        search = Search(log, lambda score: value_of(bench.search, score, request.by), advance, request.candidates)
        if drawn is not None:
            search_all(search, space, drawn)
        elif request.drop is not None:
            search_drops(search, space, request.drop, request.beam, request.seed)
        else:
            search_mixes(search, space, request.beam, request.seed)
    return search, host


def _ordered(tried: Sequence[Scored]) -> list[Scored]:
    return sorted(tried, key=lambda scored: scored.value)


def _choose(tried: Sequence[Scored], space: Space, request: ScanRequest) -> list[Scored]:
    """The best of the search; of a search for layers to leave out, the best of those that lack as many as requested.

    Raises InputError where the budget ended before there was one.
    """
    if request.drop is not None:
        depth = len(space.host) - request.drop
        tried = [scored for scored in tried if len(scored.candidate.layers) == depth]
        if not tried:
            needed = cost_of_drops(len(space.host), request.drop, request.beam)
            what = f"the budget of {request.candidates} models ended before {request.drop} layers were left out."
            raise InputError(Problem("candidates", what, f"Give {needed}, or leave out fewer."))
    return _ordered(tried)[: request.best]


def _score_again(
    bench: Workbench, space: Space, finalists: Sequence[Scored], monitor: Monitor
) -> tuple[list[Score], Score]:
    """The finalists' figures on the test half, and the host's."""
    log = bench.log(bench.test, monitor)
    scores = []
    with monitor.task("test the best again", len(finalists) + 1, "models") as advance:
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
