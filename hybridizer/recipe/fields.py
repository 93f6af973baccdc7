"""The kinds of value of recipe keys that pydantic does not have, each with its part of the JSON Schema."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Annotated, Any, Literal, TypeAlias

from annotated_types import Ge, Gt, Le, Lt
from pydantic import (
    AfterValidator,
    AllowInfNan,
    GetCoreSchemaHandler,
    PlainValidator,
    Strict,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from hybridizer.core.errors import DidYouMean, Problem, RecipeError
from hybridizer.recipe.layers import MAX_LAYERS, expand, read_ranges
from hybridizer.recipe.sizes import MAX_SEED, parse_count, parse_size
from hybridizer.recipe.tree import clip, show

Boundary: TypeAlias = float | int | str
ParameterValue: TypeAlias = float | int | bool
Parameters: TypeAlias = tuple[tuple[str, ParameterValue], ...]
LrScales: TypeAlias = tuple[tuple[str, float], ...]
Part = Literal["side", "train", "freeze"]
Tracker = Literal[
    "aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"
]  # accelerate's

AUTO = "auto"
# Names that a boundary may have; each is a function of hybridizer.trace.boundary, by its name there.
STRATEGIES = (AUTO, "knee", "midpoint", "s-maximal", "task-particle")
SIDES = ("deep", "shallow", "none")
LAYER_DECAY = "layer_decay"  # a key of `lr_scale`
ORIGINALS = "originals"  # frozen: every layer that is a donor's as it is
_FROZEN = (*SIDES, ORIGINALS)
PLACES = ("boundary", "last")
MAX_LEARNING_RATE = 0.1  # five times the size of a weight: one step replaces what was learned
# No separators, no characters that are special to a shell or a file system, no dot or blank at either end.
_SIGNS = r'/\\:*?"<>|\x00-\x1f\x7f'
_NAME = re.compile(rf"[^.\- {_SIGNS}]([^{_SIGNS}]{{0,98}}[^. {_SIGNS}])?")
_DONOR_NAME = re.compile(r"\w([\w-]{0,62}\w)?")
_FINGERPRINT = r"sha256:[0-9a-f]{64}"
# Editors' \w covers only ASCII; their pattern allows more: no blanks, and of ASCII punctuation only - and _.
_DONOR_NAME_FOR_EDITORS = r"^[^\s!-,./:-@\[-\^`{-~]{1,64}$"


def as_validator(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`read` as a validator of pydantic's: its RecipeError becomes an error that `messages.rewrite` reads back."""

    def validate(value: Any) -> Any:
        try:
            return read(value)
        except RecipeError as error:
            problem = error.problems[0]
            raise PydanticCustomError("refusal", "refused", {"what": problem.what, "fix": problem.fix}) from None

    return validate


def refusal(what: str, fix: str) -> RecipeError:
    """The error of a reader of values: without a place, which the validation and the tree know."""
    return RecipeError(Problem("", what, fix))


def read_name(value: str) -> str:
    """`value` if it can name a folder on any file system. Raises RecipeError otherwise."""
    if not _NAME.fullmatch(value) or len(value.encode()) > 200:
        fix = "Take letters, digits, - and _, at most 100 of them, beginning with a letter or a digit."
        raise refusal(f"the name {show(value)} cannot be a folder's name.", fix)
    return value


def _read_donor_name(value: str) -> str:
    if not _DONOR_NAME.fullmatch(value):
        fix = "Take letters, digits, - and _, at most 64 of them, beginning with a letter or a digit."
        raise refusal(f"{show(value)} cannot be a donor's name.", fix)
    return value


def _read_fingerprint(value: str) -> str:
    if not re.fullmatch(_FINGERPRINT, value):
        raise refusal(
            f"{show(value)} is not a fingerprint.", "Copy it from donors.json of a run: sha256: and 64 hex digits."
        )
    return value


