"""Evaluations of any models as tables for a terminal: rich renderables of the contract "hybridizer.eval/1"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group

from hybridizer.report.captions import one_line
from hybridizer.report.tables import TextTable, under

Record = Mapping[str, Any]

_FORMS = {"bits_per_byte": ".4f", "answer_bits": ".3f", "margin_bits": "+.3f"}  # others are shares of items
_NAME = 44


def figures_table(record: Record) -> Group:
    """One row per figure and model: the value, its 95% interval, chance, and how many items in how many groups."""
    table = TextTable()
    table.add_columns("what", "figure", "model")
    table.add_column("value", justify="right")
    table.add_column("95%", no_wrap=True)
    table.add_columns("chance", "items", justify="right")
    rows: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for model in record["models"]:
        for row in _figures(model):
            rows.setdefault(row[:2], []).append(row[2:])
    for (what, metric), of_models in rows.items():
        for cells in of_models:
            table.add_row(one_line(what, _NAME), metric, *cells)
    notes = list(dict.fromkeys(_caveats(record)))
    about = "bits: less is better; accuracy and margin: more is better. Intervals are 95%, over groups of items"
    return under([about], table, notes)


def pairs_table(record: Record) -> Group:
    """One row per figure and pair of models: the difference b - a on the same items, its interval and the verdict."""
    table = TextTable()
    table.add_columns("what", "figure")
    table.add_column("b - a", justify="right")
    table.add_column("95%", no_wrap=True)
    table.add_column("verdict")
    for pair in record["pairs"]:
        form = _FORMS.get(pair["metric"], ".3f").replace("+", "")
        cells = (f"{pair['difference']:+{form}}", _spread(pair["difference_ci"], f"+{form}"), _verdict(pair))
        table.add_row(one_line(pair["what"], _NAME), pair["metric"], *cells)
    return under(["differences on the same items"], table)


def overlap_lines(record: Record) -> Iterator[str]:
    """One line per set that was looked for in training text."""
    for found in record["overlaps"]:
        share = f"{found['run_share']:.2%} of its runs of 13 words"
        short = f"; {found['num_short']:,} are too short to tell" if found["num_short"] else ""
        items = f"{found['num_found']:,} of {found['num_items']:,} items"
        yield f"overlap of {found['what']} with the training text: {items}, {share}{short}"


def _figures(model: Record) -> Iterator[tuple[str, ...]]:
    """What, metric, then the cells of a model's row for each figure."""
    name = one_line(model["name"], _NAME)
    for found in model["sets"]:
        cells = (f"{found['bits_per_byte']:.4f}", _spread(found["bits_per_byte_ci"], ".4f"), "", _count(found))
        yield (found["name"], "bits_per_byte", name, *cells)
    for found in model["tasks"]:
        form = _FORMS.get(found["metric"], ".3f")
        chance = "" if found["chance"] is None else f"{found['chance']:{form.replace('+', '')}}"
        cells = (f"{found['value']:{form}}", _spread(found["value_ci"], form), chance, _count(found))
        yield (found["name"], found["metric"], name, *cells)


def _count(found: Record) -> str:
    number = found.get("documents", found.get("n"))
    return f"{number:,}" if number == found["groups"] else f"{number:,} in {found['groups']:,}"


def _caveats(record: Record) -> Iterator[str]:
    for model in record["models"]:
        for found in (*model["sets"], *model["tasks"]):
            if found["caveat"]:
                yield f"{one_line(found['name'], 60)}: {found['caveat']}"
        for name, reason in model["left_out"].items():
            yield f"{one_line(name, 60)} of {one_line(model['name'], 60)}: left out, {reason}"


def _spread(band: Sequence[float] | None, form: str) -> str:
    return f"{band[0]:{form}}..{band[1]:{form}}" if band else "-"


def _verdict(pair: Record) -> str:
    names = {"a is better": pair["a"], "b is better": pair["b"]}
    winner = names.get(pair["verdict"])
    pair_of = f"a: {one_line(pair['a'], _NAME)}, b: {one_line(pair['b'], _NAME)}"
    verdict = f"{one_line(winner, _NAME)} is better" if winner else pair["verdict"]
    tail = "" if pair["mcnemar_p"] is None else f" (McNemar p {pair['mcnemar_p']:.3g})"
    return f"{verdict}{tail}\n{pair_of}"
