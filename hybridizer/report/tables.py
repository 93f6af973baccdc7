"""Tables whose cells are plain text, folded and never cut off, with the lines that stand above them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from hybridizer.core.errors import printable

WIDE = 80  # columns; narrower terminals get narrower tables


class TextTable(Table):
    """A table in the style of all tables here. Text in it is not markup; long cells are folded."""

    def __init__(self, *, leading: int = 0, **options: Any) -> None:
        super().__init__(
            box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True, leading=leading, **options
        )

    def add_column(self, header: RenderableType = "", *arguments: Any, **options: Any) -> None:
        """Add a column that folds long cells, unless `options` say otherwise."""
        super().add_column(_plain(header), *arguments, **{"overflow": "fold", **options})

    def add_columns(self, *headers: str, **options: Any) -> None:
        """Add columns that have the same options."""
        for header in headers:
            self.add_column(header, **options)

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """Add a row of plain texts."""
        super().add_row(*(_plain(cell) for cell in cells), **options)


class Fitting:
    """The first of two renderables if the terminal is at least `columns` wide, otherwise the second."""

    def __init__(self, columns: int, wide: RenderableType, narrow: RenderableType) -> None:
        self._columns, self._wide, self._narrow = columns, wide, narrow

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._wide if options.max_width >= self._columns else self._narrow


def under(lines: Sequence[str], table: RenderableType, notes: Sequence[str] = ()) -> Group:
    """The table below some lines of text and above others, which are as wide as the terminal and not as the table."""
    parts: list[RenderableType] = [*map(_plain, lines), Text(), table]
    return Group(*parts, *([Text(), *map(_plain, notes)] if notes else []))


def _plain(cell: Any) -> Any:
    return Text(printable(cell)) if isinstance(cell, str) else cell
