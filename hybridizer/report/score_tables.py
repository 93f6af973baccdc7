"""Scores before and after as tables for a terminal: rich renderables of the contract "hybridizer.scores/1"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.text import Text

from hybridizer.report.captions import one_line
from hybridizer.report.tables import WIDE, Fitting, TextTable, under

Record = Mapping[str, Any]

_FIGURES = {"before": ".3f", "after": ".3f", "change": "+.3f"}


def bits_table(record: Record) -> Group:
    """One row per text: what was scored, bits per byte before and after, the change, its verdict; then the caveats.

    On terminals of less than 80 columns, one small table per text.
    """
    table = TextTable(leading=1)
    table.add_column("text")
    table.add_columns(*_FIGURES, justify="right", no_wrap=True)
    table.add_column("verdict")
    for row in record["sets"]:
        figures = (_figure(row[name], row[f"{name}_ci"], form, "\n") for name, form in _FIGURES.items())
        table.add_row("\n".join(_text_lines(row)), *figures, row["verdict"])
    about = "bits per byte, less is better, each with its 95% interval over documents"
    narrow = Group(*(under(_text_lines(row), _text_figures(row)) for row in record["sets"]))
    return under([about], Fitting(WIDE, table, narrow), _notes(record))


def _text_lines(row: Record) -> list[str]:
    return [one_line(row["name"], 55), row["role"], _amount(row)]


def _text_figures(row: Record) -> TextTable:
    table = TextTable(show_header=False)
    for name, form in _FIGURES.items():
        table.add_row(name, _figure(row[name], row[f"{name}_ci"], form, " "))
    table.add_row("verdict", row["verdict"])
    return table


def samples_text(record: Record) -> Group:
    """Every prompt with its continuation before and after, raw and greedy."""
    lines = [Text("greedy continuations of raw text, no chat template")]
    for sample in record["samples"]:
        lines += [Text(), Text(f"{one_line(sample['source'], 40)}: {_shown(sample['prompt'])}", style="dim")]
        lines += [Text(f"{name:>6}  {_shown(sample[name])}") for name in ("before", "after")]
    return Group(*lines)


def _amount(row: Record) -> str:
    taken, available = row["num_documents"], row["documents_available"]
    documents = f"{taken:,} documents" if taken == available else f"{taken:,} of {available:,} documents"
    return f"{documents}\n{row['num_bytes']:,} bytes"


def _notes(record: Record) -> list[str]:
    notes = [f"{one_line(row['name'], 60)}: {row['caveat']}" for row in record["sets"] if row["caveat"]]
    for row in record["sets"]:
        if row["documents_trained"]:
            left_out = f"{row['documents_trained']:,} documents left out because training sees the same text"
            notes.append(f"{one_line(row['name'], 60)}: {left_out}")
    return notes


def _figure(value: float, band: Sequence[float] | None, form: str, between: str) -> str:
    """A value, what is between, and its interval."""
    return f"{value:{form}}" + (f"{between}{band[0]:{form}}..{band[1]:{form}}" if band else "")


def _shown(text: str) -> str:
    """`text` on one line, without the characters that would steer a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in " ".join(text.split()))
