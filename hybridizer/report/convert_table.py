"""What a conversion measured, in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType

from hybridizer.report.cost_tables import readable
from hybridizer.report.tables import TextTable, under


def conversion_table(record: Mapping[str, Any]) -> RenderableType:
    """One row per engine and file: perplexity and bits per byte on the same windows, and the difference."""
    scored = f"{record['tokens_scored']:,} tokens in {record['windows']} windows of {record['context']}"
    table = TextTable()
    for name in ("", "perplexity", "bits per byte", "difference", "limit"):
        table.add_column(name, justify="left" if not name else "right")
    expected = (f"{record['perplexity']:.4f}", f"{record['bits_per_byte']:.4f}", "", "")
    table.add_row("transformers, float32", *expected)
    for row in record["checked"]:
        figures = (row["perplexity"], row["bits_per_byte"], row["difference"], row["limit"])
        perplexity, bits, difference, limit = figures
        table.add_row(
            f"llama.cpp, {row['type']}", f"{perplexity:.4f}", f"{bits:.4f}", f"{difference:+.5f}", f"{limit:g}"
        )
    size = readable(record["num_bytes"], "B")
    return under([f"{record['model']}, scored on {scored}:"], table, [f"{record['file']}: {size}"])
