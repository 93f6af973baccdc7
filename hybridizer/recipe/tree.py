"""A recipe between text and values: plain dicts, lists and scalars, with the place where each one was written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from hybridizer.core.errors import Problem

KeyPath: TypeAlias = tuple[str | int, ...]
MAX_SHOWN = 60


class Finding(NamedTuple):
    """Something wrong with the value at `path`: `what` is wrong, and the `fix`."""

    path: KeyPath
    what: str
    fix: str


@dataclass
class Tree:
    """The content of one recipe text and its overrides, before it is checked.

    `places` maps each path to "file:line" or to the override's text, in the order they were read. `problems` holds what
    the reading itself refused, and `refused` the paths of those values, so that nothing is reported twice.
    """

    values: Any = None
    places: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    refused: set[KeyPath] = field(default_factory=set)


def locate(places: Mapping[KeyPath, str], path: KeyPath) -> str:
    """The place of `path`, or of its nearest ancestor that has one; the root `()` always has one."""
    while path not in places:
        path = path[:-1]
    return places[path]


def name_of(path: KeyPath) -> str:
    """The name of the value at `path` in a message: "the recipe", "`layout`", "entry 2 of `slices`"."""
    if not path:
        return "the recipe"
    last = path[-1]
    return f"`{clip(last)}`" if isinstance(last, str) else f"entry {last} of {name_of(path[:-1])}"


def show(value: object) -> str:
    """A value as a message shows it: "'0.5'", "the number 3", "true", "a list", "a section"."""
    if isinstance(value, str):
        return f"'{clip(value)}'"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return f"the number {value}"
    return "a list" if isinstance(value, list) else "a section of keys" if isinstance(value, dict) else "nothing"


def clip(text: str) -> str:
    """`text` on one line, without control characters, short enough for a message."""
    line = "".join(sign if sign.isprintable() else "?" for sign in " ".join(text.split()))
    return line if len(line) <= MAX_SHOWN else line[: MAX_SHOWN - 3] + "..."
