"""YAML text into a `Tree`, without PyYAML's constructors: only its composer is used.

What a recipe has no use for is refused instead of resolved: tags (which can name Python objects), merge keys, keys that
are not text, duplicate keys, empty values, further documents. Aliases are copied, and nodes counted as they are, so
that a few lines of aliases cannot grow into gigabytes.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, TypeAlias

import yaml

from hybridizer.core.errors import Problem, RecipeError
from hybridizer.recipe.tree import KeyPath, Tree, clip, name_of, show

MAX_NODES = 20_000  # a blend for every layer of a 300-layer model takes a quarter of it
MAX_DEPTH = 32
# What YAML itself calls printable, and the control characters that only an escape can bring into a value.
_UNPRINTABLE = re.compile(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def read_yaml(text: str, tree: Tree, where: Callable[[int], str], root: KeyPath = ()) -> Any:
    """The values in `text` as dicts, lists, text, finite numbers and booleans; None for an empty document.

    Places (`where` of the line, from 1) go into `tree` under the path `root`, as do the problems that reading survives.
    Raises RecipeError, with the earlier problems, at the first one that it does not: what is not YAML, nested too deep,
    too large.
    """
    tree.places[root] = where(1)
    if strange := find_unprintable(text, where):
        raise RecipeError(*tree.problems, strange)
    reader = _Reader(text, tree, where, root)
    try:
        return reader.read_document()
    except yaml.MarkedYAMLError as error:
        line, what, fix = explain(error, text)
    except (ValueError, OverflowError):
        # PyYAML hands an escape such as "\U99999999", and the digits of a %YAML line, to Python unchecked.
        line, what = reader.line + 1, "a number that YAML cannot hold."
        fix = "Correct the escape in the double-quoted text, or put the text in single quotes."
    raise RecipeError(*tree.problems, Problem(where(line), what, fix))


def find_unprintable(text: str, where: Callable[[int], str]) -> Problem | None:
    """The first character of `text` that YAML does not allow, not even in quotes."""
    strange = _UNPRINTABLE.search(text)
    if strange is None:
        return None
    line = text.count("\n", 0, strange.start()) + 1
    what = f"the character U+{ord(strange[0]):04X} cannot stand in YAML text."
    return Problem(where(line), what, "Delete it; it may be invisible in the editor.")


class _Reader(yaml.SafeLoader):
    """PyYAML's composer, except that it composes values: a node holds what `compose_node` gave for its parts.

    Every value is counted and checked before its parts are read, so that problems come in the order of the text, also
    when the rest of it is not YAML, and recursion is bounded by MAX_DEPTH.
    """

    def __init__(self, text: str, tree: Tree, where: Callable[[int], str], root: KeyPath) -> None:
        super().__init__(text)
        self._tree = tree
        self._where = where
        self._root = self._path = root
        self._num_nodes = 0
        self._keys: dict[KeyPath, set[str]] = {}  # of the sections on the way to where it reads
        self.anchors: dict[str, Any] = {}

    def read_document(self) -> Any:
        """The value of the whole text; None where it is empty."""
        self.get_event()  # type: ignore[no-untyped-call]
        value = None if self.check_event(yaml.StreamEndEvent) else self.compose_document()
        if not self.check_event(yaml.StreamEndEvent):
            further = self.get_event()  # type: ignore[no-untyped-call]
            self._fail(further, "a second YAML document begins here.", "Keep one document: delete the `---` line.")
        return value

    def compose_node(self, parent: yaml.Node | None, index: Any) -> Any:
        """The value of the next node, which is entry `index` of `parent`, or the key where `index` is None."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(parent, yaml.MappingNode) and index is None:
            return self._read_key(event)
        above = self._path
        if parent is not None:
            self._path = (*above, index)
        if isinstance(parent, yaml.SequenceNode):
            self._tree.places[self._path] = self._at(event)
        value = self._read(event, parent, index)
        self._path = above
        return value

    def _read(self, event: Any, parent: yaml.Node | None, index: Any) -> Any:
        path = self._path
        self._count(event, path)
        if isinstance(event, yaml.AliasEvent):
            return self._copy_anchor(event, path)
        if event.tag is not None:
            tag = clip(event.tag.replace("tag:yaml.org,2002:", "!!"))
            fix = "Delete the tag; to have a value read as text, quote it."
            self._refuse(event, path, f"the tag `{tag}`; recipes take no tags.", fix)
        self.anchors.pop(event.anchor, None)  # an anchor may be given again
        self._keys[path] = set()
        node = super().compose_node(parent, index)
        assert node is not None, "PyYAML gives a node or raises"
        value = node.value
        if isinstance(node, yaml.ScalarNode):
            value = self._read_scalar(event, path)
        elif isinstance(node, yaml.MappingNode):
            value = dict(value)
        if event.anchor is not None:
            self.anchors[event.anchor] = (path, value)
        return value

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

    def _read_key(self, event: yaml.Event) -> str:
        path = self._path
        if not isinstance(event, yaml.ScalarEvent) or _CONTROL.search(event.value):
            self._fail(event, f"a key of {name_of(path)} that is not plain text.", "Write each key as a single word.")
        self.get_event()  # type: ignore[no-untyped-call]
        key, child = event.value, (*path, event.value)
        if not event.style:
            self._check_word(event, path)
        if key in self._keys[path]:
            what = f"`{clip(key)}` is given twice, first at {self._tree.places[child]}."
            self._tree.problems.append(Problem(self._at(event), what, "Keep one of the two."))
        self._keys[path].add(key)
        self._tree.places[child] = self._at(event)
        return key

    def _check_word(self, event: yaml.ScalarEvent, path: KeyPath) -> None:
        key = event.value
        if key == "<<":
            self._fail(event, "the merge key `<<`; recipes take none.", "Write the merged keys out.")
        value, what, _ = read_word(key)
        if what or not isinstance(value, str):
            fix = f"Quote the key: '{clip(key)}'."
            if not what and path:
                fix += " If it belongs to a list of layers, put the list in brackets: [0..14, 20]."
            what = f"the key {what}" if what else f"the key `{key}` is {show(value)} to YAML; keys are text."
            self._refuse(event, (*path, key), what, fix)

    def _copy_anchor(self, event: yaml.AliasEvent, path: KeyPath) -> Any:
        self.get_event()  # type: ignore[no-untyped-call]
        name, found = clip(str(event.anchor)), self.anchors.get(str(event.anchor))
        if found is None:
            what = f"the alias `*{name}` has no anchor `&{name}` above it."
            self._fail(event, what, "Add the anchor, or quote the text if the `*` belongs to it.")
        if isinstance(found, yaml.Node):  # PyYAML's own entry: its parts are being read
            self._fail(event, f"the alias `*{name}` stands inside its own anchor.", "Write the value out.")
        source, value = found
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