def read_boundary(value: object) -> Boundary:
    """`value` if it is a share of the depth (0 < x < 1), a layer (at least 1) or a strategy's name.

    Raises RecipeError, without a place, for anything else.
    """
    fix = "Write a share of the depth such as 0.5, or the first deep layer such as 15."
    if isinstance(value, str) and re.fullmatch(r"[0-9]*\.?[0-9]+", value):
        raise refusal(f"`boundary` takes a number, found the text '{clip(value)}'.", "Write it without the quotes.")
    if isinstance(value, str) and value[:1].isalpha():
        if value not in STRATEGIES:
            raise refusal(f"there is not a boundary strategy '{clip(value)}'.", DidYouMean(value, STRATEGIES))
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise refusal(f"`boundary` takes a share of the depth or a layer, found {show(value)}.", fix)
    if isinstance(value, float) and not 0 < value < 1:
        raise refusal(f"a boundary of {value} is not a share between 0 and 1.", f"{fix} A layer has no decimal point.")
    if value < 1 and isinstance(value, int):
        raise refusal(f"a boundary at layer {value} leaves the shallow donor no layer.", fix)
    if value >= MAX_LAYERS:
        raise refusal(f"a boundary at layer {value}; the limit is layer {MAX_LAYERS - 1}.", fix)
    return value


def _read_layer_count(value: object) -> int | float:
    fix = "Write a share of the depth such as 0.5, or a number of layers such as 15."
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise refusal(f"must be a share of the depth or a number of layers; got {show(value)}.", fix)
    if isinstance(value, float) and not 0 < value < 1:
        raise refusal(f"must be a share between 0 and 1; got {show(value)}.", f"{fix} A number has no decimal point.")
    if isinstance(value, int) and not 0 <= value < MAX_LAYERS:
        raise refusal(f"must be a number of layers from 0 to {MAX_LAYERS - 1}; got {show(value)}.", fix)
    return value


def _read_pair(value: object) -> tuple[float, float]:
    if not isinstance(value, (list, tuple)) or len(value) != 2 or not all(map(_is_below_one, value)):
        what = f"must be two numbers, each from 0 up to but not including 1; got {show(value)}."
        raise refusal(what, "Write them as [0.9, 0.95].")
    first, second = value
    return float(first), float(second)


