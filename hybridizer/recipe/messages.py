"""pydantic's errors in our words: each says what was asked, what was found, and what to do next."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args, get_origin

from pydantic import BaseModel

from hybridizer.core.errors import nearest
from hybridizer.recipe.models import RecipeModel
from hybridizer.recipe.tree import Finding, KeyPath, clip, name_of, show

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


def rewrite(error: ErrorDetails) -> Finding:
    """One entry of `ValidationError.errors()` in our words; a kind that has none here is a KeyError, and a bug."""
    what, fix = _WORDS[error["type"]](error["loc"], error["input"], error.get("ctx", {}))
    return Finding(error["loc"], what, fix)


def section_at(path: KeyPath) -> type[BaseModel]:
    """The model of the section at `path`, which a section's path must be."""
    kind: Any = RecipeModel
    for step in path:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = kind.model_fields[str(step)].annotation
        else:
            kind = get_args(kind)[-1]
        kind = _without_none(kind)
    section: type[BaseModel] = kind
    return section


def _without_none(kind: Any) -> Any:
    kinds = [arg for arg in get_args(kind) if arg is not NoneType]
    return kinds[0] if kinds and get_origin(kind) not in (dict, list) else kind


Words = tuple[str, str]
Context = Mapping[str, Any]


def _missing(path: KeyPath, _value: object, _context: Context) -> Words:
    section, key = path[:-1], str(path[-1])
    about = section_at(section).model_fields[key].description
    return f"{name_of(section)} has no `{key}`.", f"Add `{key}`: {about}."


def _unknown(path: KeyPath, _value: object, _context: Context) -> Words:
    section, key = path[:-1], str(path[-1])
    return f"{name_of(section)} has no key `{clip(key)}`.", nearest(key, section_at(section).model_fields)


def _no_section(path: KeyPath, value: object, _context: Context) -> Words:
    known = ", ".join(section_at(path).model_fields)
    what = f"{name_of(path)} takes a section of keys, found {show(value)}."
    return what, f"Write `key: value` lines, indented below it. Its keys: {known}."


def _no_mapping(path: KeyPath, value: object, _context: Context) -> Words:
    what = f"{name_of(path)} takes a section of names, found {show(value)}."
    return what, "Write `name: value` lines, indented below it."


def _no_list(path: KeyPath, value: object, _context: Context) -> Words:
    what = f"{name_of(path)} takes a list, found {show(value)}."
    return what, "Write it as [a, b], or as indented lines that begin with `- `."


def _no_text(path: KeyPath, value: object, _context: Context) -> Words:
    what = f"{name_of(path)} takes text, found {show(value)}."
    if isinstance(value, (list, dict)):
        return what, "Write a single piece of text."
    return what, f"Put it in quotes to make it text: '{str(value).lower() if isinstance(value, bool) else value}'."


def _empty_text(path: KeyPath, _value: object, _context: Context) -> Words:
    return f"{name_of(path)} is empty.", "Write something between the quotes, or delete the line."


def _no_int(path: KeyPath, value: object, _context: Context) -> Words:
    return f"{name_of(path)} takes a whole number, found {show(value)}.", "Write digits only, without quotes."


def _no_switch(path: KeyPath, value: object, _context: Context) -> Words:
    return f"{name_of(path)} is true or false, found {show(value)}.", "Write true or false, without quotes."


def _too_low(path: KeyPath, value: object, context: Context) -> Words:
    return f"{name_of(path)} is {value}; the least is {context['ge']}.", "Write a larger number."


def _too_high(path: KeyPath, value: object, context: Context) -> Words:
    return f"{name_of(path)} is {value}; the most is {context['le']}.", "Write a smaller number."


def _no_choice(path: KeyPath, value: object, context: Context) -> Words:
    choices = re.findall(r"'([^']*)'", context["expected"])
    return f"{name_of(path)} cannot be {show(value)}.", nearest(str(value), choices)


def _too_few(path: KeyPath, _value: object, context: Context) -> Words:
    found, least = context["actual_length"], context["min_length"]
    about = section_at(path[:-1]).model_fields[str(path[-1])].description
    return f"{name_of(path)} lists {found or 'nothing'}, and needs at least {least}.", f"It takes {about}."


def _refused(_path: KeyPath, _value: object, context: Context) -> Words:
    return context["what"], context["fix"]


_WORDS: Mapping[str, Callable[[KeyPath, Any, Context], Words]] = {
    "missing": _missing,
    "extra_forbidden": _unknown,
    "model_type": _no_section,
    "dict_type": _no_mapping,
    "list_type": _no_list,
    "string_type": _no_text,
    "string_too_short": _empty_text,
    "int_type": _no_int,
    "bool_type": _no_switch,
    "greater_than_equal": _too_low,
    "less_than_equal": _too_high,
    "literal_error": _no_choice,
    "too_short": _too_few,
    "refusal": _refused,
}
