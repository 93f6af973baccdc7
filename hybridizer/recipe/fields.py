"""The kinds of value that recipe keys take and pydantic has no word for, each with its part of the JSON Schema."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, PlainValidator, StringConstraints, WithJsonSchema
from pydantic_core import PydanticCustomError

from hybridizer.core.errors import Problem, RecipeError, nearest
from hybridizer.recipe.layers import MAX_LAYERS, read_ranges
from hybridizer.recipe.recipe import STRATEGIES, Boundary, ParameterValue
from hybridizer.recipe.sizes import parse_count, parse_size
from hybridizer.recipe.tree import clip, show

# No separators, no signs that a shell or a file system takes for its own, no dot or blank at either end.
_SIGNS = r'/\\:*?"<>|\x00-\x1f\x7f'
_NAME = re.compile(rf"[^.\- {_SIGNS}]([^{_SIGNS}]{{0,98}}[^. {_SIGNS}])?")
_DONOR_NAME = re.compile(r"\w([\w-]{0,62}\w)?")
_FINGERPRINT = r"sha256:[0-9a-f]{64}"
# Editors' \w knows ASCII only; theirs is the wider net: no blanks, and of ASCII punctuation only - and _.
_DONOR_NAME_FOR_EDITORS = r"^[^\s!-,./:-@\[-\^`{-~]{1,64}$"


def _at_door(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`read` as a validator of pydantic's: its RecipeError becomes an error that `problems.rewrite` reads back."""

    def validate(value: Any) -> Any:
        try:
            return read(value)
        except RecipeError as error:
            problem = error.problems[0]
            raise PydanticCustomError("refusal", "refused", {"what": problem.what, "fix": problem.fix}) from None

    return validate


def _refusal(what: str, fix: str) -> RecipeError:
    # Without a place: the door knows the path, and the tree knows where that path was written.
    return RecipeError(Problem("", what, fix))


def read_name(value: str) -> str:
    """`value` if it can name a folder on any file system. Raises RecipeError otherwise."""
    if not _NAME.fullmatch(value) or len(value.encode()) > 200:
        fix = "Take letters, digits, - and _, at most 100 of them, beginning with a letter or a digit."
        raise _refusal(f"the name {show(value)} cannot be a folder's name.", fix)
    return value


def _read_donor_name(value: str) -> str:
    if not _DONOR_NAME.fullmatch(value):
        fix = "Take letters, digits, - and _, at most 64 of them, beginning with a letter or a digit."
        raise _refusal(f"{show(value)} cannot be a donor's name.", fix)
    return value


def _read_fingerprint(value: str) -> str:
    if not re.fullmatch(_FINGERPRINT, value):
        raise _refusal(
            f"{show(value)} is no fingerprint.", "Copy it from donors.json of a run: sha256: and 64 hex digits."
        )
    return value


def read_boundary(value: object) -> Boundary:
    """`value` if it is a share of the depth (0 < x < 1), a layer (at least 1) or a strategy's name.

    Raises RecipeError, without a place, for anything else.
    """
    fix = "Write a share of the depth such as 0.5, or the first deep layer such as 15."
    if isinstance(value, str) and re.fullmatch(r"[0-9]*\.?[0-9]+", value):
        raise _refusal(f"`boundary` takes a number, found the text '{clip(value)}'.", "Write it without the quotes.")
    if isinstance(value, str) and value[:1].isalpha():
        if value not in STRATEGIES:
            raise _refusal(f"there is no boundary strategy '{clip(value)}'.", nearest(value, STRATEGIES))
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _refusal(f"`boundary` takes a share of the depth or a layer, found {show(value)}.", fix)
    if isinstance(value, float) and not 0 < value < 1:
        raise _refusal(f"a boundary of {value} is not a share between 0 and 1.", f"{fix} A layer has no decimal point.")
    if value < 1 and isinstance(value, int):
        raise _refusal(f"a boundary at layer {value} leaves the shallow donor no layer.", fix)
    if value >= MAX_LAYERS:
        raise _refusal(f"a boundary at layer {value}; no layer past {MAX_LAYERS - 1} is taken.", fix)
    return value


