"""Scan: changes of the layers of one or several donors tried in memory, the best written as recipes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridizer.core.errors import InputError, PlanError, Problem
from hybridizer.core.files import write_file
from hybridizer.core.progress import Monitor
from hybridizer.donors.donor import Donor
from hybridizer.donors.reference import parse_reference
from hybridizer.pipeline.donors import find_argument_problems, find_output_problems, open_named
from hybridizer.pipeline.faults import reporting_os_errors
from hybridizer.plan.compatibility import find_incompatibilities
from hybridizer.recipe.dump import to_yaml
from hybridizer.recipe.models import DataEntry, Recipe, Slice
from hybridizer.scan.request import ScanRequest

if TYPE_CHECKING:
    from hybridizer.scan.record import ScanRecord, Winner

MAX_NAME = 40  # characters of a donor's name in tables and recipes
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@reporting_os_errors()
def scan_donors(
    texts: Sequence[str],
    request: ScanRequest,
    monitor: Monitor,
    *,
    probes: str = "antonyms-en",
    text: DataEntry | None = None,
    allow: tuple[str, ...] = (),
    json_out: Path | None = None,
    plot: Path | None = None,
    out: Path | None = None,
) -> ScanRecord:
    """Scan donors that a command line names, the host first; the best are written as recipes into the folder `out`.

    `text` are files to score on, None for the built-in text. What cannot work is refused before a model is loaded:
    InputError for names, settings, and what is to be written; PlanError for donors that do not fit together.
    """
    from hybridizer.trace.probes import load_probes

    problems = [*find_argument_problems(texts, request.seed, allow), *request.problems(len(texts))]
    problems += [*find_output_problems(json_out, plot), *_folder_problems(out)]
    if problems:
        raise InputError(*problems)
    probe_set = load_probes(probes) if request.prompts else None
    donors = open_named(name_donors(texts), allow, monitor)
    check_fit(donors)
    from hybridizer.scan.run import scan  # loads torch

    record = scan(donors, request, probe_set, _open_text(text, donors[0], monitor), monitor)
    if out is not None:
        write_recipes(record, donors, out)
    return record


def choose_layers(recipe: Recipe, donors: Mapping[str, Donor], monitor: Monitor) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe with the layers that a scan chose, and why; unchanged, without a reason, where none is requested.

    With one donor cuts and repeats are tried, with several a donor for each layer. The first of the tested models that
    is better than the host is taken, the host as it is if none is. Raises PlanError for donors that do not fit
    together, and what `scan` raises.
    """
    layout = recipe.layout
    if layout.candidates is None:
        return recipe, ()
    from hybridizer.scan.run import scan  # loads torch
    from hybridizer.scan.select import BETTER
    from hybridizer.trace.runs import request_from_section

    host = donors[layout.host]
    ordered = [host, *(donor for donor in donors.values() if donor.name != host.name)]
    check_fit(ordered)
    request = ScanRequest(candidates=layout.candidates, per_layer=len(ordered) > 1, seed=recipe.seed)
    probes = request_from_section(recipe.trace, recipe.seed, recipe.folder).probes
    record = scan(ordered, request, probes, None, monitor)
    better = next((winner.row for winner in record.winners if winner.verdict == BETTER), None)
    slices = [{"donor": host.name}] if better is None else better.slices
    reason = f"Layers by a scan of {record.num_tried} models: {record.sentence}"
    return _with_slices(recipe, slices), (reason,)


def assume_host(recipe: Recipe) -> Recipe:
    """The recipe with the host's own layers where a scan is to choose them, for checks of everything else."""
    return recipe if recipe.layout.candidates is None else _with_slices(recipe, [{"donor": recipe.layout.host}])


def _with_slices(recipe: Recipe, slices: Sequence[Mapping[str, Any]]) -> Recipe:
    made = tuple(Slice(**piece) for piece in slices)
    return replace(recipe, layout=replace(recipe.layout, candidates=None, slices=made))


