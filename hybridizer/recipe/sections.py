"""What a section class contains: its keys, their kinds and bounds, and a section as the plain values of a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt

from hybridizer.recipe.fields import NotAKey
from hybridizer.recipe.layers import format_layers
from hybridizer.recipe.tree import KeyPath

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

Section = TypeVar("Section")


def keys_of(section: type) -> dict[str, FieldInfo]:
    """The keys of a section class in order, each with its default, description and constraints."""
    return {field.alias or name: field for name, field in _fields_of(section)}


def _fields_of(section: type) -> list[tuple[str, FieldInfo]]:
    """The fields that are keys, by their names in Python: `as`, a word of Python's, is the key of `as_`."""
    fields: dict[str, FieldInfo] = section.__pydantic_fields__  # type: ignore[attr-defined]
    return [pair for pair in fields.items() if not any(isinstance(mark, NotAKey) for mark in pair[1].metadata)]


def section_of(field: FieldInfo) -> type | None:
    """The section class that `field` holds, one or several of them; None where it holds something else."""
    return next((kind for kind in _kinds(field.annotation) if isinstance(kind, type) and is_dataclass(kind)), None)


def holds_many(field: FieldInfo) -> bool:
    """Whether `field` holds a list."""
    kinds = (field.annotation, *get_args(field.annotation))
    return any(get_origin(kind) is tuple for kind in kinds)


def choices_of(field: FieldInfo) -> tuple[str, ...]:
    """The choices of `field` or of each of its entries, if only some words are allowed."""
    return tuple(word for kind in _kinds(field.annotation) if get_origin(kind) is Literal for word in get_args(kind))


def section_at(path: KeyPath, root: type) -> type:
    """The class of the section at `path` of a recipe, which a section's path must be, where `root` is at ()."""
    section, inside_list = root, False
    for step in path:
        if inside_list:  # the step is a position, or a name under `donors`
            inside_list = False
            continue
        field = keys_of(section)[str(step)]
        found = section_of(field)
        assert found is not None, path
        section, inside_list = found, holds_many(field)
    return section


def field_at(path: KeyPath, root: type) -> FieldInfo:
    """The field of the key at `path` of a recipe."""
    return keys_of(section_at(path[:-1], root))[str(path[-1])]


def describe_bounds(field: FieldInfo) -> str:
    """What numbers `field` takes: "a number > 0", "a whole number from 0 to 10"."""
    marks = [mark for mark in _marks(field) if isinstance(mark, Ge | Gt | Le | Lt)]
    noun = "a whole number" if int in _kinds(field.annotation) else "a number"
    low = next((mark for mark in marks if isinstance(mark, Ge | Gt)), None)
    high = next((mark for mark in marks if isinstance(mark, Le | Lt)), None)
    if isinstance(low, Ge) and high is not None:
        end = f"to {high.le}" if isinstance(high, Le) else f"up to but not including {high.lt}"
        return f"{noun} from {low.ge} {end}"
    if isinstance(low, Gt) and isinstance(high, Le):
        return f"{noun} above {low.gt} and up to {high.le}"
    return noun + (f" > {low.gt}" if isinstance(low, Gt) else f" >= {low.ge}" if isinstance(low, Ge) else "")


def number_kind(field: FieldInfo) -> type:
    """int, float or bool where `field` holds one, else str: how a command line reads it."""
    return next((kind for kind in _kinds(field.annotation) if kind in (bool, int, float)), str)


def fill_in(section: Section, **values: Any) -> Section:
    """`section` with these values, which are known to be right: unlike `replace`, it does not validate again."""
    made = copy(section)
    vars(made).update(values)
    return made


def plain(section: Any) -> dict[str, Any]:
    """The section as a recipe would hold it: keys that are None or unused beside another key are left out."""
    unused = getattr(section, "unused_keys", ())
    found = {field.alias or name: getattr(section, name) for name, field in _fields_of(type(section))}
    values = {key: value for key, value in found.items() if key not in unused}
    return {key: _plain_value(key, value) for key, value in values.items() if value is not None}


def _plain_value(key: str, value: Any) -> Any:
    if is_dataclass(value):
        return plain(value)
    if not isinstance(value, tuple):
        return value
    if key in ("layers", "freeze", "at"):
        return format_layers(value)
    if key in ("parameters", "lr_scale"):
        return dict(value)
    if key in ("arms", "donors"):
        return _named(value)
    return [_plain_value("", item) for item in value]


def _named(entries: tuple[Any, ...]) -> dict[str, Any]:
    """Entries that a recipe writes under their names: sections, or arms with their overrides."""
    return {
        entry.name: plain(entry) if is_dataclass(entry) else {path: _as_lists(given) for path, given in entry.overrides}
        for entry in entries
    }


def _as_lists(value: Any) -> Any:
    return [_as_lists(item) for item in value] if isinstance(value, tuple) else value


def _kinds(annotation: Any) -> Iterator[Any]:
    """The types that `annotation` is made of, without marks and None."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif origin in (Union, UnionType, tuple):
        for part in get_args(annotation):
            yield from _kinds(part)
    elif annotation not in (NoneType, Ellipsis):
        yield annotation


def _marks(field: FieldInfo) -> Iterator[Any]:
    yield from field.metadata
    for part in get_args(field.annotation):
        if get_origin(part) is Annotated:
            yield from get_args(part)[1:]