def _is_below_one(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1


def _read_word_or_layers(value: object, words: tuple[str, ...]) -> str | tuple[int, ...]:
    if isinstance(value, str) and value[:1].isalpha():
        if value not in words:
            what = f"must be {', '.join(words)} or a list of layers; got {show(value)}."
            raise refusal(what, DidYouMean(value, words))
        return value
    return _read_layers(value)


def _read_freeze(value: object) -> str | tuple[int, ...]:
    return _read_word_or_layers(value, _FROZEN)


def _read_places(value: object) -> str | tuple[int, ...]:
    found = _read_word_or_layers(value, PLACES)
    return found if isinstance(found, str) else tuple(sorted(set(found)))


def _read_layers(value: object) -> tuple[int, ...]:
    return expand(read_ranges(value))


def _read_lr_scale(value: object) -> LrScales:
    """The factors of `lr_scale` as pairs in the order in which they were written."""
    fix = "Write factors above 0, as in {shallow: 1.0, deep: 0.1, 0..5: 0.5, '*.mlp.*': 0.2, layer_decay: 0.9}."
    if isinstance(value, tuple):
        value = dict(value)
    if not isinstance(value, Mapping):
        raise refusal(f"takes a section of factors, found {show(value)}.", fix)
    pairs = []
    for key, scale in value.items():
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 <= scale < inf:
            raise refusal(f"the factor of `{clip(key)}` is {show(scale)}.", fix)
        if scale == 0:
            raise refusal(f"the factor of `{clip(key)}` is 0.", "Use `freeze`, which also saves gradients and memory.")
        if key == LAYER_DECAY and scale > 1:
            raise refusal(
                f"`{LAYER_DECAY}` is {show(scale)}.", "Give a factor up to 1: each layer has less than the next."
            )
        if names_layers(key):
            read_ranges(key)
        pairs.append((key, float(scale)))
    return tuple(pairs)


def names_layers(key: str) -> bool:
    """Whether a key of `lr_scale` is a list of layers; it is a side, `layer_decay` or a pattern otherwise."""
    return key[:1].isdigit()


def _read_auto_switch(value: object) -> bool | str:
    if isinstance(value, bool) or value == AUTO:
        return value
    raise refusal(f"must be true, false or {AUTO}; got {show(value)}.", "Write one of them, without quotes.")


def _read_recompute(value: object) -> bool | str | int:
    if isinstance(value, bool) or value == AUTO:
        return value
    try:
        return parse_size(value)
    except RecipeError:
        what = f"must be true, false, {AUTO} or a size in bytes; got {show(value)}."
        raise refusal(what, "Write the memory to stay within, as in 8GB, or one of the words.") from None


def _read_parameter(value: object) -> ParameterValue:
    if not isinstance(value, (bool, int, float)):
        raise refusal(f"must be a number, true or false; got {show(value)}.", "Write a number without quotes.")
    return value


def _check_learning_rate(value: float) -> float:
    if value > MAX_LEARNING_RATE:
        what = (
            f"must be at most {MAX_LEARNING_RATE:g}: AdamW changes every weight by about `lr` in a step, and the "
            f"weights of language models are around 0.02; got {show(value)}."
        )
        raise refusal(what, "Write a rate such as 3e-5; continued pre-training takes 1e-6 to 1e-3.")
    return value


def _either(*kinds: dict[str, Any]) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": list(kinds)})


_LAYER = {"type": "integer", "minimum": 0, "maximum": MAX_LAYERS - 1}
_LAYERS_TEXT = {"type": "string", "pattern": r"^\s*[0-9]+(\s*\.\.\s*[0-9]+)?(\s*,\s*[0-9]+(\s*\.\.\s*[0-9]+)?)*\s*$"}
_LAYER_LISTS = (_LAYER, _LAYERS_TEXT, {"type": "array", "minItems": 1, "items": {"anyOf": [_LAYER, _LAYERS_TEXT]}})
_SIZE_TEXT = {"type": "string", "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*([kKmMgGtT][iI]?)?[bB]\s*$"}
_COUNT_TEXT = {"type": "string", "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*[kKmMgGbBtT]\s*$"}
_BELOW_ONE = {"type": "number", "minimum": 0, "exclusiveMaximum": 1}
_SHARE = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}

# Strict where pydantic would convert: "3" is not 3, and 1 is not true. Messages take the bounds from these.
Switch: TypeAlias = Annotated[bool, Strict()]
AutoSwitch: TypeAlias = Annotated[
    bool | str,
    PlainValidator(as_validator(_read_auto_switch)),
    _either({"type": "boolean"}, {"enum": [AUTO]}),
]
Recompute: TypeAlias = Annotated[
    bool | str | int,
    PlainValidator(as_validator(_read_recompute)),
    _either({"type": "boolean"}, {"enum": [AUTO]}, {"type": "integer", "minimum": 1}, _SIZE_TEXT),
]
Seed: TypeAlias = Annotated[int, Strict(), Ge(0), Le(MAX_SEED)]
NonNegativeInt: TypeAlias = Annotated[int, Strict(), Ge(0)]
PositiveInt: TypeAlias = Annotated[int, Strict(), Ge(1)]
AtLeastTwo: TypeAlias = Annotated[int, Strict(), Ge(2)]
Positive: TypeAlias = Annotated[float, Strict(), Gt(0), AllowInfNan(False)]
NonNegative: TypeAlias = Annotated[float, Strict(), Ge(0), AllowInfNan(False)]
Ratio: TypeAlias = Annotated[float, Strict(), Ge(0), Le(1), AllowInfNan(False)]
RatioBelowOne: TypeAlias = Annotated[float, Strict(), Ge(0), Lt(1), AllowInfNan(False)]

LearningRate: TypeAlias = Annotated[
    Positive,
    AfterValidator(as_validator(_check_learning_rate)),
    WithJsonSchema({"type": "number", "exclusiveMinimum": 0, "maximum": MAX_LEARNING_RATE}),
]

