"""The one way to a terminal: what a command prints, and what libraries warn of and log, passes through this file.

Names of donors, layers, tensors and files come from other people's folders. Control and escape sequences in them are
written out, and nothing in them is markup. JSON keeps every value exactly: such characters are its own escapes there.
"""

from __future__ import annotations

import io
import json
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hybridizer.core.errors import printable, printable_line
from hybridizer.core.records import to_jsonable, write_json

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

PIPE_COLUMNS = 120  # without a terminal and without COLUMNS
MIN_COLUMNS = 40


def echo(*lines: str, err: bool = False) -> None:
    """Print lines on standard output, or with `err` on standard error."""
    for line in lines:
        _write(printable_line(line), err=err)


def echo_block(text: str, *, err: bool = False) -> None:
    """Print text of several lines, such as an error with its fix, or a traceback."""
    _write(printable(text), err=err)


def warn(*texts: str) -> None:
    """Print warnings on standard output, their first word in colour on a terminal."""
    colour = False if os.environ.get("NO_COLOR") else None
    for text in texts:
        _write(f"{click.style('warning:', fg='yellow', bold=True)} {printable_line(text)}", color=colour)


def print_json(value: Any) -> None:
    """Print one JSON document. What is not printable is escaped as \\uXXXX, which a JSON parser reads back exactly."""
    text = json.dumps(to_jsonable(value), indent=2, ensure_ascii=False)
    _write("".join(sign if sign.isprintable() or sign == "\n" else json.dumps(sign)[1:-1] for sign in text))


def write_out(path: Path | None, value: Any) -> bool:
    """Write `value` to the file of --json, - for standard output. True where standard output is free for tables."""
    if str(path) == "-":
        print_json(value)
    elif path is not None:
        write_json(path, value)
    return str(path) != "-"


def next_command(*words: object, overrides: Sequence[str] = (), flag: str = "") -> str:
    """The command to run next, with its `flag`, as it can be pasted into a shell."""
    settings = [word for override in overrides for word in ("--set", override)]
    paths = (f"./{word}" if str(word).startswith("-") else str(word) for word in words)
    return f"next: {shlex.join(['hybridize', *paths, *([flag] if flag else []), *settings])}"


def draw(*renderables: RenderableType) -> None:
    """Print tables and texts, as wide as the terminal; COLUMNS overrides its width."""
    from rich.console import Console

    console = Console(highlight=False, emoji=False, width=_columns())
    with writing_output():
        for renderable in renderables:
            console.print(_Printable(renderable))


@contextmanager
def writing_output() -> Iterator[None]:
    """Name standard output in errors of the file system inside the block, which do not name what was written."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from error


class _PrintableRecord(logging.LogRecord):
    """A log record whose message is `printable`."""

    def getMessage(self) -> str:
        return printable(super().getMessage())


@contextmanager
def escaping_libraries() -> Iterator[None]:
    """Make warnings and log lines of libraries `printable` inside the block.

    Libraries write them to standard error themselves, and they quote what is in donors' files.
    """
    factory, as_text = logging.getLogRecordFactory(), warnings.formatwarning

    def formatwarning(*arguments: Any, **options: Any) -> str:
        return printable(as_text(*arguments, **options))

    logging.setLogRecordFactory(_PrintableRecord)
    warnings.formatwarning = formatwarning
    try:
        yield
    finally:
        logging.setLogRecordFactory(factory)
        warnings.formatwarning = as_text


def _write(text: str, *, err: bool = False, color: bool | None = None) -> None:
    with writing_output():
        click.echo(text, err=err, color=color)


def render(renderable: RenderableType, columns: int) -> str:
    """What `draw` prints on a terminal of so many columns, without colours."""
    from rich.console import Console

    console = Console(file=io.StringIO(), highlight=False, emoji=False, width=columns)
    console.print(_Printable(renderable))
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def _columns() -> int | None:
    """The width to draw in; None for that of the terminal."""
    asked = os.environ.get("COLUMNS", "")
    if asked.isdigit() and int(asked):
        return max(int(asked), MIN_COLUMNS)
    return None if sys.stdout is not None and sys.stdout.isatty() else PIPE_COLUMNS


class _Printable:
    """A renderable whose text is `printable`; rich's own colours stay."""

    def __init__(self, renderable: RenderableType) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.segment import Segment

        for segment in console.render(self._renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)