def _read_share(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise _refusal(f"a share is a number from 0 to 1; found {show(value)}.", "Write it as 0.3, without quotes.")
    return float(value)


def _read_share_below_one(value: object) -> float:
    share = _read_share(value)
    if share == 1:
        raise _refusal("a share of 1 leaves nothing for the rest.", "Write a share from 0 up to but not including 1.")
    return share


def _read_positive(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise _refusal(f"a number above 0 is asked for; found {show(value)}.", "Write it as 3e-5 or 0.1, no quotes.")
    return float(value)


def _read_non_negative(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise _refusal(f"a number from 0 up is asked for; found {show(value)}.", "Write it as 0.1, without quotes.")
    return float(value)


def _read_pair(value: object) -> tuple[float, float]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise _refusal(f"two shares are asked for; found {show(value)}.", "Write them as [0.9, 0.95].")
    first, second = (_read_share_below_one(item) for item in value)
    return first, second


SIDES = ("deep", "shallow", "none")


def _read_freeze(value: object) -> str | tuple[range, ...]:
    if isinstance(value, str) and value[:1].isalpha():
        if value not in SIDES:
            raise _refusal(f"'{clip(value)}' is no side of a model, and no list of layers.", nearest(value, SIDES))
        return value
    return read_ranges(value)


def _read_parameter(value: object) -> ParameterValue:
    if not isinstance(value, (bool, int, float)):
        raise _refusal(
            f"a parameter is a number, true or false; found {show(value)}.", "Write a number without quotes."
        )
    return value


def _either(*kinds: dict[str, Any]) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": list(kinds)})


_LAYER = {"type": "integer", "minimum": 0, "maximum": MAX_LAYERS - 1}
_LAYERS_TEXT = {"type": "string", "pattern": r"^\s*[0-9]+(\s*\.\.\s*[0-9]+)?(\s*,\s*[0-9]+(\s*\.\.\s*[0-9]+)?)*\s*$"}
_SIZE_TEXT = {"type": "string", "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*([kKmMgGtT][iI]?)?[bB]\s*$"}
_COUNT_TEXT = {"type": "string", "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*[kKmMgGbBtT]\s*$"}
_BELOW_ONE = {"type": "number", "minimum": 0, "exclusiveMaximum": 1}
_SHARE = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}

TextField: TypeAlias = Annotated[str, StringConstraints(min_length=1)]
NameField: TypeAlias = Annotated[
    str, AfterValidator(_at_door(read_name)), WithJsonSchema({"type": "string", "pattern": f"^{_NAME.pattern}$"})
]
DonorNameField: TypeAlias = Annotated[
    str,
    AfterValidator(_at_door(_read_donor_name)),
    WithJsonSchema({"type": "string", "pattern": _DONOR_NAME_FOR_EDITORS}),
]
FingerprintField: TypeAlias = Annotated[
    str,
    AfterValidator(_at_door(_read_fingerprint)),
    WithJsonSchema({"type": "string", "pattern": f"^{_FINGERPRINT}$"}),
]
LayersField: TypeAlias = Annotated[
    tuple[range, ...] | None,
    PlainValidator(_at_door(read_ranges)),
    _either(_LAYER, _LAYERS_TEXT, {"type": "array", "minItems": 1, "items": {"anyOf": [_LAYER, _LAYERS_TEXT]}}),
]
BoundaryField: TypeAlias = Annotated[
    Boundary | None,
    PlainValidator(_at_door(read_boundary)),
    _either(_SHARE, {"type": "integer", "minimum": 1, "maximum": 9999}, {"enum": list(STRATEGIES)}),
]
ShareField: TypeAlias = Annotated[
    float, PlainValidator(_at_door(_read_share)), WithJsonSchema({"type": "number", "minimum": 0, "maximum": 1})
]
ParameterField: TypeAlias = Annotated[
    ParameterValue, PlainValidator(_at_door(_read_parameter)), _either({"type": "number"}, {"type": "boolean"})
]
SizeField: TypeAlias = Annotated[
    int, PlainValidator(_at_door(parse_size)), _either({"type": "integer", "minimum": 1}, _SIZE_TEXT)
]
CountField: TypeAlias = Annotated[
    int, PlainValidator(_at_door(parse_count)), _either({"type": "integer", "minimum": 1}, _COUNT_TEXT)
]
PositiveField: TypeAlias = Annotated[
    float, PlainValidator(_at_door(_read_positive)), WithJsonSchema({"type": "number", "exclusiveMinimum": 0})
]
NonNegativeField: TypeAlias = Annotated[
    float, PlainValidator(_at_door(_read_non_negative)), WithJsonSchema({"type": "number", "minimum": 0})
]
ShareBelowOneField: TypeAlias = Annotated[
    float, PlainValidator(_at_door(_read_share_below_one)), WithJsonSchema(_BELOW_ONE)
]
PairField: TypeAlias = Annotated[
    tuple[float, float],
    PlainValidator(_at_door(_read_pair)),
    WithJsonSchema({"type": "array", "items": _BELOW_ONE, "minItems": 2, "maxItems": 2}),
]
FreezeField: TypeAlias = Annotated[
    str | tuple[range, ...],
    PlainValidator(_at_door(_read_freeze)),
    _either(
        {"enum": list(SIDES)},
        _LAYER,
        _LAYERS_TEXT,
        {"type": "array", "minItems": 1, "items": {"anyOf": [_LAYER, _LAYERS_TEXT]}},
    ),
]