Text: TypeAlias = Annotated[str, StringConstraints(min_length=1, strict=True)]
Name: TypeAlias = Annotated[
    str,
    Strict(),
    AfterValidator(as_validator(read_name)),
    WithJsonSchema({"type": "string", "pattern": f"^{_NAME.pattern}$"}),
]
DonorName: TypeAlias = Annotated[
    str,
    Strict(),
    AfterValidator(as_validator(_read_donor_name)),
    WithJsonSchema({"type": "string", "pattern": _DONOR_NAME_FOR_EDITORS}),
]
Fingerprint: TypeAlias = Annotated[
    str,
    Strict(),
    AfterValidator(as_validator(_read_fingerprint)),
    WithJsonSchema({"type": "string", "pattern": f"^{_FINGERPRINT}$"}),
]
Layers: TypeAlias = Annotated[
    tuple[int, ...],
    PlainValidator(as_validator(_read_layers)),
    _either(*_LAYER_LISTS),
]
BoundaryValue: TypeAlias = Annotated[
    Boundary,
    PlainValidator(as_validator(read_boundary)),
    _either(_SHARE, {"type": "integer", "minimum": 1, "maximum": 9999}, {"enum": list(STRATEGIES)}),
]
LayerCount: TypeAlias = Annotated[
    int | float,
    PlainValidator(as_validator(_read_layer_count)),
    _either(_SHARE, {"type": "integer", "minimum": 0, "maximum": MAX_LAYERS - 1}),
]
Size: TypeAlias = Annotated[
    int, PlainValidator(as_validator(parse_size)), _either({"type": "integer", "minimum": 1}, _SIZE_TEXT)
]
Count: TypeAlias = Annotated[
    int, PlainValidator(as_validator(parse_count)), _either({"type": "integer", "minimum": 1}, _COUNT_TEXT)
]
Pair: TypeAlias = Annotated[
    tuple[float, float],
    PlainValidator(as_validator(_read_pair)),
    WithJsonSchema({"type": "array", "items": _BELOW_ONE, "minItems": 2, "maxItems": 2}),
]
Freeze: TypeAlias = Annotated[
    str | tuple[int, ...],
    PlainValidator(as_validator(_read_freeze)),
    _either({"enum": list(_FROZEN)}, *_LAYER_LISTS),
]

LrScale: TypeAlias = Annotated[
    LrScales,
    PlainValidator(as_validator(_read_lr_scale)),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": "number", "exclusiveMinimum": 0}}),
]

Places: TypeAlias = Annotated[
    str | tuple[int, ...],
    PlainValidator(as_validator(_read_places)),
    _either({"enum": list(PLACES)}, *_LAYER_LISTS),
]


@dataclass(frozen=True)
class WrittenAs:
    """Marks a field that a recipe writes as a mapping of `kind`, and that holds the tuple which `read` makes of it."""

    kind: Any
    read: Callable[[Any], tuple[Any, ...]]

    def __get_pydantic_core_schema__(self, _source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def validate(value: Any, inner: Callable[[Any], Any]) -> Any:
            return value if isinstance(value, tuple) else self.read(inner(value))

        return core_schema.no_info_wrap_validator_function(validate, handler.generate_schema(self.kind))


@dataclass(frozen=True)
class NotAKey:
    """Marks a field that no recipe writes: the loader fills it in, and a recipe that has such a key is refused."""

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        def validate(value: Any, info: ValidationInfo) -> Any:
            if info.context == FROM_RECIPE:
                raise PydanticCustomError("unexpected_keyword_argument", "not a key")
            return value

        return core_schema.with_info_plain_validator_function(validate)

    def __get_pydantic_json_schema__(self, _schema: CoreSchema, _handler: Any) -> dict[str, Any]:
        return {"not": {}}


# The context of a validation whose values come from a recipe's text.
FROM_RECIPE: Mapping[str, bool] = {"from_recipe": True}


def _sort_parameters(parameters: Mapping[str, ParameterValue]) -> Parameters:
    return tuple(sorted(parameters.items()))


_Parameter: TypeAlias = Annotated[
    ParameterValue, PlainValidator(as_validator(_read_parameter)), _either({"type": "number"}, {"type": "boolean"})
]
SortedParameters: TypeAlias = Annotated[Parameters, WrittenAs(dict[str, _Parameter], _sort_parameters)]
