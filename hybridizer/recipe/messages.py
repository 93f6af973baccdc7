"""pydantic's errors as messages for a reader: what was requested, what was found, and what to do next."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from hybridizer.core.errors import DidYouMean, InputError, Problem
from hybridizer.recipe.hints import hint
from hybridizer.recipe.models import Recipe
from hybridizer.recipe.sections import describe_bounds, field_at, keys_of, number_kind, section_at
from hybridizer.recipe.train import NO_TOKENS, WHOLE_TRAINING
from hybridizer.recipe.tree import Finding, KeyPath, clip, name_of, show

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


def rewrite(error: ValidationError) -> list[Finding]:
    """The errors of pydantic in a recipe as findings; a kind of error without a message here is a KeyError, a bug."""
    findings = []
    for one in error.errors(include_url=False):
        path = one["loc"]
        found = _Error(path, one["input"], one.get("ctx", {}), Recipe, name_of(path), _dotted(path))
        if not _follows(one):
            findings.append(Finding(path, *_WORDS[one["type"]](found)))
    return findings


def _follows(error: ErrorDetails) -> bool:
    """Whether a list is short only because entries of it, which have errors of their own, were not counted.

    Tokens that are missing are found by `checks`, beside whatever else is wrong.
    """
    if error["type"] == NO_TOKENS:
        return True
    return error["type"] == "too_short" and len(error["input"]) >= error["ctx"]["min_length"]


def make_section(section: type, values: Mapping[str, Any], where: str, name: Callable[[str], str]) -> Any:
    """The section made of `values`, which do not come from a recipe; messages use `name` of a key for the key.

    Raises InputError at `where` with every value that the section does not take.
    """
    try:
        return section(**values)
    except ValidationError as error:
        problems = []
        for one in error.errors(include_url=False):
            called = name(str(one["loc"][0]))
            found = _Error(one["loc"], one["input"], one.get("ctx", {}), section, called, called)
            problems.append(Problem(where, *_WORDS[one["type"]](found)))
        raise InputError(*problems) from None


def _dotted(path: KeyPath) -> str:
    # As `--set` takes it.
    return f"`{clip('.'.join(map(str, path)))}`"


@dataclass(frozen=True)
class _Error:
    """One of pydantic's errors: the path below the class `root`, the value there, and its names in a message."""

    path: KeyPath
    value: Any
    context: Mapping[str, Any]
    root: type
    name: str
    full_name: str

    @property
    def key(self) -> str:
        return str(self.path[-1])

    @property
    def about(self) -> str | None:
        return field_at(self.path, self.root).description


Words = tuple[str, str]


def _missing(error: _Error) -> Words:
    return f"{name_of(error.path[:-1])} has no `{error.key}`.", f"Add `{error.key}`: {error.about}."


def _unknown(error: _Error) -> Words:
    section = error.path[:-1]
    holder = f"{name_of(section)} has" if section or error.root is Recipe else "there is"
    what = f"{holder} no key `{clip(error.key)}`."
    if section[:2] == ("train", "stages") and error.key in WHOLE_TRAINING:
        return what, f"All stages have the same: give it once, as train.{error.key}."
    return what, hint(error.key, section, keys_of(section_at(section, error.root)))


def _no_section(error: _Error) -> Words:
    known = ", ".join(keys_of(section_at(error.path, error.root)))
    what = f"{error.name} takes a section of keys, found {show(error.value)}."
    return what, f"Write `key: value` lines, indented below it. Its keys: {known}."


def _no_mapping(error: _Error) -> Words:
    what = f"{error.name} takes a section of names, found {show(error.value)}."
    return what, "Write `name: value` lines, indented below it."


def _no_list(error: _Error) -> Words:
    what = f"{error.name} takes a list, found {show(error.value)}."
    return what, "Write it as [a, b], or as indented lines that begin with `- `."


def _no_text(error: _Error) -> Words:
    value = error.value
    what = f"{error.name} takes text, found {show(value)}."
    if isinstance(value, (list, dict)):
        return what, "Write a single piece of text."
    return what, f"Put it in quotes to make it text: '{str(value).lower() if isinstance(value, bool) else value}'."


def _not_unicode(error: _Error) -> Words:
    return f"{error.name} is not UTF-8 text: {show(error.value)}.", "Write it in UTF-8."


def _empty_text(error: _Error) -> Words:
    return f"{error.name} is empty.", "Write something between the quotes, or delete the line."


def _no_int(error: _Error) -> Words:
    return f"{error.name} takes a whole number, found {show(error.value)}.", "Write digits only, without quotes."


def _no_switch(error: _Error) -> Words:
    return f"{error.name} is true or false, found {show(error.value)}.", "Write true or false, without quotes."


def _no_number(error: _Error) -> Words:
    what = f"{error.full_name} must be {describe_bounds(field_at(error.path, error.root))}; got {show(error.value)}."
    if isinstance(error.value, (int, float)) and not isinstance(error.value, bool):
        return what, "Write a number in this range."
    return what, "Write digits, as in 3, 0.1 or 3e-5, without quotes."


def _too_low(error: _Error) -> Words:
    if number_kind(field_at(error.path, error.root)) is float:
        return _no_number(error)
    return f"{error.name} is {error.value}; the least is {error.context['ge']}.", "Write a larger number."


def _too_high(error: _Error) -> Words:
    if number_kind(field_at(error.path, error.root)) is float:
        return _no_number(error)
    return f"{error.name} is {error.value}; the most is {error.context['le']}.", "Write a smaller number."


def _no_choice(error: _Error) -> Words:
    choices = re.findall(r"'([^']*)'", error.context["expected"])
    return f"{error.name} cannot be {show(error.value)}.", DidYouMean(str(error.value), choices)


def _too_few(error: _Error) -> Words:
    found, least = error.context["actual_length"], error.context["min_length"]
    return f"{error.name} lists {found or 'nothing'}, and needs at least {least}.", f"It takes {error.about}."


def _refused(error: _Error) -> Words:
    # A reader of values does not have the name of the key.
    what = error.context["what"]
    return f"{error.full_name} {what}" if what.startswith("must be ") else what, error.context["fix"]


_WORDS: Mapping[str, Callable[[_Error], Words]] = {
    "missing": _missing,
    "unexpected_keyword_argument": _unknown,
    "dataclass_type": _no_section,
    "dict_type": _no_mapping,
    "tuple_type": _no_list,
    "string_type": _no_text,
    "string_unicode": _not_unicode,
    "string_too_short": _empty_text,
    "int_type": _no_int,
    "bool_type": _no_switch,
    "float_type": _no_number,
    "finite_number": _no_number,
    "greater_than": _no_number,
    "greater_than_equal": _too_low,
    "less_than": _no_number,
    "less_than_equal": _too_high,
    "literal_error": _no_choice,
    "too_short": _too_few,
    "refusal": _refused,
}