_NEEDS_QUOTES = "@`%|>*&!"
_LOOK = "Look at the indentation, colons, brackets and quotes of this line and the one before."


def explain(error: yaml.MarkedYAMLError, text: str) -> tuple[int, str, str]:
    """(line from 1, what is wrong, what to do) for an error of PyYAML's parser on `text`."""
    mark = error.problem_mark or error.context_mark
    assert mark is not None, "PyYAML marks every error of its parser"
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    content = lines[min(mark.line, len(lines) - 1)]
    opened = error.context_mark.line + 1 if error.context_mark else mark.line + 1
    if found := _explain_unclosed(error):
        return _last_bracket(text) or opened, *found
    what, fix = _explain_sign(content, mark.column, error.context or "") or _explain_problem(error, opened)
    return mark.line + 1, what, fix


def _last_bracket(text: str) -> int | None:
    """The line from 1 of the innermost bracket that never closes; PyYAML names the end of the text behind `[`."""
    lines: list[int] = []
    with contextlib.suppress(yaml.YAMLError):
        for token in yaml.scan(text):
            if isinstance(token, yaml.FlowSequenceStartToken | yaml.FlowMappingStartToken):
                lines.append(token.start_mark.line + 1)
            elif isinstance(token, yaml.FlowSequenceEndToken | yaml.FlowMappingEndToken):
                lines.pop()
    return lines[-1] if lines else None


def _explain_unclosed(error: yaml.MarkedYAMLError) -> tuple[str, str] | None:
    context, problem = error.context or "", error.problem or ""
    if "quoted scalar" in context and "end of stream" in problem:
        return "a quote that opens here and never closes.", "Close it on the same line."
    if "flow" in context and "stream end" in problem:
        return "a bracket that opens here and never closes.", "Close it with ] or }."
    return None