def name_donors(texts: Sequence[str]) -> dict[str, str]:
    """A short name for each reference, as recipes take it: its last part, numbered where two are equal.

    The last part of a folder in a cache is a hash, which tells nothing: that is "donor".
    """
    names: dict[str, str] = {}
    for text in texts:
        last = text.rpartition("@")[0] or text
        base = re.sub(r"[^0-9A-Za-z_-]+", "-", last.rstrip("/").rpartition("/")[2].removesuffix(".gguf"))
        base = "donor" if _HASH.fullmatch(base) else base.strip("-_")[:MAX_NAME].strip("-_") or "donor"
        taken = set(names.values())
        name = next(n for n in (base, *(f"{base}-{i}" for i in range(2, len(texts) + 2))) if n not in taken)
        names[text] = name
    return names


def check_fit(donors: Sequence[Donor]) -> None:
    """Raise PlanError with every reason why layers of these donors cannot be in one model; the host is the first."""
    host, *guests = donors
    layers = {guest.name: range(guest.structure.num_layers) for guest in guests}
    where = {donor.name: donor.reference for donor in donors}
    by_name = {donor.name: donor for donor in donors}
    problems, _ = find_incompatibilities(host, layers, by_name, where, convert=True)
    if problems:
        raise PlanError(*problems)


def write_recipes(record: ScanRecord, donors: Sequence[Donor], folder: Path) -> list[Path]:
    """The tested candidates, best of the search first, as recipes in `folder`, which is made if it is missing."""
    folder.mkdir(exist_ok=True)
    mixed = len({donor.main_dtype for donor in donors}) > 1
    paths = []
    for number, winner in enumerate(record.winners, start=1):
        row = winner.row
        used = {piece["donor"] for piece in row.slices} | {donors[0].name}
        name = f"{number}-" + re.sub(r"[^0-9A-Za-z]+", "-", row.name).strip("-")[:60].strip("-")
        values: dict[str, Any] = {
            "name": name,
            "donors": {donor.name: _entry(donor) for donor in donors if donor.name in used},
            "layout": {"host": donors[0].name, "slices": [dict(entry) for entry in row.slices]},
        }
        if mixed:
            values["output"] = {"dtype": "float32"}
        path = folder / f"{name}.yaml"
        write_file(path, f"{_heading(winner, record)}{to_yaml(values)}")
        paths.append(path)
    return paths


def _heading(winner: Winner, record: ScanRecord) -> str:
    figures = []
    for what, decision in (("bits per byte", winner.bits_change), ("accuracy", winner.accuracy_change)):
        if decision is not None:
            band = decision.change_ci
            spread = f", 95% interval {band[0]:+.4f} to {band[1]:+.4f}" if band else ""
            figures.append(f"# {what} {decision.change:+.4f}{spread} against the model as it is\n")
    tried = (
        f"# found by hybridize scan among {record.num_tried} models, measured on items that the search did not see\n"
    )
    return f"# {winner.row.name}\n{tried}{''.join(figures)}"


def _entry(donor: Donor) -> dict[str, Any]:
    """The donor as recipes in any folder may name it, pinned to its content."""
    reference = parse_reference(donor.reference, Path.cwd(), where=donor.reference)
    source = donor.reference if reference.kind == "package" else str(reference.path)
    if reference.kind == "hub":
        source = f"{reference.repository}@{donor.revision}"
    entry: dict[str, Any] = {"source": source}
    if donor.allow:
        entry["allow"] = list(donor.allow)
    return {**entry, "fingerprint": donor.fingerprint}


def _open_text(text: DataEntry | None, host: Donor, monitor: Monitor) -> Any:
    if text is None:
        return None
    from hybridizer.data.tokenizer import load_encoder
    from hybridizer.train.run import open_texts

    encoder = load_encoder(host.folder, "remote_code" in host.allow)
    return open_texts((text,), Path.cwd(), encoder, monitor)[0]


def _folder_problems(out: Path | None) -> list[Problem]:
    if out is None or out.is_dir():
        return []
    if out.exists():
        return [Problem(str(out), "this is a file.", "Give the name of a folder.")]
    if not out.parent.is_dir():
        return [Problem(str(out), f"the folder {out.parent} does not exist.", "Create it first.")]
    return []
