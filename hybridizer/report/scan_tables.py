"""A scan as tables for a terminal, from the plain object of the contract "hybridizer.scan/1"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group

from hybridizer.report.captions import one_line
from hybridizer.report.tables import WIDE, Fitting, TextTable, under

Record = Mapping[str, Any]
FORMS = {"bits": "+.4f", "accuracy": "+.1%"}
NAMES = {"bits": "bits per byte", "accuracy": "accuracy"}


def winners_table(record: Record) -> Group:
    """The best of the search, tested: the change of each figure with its interval, and the verdict."""
    wide, narrow = (_winner_rows(record, intervals) for intervals in (True, False))
    count = len(record["winners"])
    about = f"the {count} best of the search, on the items of the test: changes against the model as it is"
    bands = f"95% intervals that hold for all {count} together" if count > 1 else "95% intervals"
    shorter = "95% intervals: from 80 columns on, or with --json"
    return under([about], Fitting(WIDE, under([bands], wide), under([shorter], narrow)))


def _winner_rows(record: Record, intervals: bool) -> TextTable:
    figures = [name for name in FORMS if any(winner[f"{name}_change"] for winner in record["winners"])]
    table = TextTable()
    table.add_column("change")
    table.add_columns("layers", "in the search", *(NAMES[figure] for figure in figures), justify="right")
    table.add_column("verdict")
    for winner in record["winners"]:
        row = winner["row"]
        cells = [_decision(winner[f"{name}_change"], FORMS[name], intervals) for name in figures]
        searched = f"{row['change']:{FORMS[record['settings']['by']]}}"
        table.add_row(one_line(row["name"], 60), str(row["num_layers"]), searched, *cells, winner["verdict"])
    return table


def _decision(decision: Mapping[str, Any] | None, form: str, intervals: bool) -> str:
    if decision is None:
        return "-"
    band = decision["change_ci"] if intervals else None
    return f"{decision['change']:{form}}" + (f"\n{band[0]:{form}}..{band[1]:{form}}" if band else "")


def setting_lines(record: Record) -> list[str]:
    """What was tried on what, and the host's own figures."""
    settings = record["settings"]
    host, *guests = (one_line(donor["reference"], 60) for donor in record["donors"])
    first = f"{host}, {record['donors'][0]['num_layers']} layers" + (f", with {', '.join(guests)}" if guests else "")
    tried = f"{record['num_tried']} models tried"
    if record["num_possible"] is not None and record["num_possible"] > record["num_tried"]:
        tried += f" of {record['num_possible']} (drawn with seed {settings['seed']})"
    if record["screen"] is not None:
        tried += f", {record['num_scored']} of them passed the screen"
    if record["num_refused"]:
        tried += f", {record['num_refused']} that the family cannot have"
    lines = [first, f"{tried}; searched by {NAMES[settings['by']]}"]
    purposes = ("screen", "search", "test")
    return [*lines, *(f"{name}: {_items(record[name], record)}" for name in purposes if record[name] is not None)]


def _items(part: Mapping[str, Any], record: Record) -> str:
    parts = []
    if part["bits_per_byte"] is not None:
        what = f"{part['num_documents']} documents of {one_line(record['text'], 40)}"
        parts.append(f"{what}, {part['bits_per_byte']:.4f} bits per byte as it is")
    if part["accuracy"] is not None:
        what = f"{part['num_prompts']} prompts of {one_line(record['probes'], 40)} in {part['num_groups']} groups"
        parts.append(f"{what}, accuracy {part['accuracy']:.1%} as it is")
    return "; ".join(parts)


def chance_lines(record: Record) -> list[str]:
    """What the search half would show by chance."""
    null = record["null"]
    if null is None:
        return []
    rate = null["false_discovery_rate"]
    found = f"{null['num_found']} of {null['num_tried']} models looked better by more than {null['threshold']:.1f}"
    chance = f"{null['num_expected']:.1f} would by chance"
    share = f", a false-discovery rate of {rate:.0%}" if rate is not None else ""
    best = f"the best by {null['best_found']:.1f}" if null["best_found"] > 0 else "none looked better"
    limit = f"by chance the best of {null['num_tried']} exceeds {null['best_by_chance']:.1f} in 5% of the cases"
    return [f"in the search {found} standard errors; {chance}{share}", f"{best}; {limit}"]
