"""The recipe that `hybridize init` writes: every key of every section, with its default and what it is for beside it.

It is generated from the section classes. What they cannot know is here: the two donors to start with.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hybridizer.recipe.dump import to_yaml
from hybridizer.recipe.models import Recipe
from hybridizer.recipe.sections import choices_of, holds_many, keys_of, section_of
from hybridizer.recipe.sizes import format_size

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

_HEAD = """\
# A recipe for hybridize: `hybridize check` this file, then `hybridize build` it.
# Keys that are commented out show their defaults, or an example where there is none. A whole section is commented in by
# taking `# ` off each of its lines. Every key can also be set for one run: --set layout.boundary=0.6
"""
_WIDTH = 120
_MAX_COLUMN = 40
_NEEDED = "tokens"  # required, except beside a list of stages


def starter(instruct: str = "./donors/instruct", domain: str = "./donors/domain") -> str:
    """A commented recipe that splices the two sources: the deep half of `instruct` on the shallow half of `domain`."""
    values: dict[str, Any] = {
        "donors": {"instruct": {"source": instruct}, "domain": {"source": domain}},
        "layout": {"host": "instruct", "deep": "instruct", "shallow": "domain"},
    }
    blocks, loose = [_HEAD], list[_Line]()
    shown: set[int] = set()
    for key, field in keys_of(Recipe).items():
        section = section_of(field)
        lines = list(_key_lines(key, field, values, shown, fill=False))
        if section is None:
            loose += lines
            continue
        if loose:
            blocks.append(_render(loose))
            loose = []
        heading = _sentence(field.description or "") if key == "donors" else _first_paragraph(section)
        blocks.append(_comment(heading) + _render([replace(lines[0], about=""), *lines[1:]]))
    return "\n".join(blocks)


@dataclass(frozen=True)
class _Line:
    """One line of YAML at `indent`, what it is `about`, and the columns where a `# ` takes it, or its group, out."""

    indent: int
    text: str
    about: str = ""
    out_at: tuple[int, ...] = ()


def _section_lines(section: type, values: Mapping[str, Any], shown: set[int], *, fill: bool) -> Iterator[_Line]:
    keys = keys_of(section)
    for key, field in keys.items():
        yield from _key_lines(key, field, values, shown, fill=fill, above=keys)


def _key_lines(
    key: str,
    field: FieldInfo,
    values: Mapping[str, Any],
    shown: set[int],
    *,
    fill: bool,
    above: Collection[str] = (),
) -> Iterator[_Line]:
    """The lines of one key at indent 0, in where `values` has it or it is required, with `fill` for a default too.

    `shown` holds the fields that were met before: what they are about is not said twice. `above` are the keys of the
    section that the key is in, which its entries do not list again.
    """
    section, given = section_of(field), key in values
    about = "" if id(field) in shown else _about(field)
    shown.add(id(field))
    if section is None:
        value = values[key] if given else field.examples[0] if key == _NEEDED and field.examples else _example(field)
        is_in = given or field.is_required() or key == _NEEDED or (fill and field.default is not None)
        yield _Line(0, f"{key}: {_flow(key, value)}", about, () if is_in else (0,))
        return
    out_at = () if given or field.is_required() else (0,)
    group = [_Line(0, f"{key}:", about)]
    if key == "donors":
        for name, inner in _entries(section, list(values[key].values()), shown, list(values[key])):
            group += [_Line(2, f"{name}:"), *_shifted(inner, 4)]
    elif holds_many(field):
        for _, inner in _entries(section, values.get(key) or _example(field), shown, above=above):
            first, *rest = _shifted(inner, 4)
            group += [replace(first, indent=2, text=f"- {first.text}"), *rest]
    else:
        inside = values[key] if given else (field.examples or [{}])[0]
        group += _shifted(_section_lines(section, inside, shown, fill=not given), 2)
    yield from (replace(line, out_at=(*out_at, *line.out_at)) for line in group)


def _entries(
    section: type,
    entries: Sequence[Mapping[str, Any]],
    shown: set[int],
    names: Sequence[str] = (),
    above: Collection[str] = (),
) -> Iterator[tuple[str, list[_Line]]]:
    """The lines of each entry; keys that none of them has are listed once, in the first."""
    used = {key for entry in entries for key in entry}
    for index, entry in enumerate(entries):
        lines: list[_Line] = []
        for key, field in keys_of(section).items():
            if key in entry or (index == 0 and key not in used and key not in above):
                lines += _key_lines(key, field, entry, shown, fill=False)
        yield (names[index] if names else "", lines)


def _shifted(lines: Sequence[_Line] | Iterator[_Line], by: int) -> list[_Line]:
    return [replace(line, indent=line.indent + by, out_at=tuple(c + by for c in line.out_at)) for line in lines]


def _example(field: FieldInfo) -> Any:
    if field.is_required() or field.default in (None, ""):
        assert field.examples, "a key without a default has an example"
        return field.examples[0]
    return field.examples[0] if section_of(field) and field.examples else field.default


def _about(field: FieldInfo) -> str:
    """The description, and the choices that it does not name."""
    about = field.description or ""
    unnamed = [word for word in choices_of(field) if not re.search(rf"\b{re.escape(word)}\b", about)]
    return f"{about}; one of {', '.join(choices_of(field))}" if unnamed else about


def _flow(key: str, value: Any) -> str:
    """`value` on one line of YAML, as people write it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_flow('', name)}: {_flow(name, item)}" for name, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        if key == "parameters" and not value:
            return "{}"
        return "[" + ", ".join(_flow("", item) for item in value) + "]"
    if key.endswith("_bytes"):
        return format_size(value)
    if isinstance(value, float):
        return re.sub(r"e-0", "e-", f"{value}")
    return to_yaml({"_": value}).removeprefix("_: ").strip()


def _render(lines: Sequence[_Line]) -> str:
    texts = [_with_signs(line) for line in lines]
    column = min(max(len(text) for text in texts), _MAX_COLUMN) + 2
    return "".join(_with_about(text, line, column) for text, line in zip(texts, lines, strict=True))


def _with_signs(line: _Line) -> str:
    text = " " * line.indent + line.text
    for column in sorted(line.out_at, reverse=True):
        text = f"{text[:column]}# {text[column:]}"
    return text


def _with_about(text: str, line: _Line, column: int) -> str:
    if not line.about:
        return f"{text}\n"
    first, *rest = textwrap.wrap(line.about, _WIDTH - column - 2, break_long_words=False, break_on_hyphens=False)
    if len(text) >= column:
        head, rest = [text], [first, *rest]
    else:
        head = [f"{text:{column}}# {first}"]
    return "\n".join([*head, *(f"{'#' if 0 in line.out_at else '':{column}}# {part}" for part in rest)]) + "\n"


def _comment(text: str) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent="# ", subsequent_indent="# ") + "\n"


def _first_paragraph(section: type) -> str:
    return " ".join((inspect.getdoc(section) or "").split("\n\n")[0].split())


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
