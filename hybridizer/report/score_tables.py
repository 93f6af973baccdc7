"""Scores before and after as tables for a terminal: rich renderables of the contract "hybridizer.scores/1"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from hybridizer.report.captions import one_line

Record = Mapping[str, Any]


def bits_table(record: Record) -> Group:
    """One row a text: what was scored, bits per byte before and after, the change and its verdict; then the caveats."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, leading=1)
    table.add_column("text", overflow="fold")
    for name in ("before", "after", "change"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict")
    for row in record["sets"]:
        table.add_row(
            Text(f"{one_line(row['name'], 60)}\n{row['role']}\n{_amount(row)}"),
            _figure(row["before"], row["before_ci"], ".3f"),
            _figure(row["after"], row["after_ci"], ".3f"),
            _figure(row["change"], row["change_ci"], "+.3f"),
            row["verdict"],
        )
    about = "bits per byte, less is better, each with its 95% interval over documents"
    return Group(Text(about), Text(), table, *(Text(note) for note in _notes(record)))


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


def _figure(value: float, band: Sequence[float] | None, form: str) -> str:
    """A value with its interval below it."""
    return f"{value:{form}}" + (f"\n{band[0]:{form}}..{band[1]:{form}}" if band else "")


def _shown(text: str) -> str:
    """`text` on one line, without the characters that would steer a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in " ".join(text.split()))
