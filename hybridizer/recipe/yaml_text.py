"""YAML text into a `Tree`, without PyYAML's constructors: only its event stream is used.

What a recipe has no use for is refused instead of resolved: tags (which can name Python objects), merge keys, keys that
are not text, duplicate keys, empty values, further documents. Aliases are copied, and nodes counted as they are, so
that a few lines of aliases cannot grow into gigabytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NoReturn, cast

import yaml

from hybridizer.core.errors import Problem, RecipeError
from hybridizer.recipe.scalars import read_word
from hybridizer.recipe.syntax import explain
from hybridizer.recipe.tree import KeyPath, Tree, clip, name_of, show

MAX_NODES = 20_000  # a blend for every layer of a 300-layer model takes a quarter of it
MAX_DEPTH = 32
# What YAML itself calls printable, and the control characters that only an escape can bring into a value.
_UNPRINTABLE = re.compile(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_UNFINISHED = object()


def read_yaml(text: str, tree: Tree, where: Callable[[int], str], root: KeyPath = ()) -> Any:
    """The values in `text` as dicts, lists, text, finite numbers and booleans; None for an empty document.

    Places (`where` of the line, from 1) go into `tree` under the path `root`, as do the problems that reading survives.
    Raises RecipeError, with the earlier problems, at the first one that it does not: what is not YAML, nested too deep,
    too large.
    """
    tree.places[root] = where(1)
    if strange := find_unprintable(text, where):
        raise RecipeError(*tree.problems, strange)
    return _Reader(text, tree, where, root).read_document()


def find_unprintable(text: str, where: Callable[[int], str]) -> Problem | None:
    """The first character of `text` that YAML does not allow, not even in quotes."""
    strange = _UNPRINTABLE.search(text)
    if strange is None:
        return None
    line = text.count("\n", 0, strange.start()) + 1
    what = f"the character U+{ord(strange[0]):04X} cannot stand in YAML text."
    return Problem(where(line), what, "Delete it; it may be invisible in the editor.")


class _Reader:
    """One pass over the events of one text; recursion is bounded by MAX_DEPTH."""

    def __init__(self, text: str, tree: Tree, where: Callable[[int], str], root: KeyPath) -> None:
        self._text = text
        self._loader = yaml.SafeLoader(text)
        self._tree = tree
        self._where = where
        self._root = root
        self._num_nodes = 0
        self._anchors: dict[str, tuple[KeyPath, Any]] = {}

    def read_document(self) -> Any:
        self._next()
        start = self._next()
        if isinstance(start, yaml.StreamEndEvent):
            return None
        value = self._read(self._next(), self._root)
        self._next()
        further = self._next()
        if isinstance(further, yaml.DocumentStartEvent):
            self._fail(further, "a second YAML document begins here.", "Keep one document: delete the `---` line.")
        return value

    def _next(self) -> yaml.Event:
        try:
            return cast(yaml.Event, self._loader.get_event())  # type: ignore[no-untyped-call]
        except yaml.MarkedYAMLError as error:
            line, what, fix = explain(error, self._text)
            raise RecipeError(*self._tree.problems, Problem(self._where(line), what, fix)) from None
        except (ValueError, OverflowError):
            # PyYAML hands an escape such as "\U99999999", and the digits of a %YAML line, to Python unchecked.
            place = self._where(self._loader.line + 1)
            fix = "Correct the escape in the double-quoted text, or put the text in single quotes."
            raise RecipeError(*self._tree.problems, Problem(place, "a number that YAML cannot hold.", fix)) from None

    def _read(self, event: yaml.Event, path: KeyPath) -> Any:
        self._count(event, path)
        if isinstance(event, yaml.AliasEvent):
            return self._copy_anchor(event, path)
        assert isinstance(event, (yaml.ScalarEvent, yaml.SequenceStartEvent, yaml.MappingStartEvent))
        if event.tag is not None:
            tag = clip(event.tag.replace("tag:yaml.org,2002:", "!!"))
            fix = "Delete the tag; to have a value read as text, quote it."
            self._refuse(event, path, f"the tag `{tag}`; recipes take no tags.", fix)
        if event.anchor is not None:
            self._anchors[event.anchor] = (path, _UNFINISHED)
        value = self._read_content(event, path)
        if event.anchor is not None:
            self._anchors[event.anchor] = (path, value)
        return value

    def _read_content(
        self, event: yaml.ScalarEvent | yaml.SequenceStartEvent | yaml.MappingStartEvent, path: KeyPath
    ) -> Any:
        if isinstance(event, yaml.ScalarEvent):
            return self._read_scalar(event, path)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._read_list(path)
        return self._read_section(path)

    def _read_scalar(self, event: yaml.ScalarEvent, path: KeyPath) -> Any:
        if control := _CONTROL.search(event.value):
            what = f"the control character U+{ord(control[0]):04X} in {name_of(path)}."
            self._refuse(event, path, what, "Delete the escape that makes it.")
            return _CONTROL.sub("?", event.value)
        if event.style:
            return event.value
        value, what, fix = read_word(event.value)
        if what:
            self._refuse(event, path, f"{name_of(path)}: {what}", fix)
        elif value is None and path != self._root and path not in self._tree.refused:
            self._refuse(event, path, f"{name_of(path)} has no value.", "Give it one, or delete the line.")
        return value

    def _read_list(self, path: KeyPath) -> list[Any]:
        values: list[Any] = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            child = (*path, len(values))
            self._tree.places[child] = self._at(event)
            values.append(self._read(event, child))
        return values

    def _read_section(self, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            key = self._read_key(event, path)
            child = (*path, key)
            if key in values:
                what = f"`{clip(key)}` is given twice, first at {self._tree.places[child]}."
                self._tree.problems.append(Problem(self._at(event), what, "Keep one of the two."))
            self._tree.places[child] = self._at(event)
            values[key] = self._read(self._next(), child)
        return values

    def _read_key(self, event: yaml.Event, path: KeyPath) -> str:
        if not isinstance(event, yaml.ScalarEvent) or _CONTROL.search(event.value):
            self._fail(event, f"a key of {name_of(path)} that is not plain text.", "Write each key as a single word.")
        key = event.value
        if event.style:
            return key
        if key == "<<":
            self._fail(event, "the merge key `<<`; recipes take none.", "Write the merged keys out.")
        value, what, _ = read_word(key)
        if what or not isinstance(value, str):
            fix = f"Quote the key: '{clip(key)}'."
            if not what and path:
                fix += " If it belongs to a list of layers, put the list in brackets: [0..14, 20]."
            what = f"the key {what}" if what else f"the key `{key}` is {show(value)} to YAML; keys are text."
            self._refuse(event, (*path, key), what, fix)
        return key

    def _copy_anchor(self, event: yaml.AliasEvent, path: KeyPath) -> Any:
        name = str(event.anchor)
        source, value = self._anchors.get(name, ((), None))
        if name not in self._anchors:
            what = f"the alias `*{clip(name)}` has no anchor `&{clip(name)}` above it."
            self._fail(event, what, "Add the anchor, or quote the text if the `*` belongs to it.")
        if value is _UNFINISHED:
            self._fail(event, f"the alias `*{clip(name)}` stands inside its own anchor.", "Write the value out.")
        return self._copy(event, value, source, path)

    def _copy(self, event: yaml.Event, value: Any, source: KeyPath, path: KeyPath) -> Any:
        if source in self._tree.refused:
            self._tree.refused.add(path)
        pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        copies = {}
        for key, item in pairs:
            child = (*path, key)
            self._count(event, child)
            self._tree.places[child] = self._tree.places.get((*source, key), self._at(event))
            copies[key] = self._copy(event, item, (*source, key), child)
        return list(copies.values()) if isinstance(value, list) else copies if isinstance(value, dict) else value

    def _count(self, event: yaml.Event, path: KeyPath) -> None:
        self._num_nodes += 1
        if len(path) > MAX_DEPTH:
            self._fail(
                event, f"values nested more than {MAX_DEPTH} deep.", "No key of a recipe needs that; flatten it."
            )
        if self._num_nodes > MAX_NODES:
            what = f"more than {MAX_NODES} values, counting each alias as what it stands for."
            self._fail(event, what, "Shorten the recipe, or write out what the aliases stand for.")

    def _at(self, event: yaml.Event) -> str:
        assert event.start_mark is not None, "PyYAML marks every event of a text"
        return self._where(event.start_mark.line + 1)

    def _refuse(self, event: yaml.Event, path: KeyPath, what: str, fix: str) -> None:
        self._tree.problems.append(Problem(self._at(event), what, fix))
        self._tree.refused.add(path)

    def _fail(self, event: yaml.Event, what: str, fix: str) -> NoReturn:
        raise RecipeError(*self._tree.problems, Problem(self._at(event), what, fix))