def _explain_sign(content: str, column: int, context: str) -> tuple[str, str] | None:
    if "\t" in content[: len(content) - len(content.lstrip())]:
        return "a tab in the indentation; YAML takes only spaces there.", "Replace the tab by spaces."
    sign = content[column : column + 1]
    if sign and sign in "]}" and "flow" not in context:
        return f"a `{sign}` that closes nothing.", "Delete it, or quote the text it belongs to."
    if sign and sign in _NEEDS_QUOTES:
        return f"a value cannot begin with `{sign}` in YAML.", f"Quote it: '{sign}...'."
    return None


def _explain_problem(error: yaml.MarkedYAMLError, opened: int) -> tuple[str, str]:
    context, problem = error.context or "", error.problem or ""
    if "escape" in problem:
        fix = "Put the text in single quotes, where a backslash is only a backslash."
        return "a backslash in double quotes that begins no escape YAML knows.", fix
    if "mapping values are not allowed" in problem:
        fix = "Line the key up with its neighbours, or quote text that holds a colon and a space."
        return "a colon where no key can stand.", fix
    if "flow" in context:
        fix = "Put a comma between entries, and close every [ and { in turn."
        return f"the bracket that opens on line {opened} goes wrong here.", fix
    return "this is not YAML.", _LOOK


Scalar: TypeAlias = str | int | float | bool | None

_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_SWITCHES = {"yes": "true", "on": "true", "no": "false", "off": "false"}
_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?")
_LONG_INT = re.compile(r"[-+]?[1-9][0-9]{18,}")
_NOT_FINITE = re.compile(r"[-+]?\.inf|\.nan", re.IGNORECASE)
_UNDERSCORED = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?")
_OTHER_BASE = re.compile(r"[-+]?0(?:[0-9]+|[oO][0-7]+|[xX][0-9a-fA-F]+|[bB][01]+)")
_SEXAGESIMAL = re.compile(r"[-+]?[0-9]+(:[0-5]?[0-9])+(\.[0-9]*)?")


class Reading(NamedTuple):
    """The meaning of a word; where `what` is not empty the word is refused and the meaning is its plain text."""

    value: Scalar
    what: str = ""
    fix: str = ""


def read_word(text: str) -> Reading:
    """The meaning of the unquoted YAML scalar `text`. Never raises; numbers that come back are finite."""
    if text in _WORDS:
        return Reading(_WORDS[text])
    if _INT.fullmatch(text):
        return Reading(int(text))
    return _read_number(text) or _refuse_word(text) or Reading(text)


def _read_number(text: str) -> Reading | None:
    if _LONG_INT.fullmatch(text):
        return Reading(
            text, f"{text[:20]}... is too large a number.", f"Write a smaller one, or {_quote(text)} for text."
        )
    if _NOT_FINITE.fullmatch(text):
        return Reading(text, f"{text} is not a finite number.", f"Write a finite number, or {_quote(text)} for text.")
    if not _FLOAT.fullmatch(text):
        return None
    number = float(text)
    if not math.isfinite(number):
        return Reading(text, f"{text[:20]} is too large a number.", f"Write a smaller one, or {_quote(text)} for text.")
    return Reading(number)


def _refuse_word(text: str) -> Reading | None:
    if text.lower() in _SWITCHES and text in (text.lower(), text.upper(), text.capitalize()):
        meaning = _SWITCHES[text.lower()]
        return Reading(
            text,
            f"`{text}` is text to some YAML readers and {meaning} to others.",
            f"Write {_quote(text)}, with the quotes, for text, or {meaning}.",
        )
    if _OTHER_BASE.fullmatch(text) or _SEXAGESIMAL.fullmatch(text) or ("_" in text and _UNDERSCORED.fullmatch(text)):
        return Reading(
            text,
            f"`{text}` is a different number, or text, to different YAML readers.",
            f"Write {_quote(text)}, with the quotes, for text, or plain digits for a number.",
        )
    return None


def _quote(text: str) -> str:
    return f"'{text}'" if len(text) <= 40 else "it in quotes"
