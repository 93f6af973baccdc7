"""Lists of layers as they are written, `0..14, 20`, and as the code uses them, a tuple of numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from hybridizer.core.errors import Problem, RecipeError
from hybridizer.recipe.tree import show

# Far above any model that exists, and low enough that a typing mistake cannot fill the memory.
MAX_LAYERS = 10_000
_ONE = re.compile(r"[0-9]{1,9}")
_RANGE = re.compile(r"([0-9]{1,9})\s*\.\.\s*([0-9]{1,9})")
_LOOSE_RANGE = re.compile(r"([0-9]{1,9})\s*(?:-|:|\.{3,}|to)\s*([0-9]{1,9})")
_FORMS = "Write a range as 0..14 (both ends included), a layer as 3, several as [0..14, 20]."


def format_layers(layers: Sequence[int]) -> str:
    """The shortest text that `read_ranges` reads as `layers`: "0..14, 20"; "none" when there are none."""
    starts = [0] + [i for i, (a, b) in enumerate(pairwise(layers), start=1) if b != a + 1]
    runs = [layers[start:end] for start, end in pairwise([*starts, len(layers)])]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs if run) or "none"


def first_deep_layer(boundary: float | int, num_layers: int) -> int:
    """Where the deep side of `num_layers` layers begins, counted from 0; also the number of shallow layers.

    An int is that layer already, inside the model or not. A float is a share of the depth, rounded half up, so that 0.5
    of 5 layers is 3 (arXiv 2605.11416 splits at the midpoint and leaves odd depths open), with at least one layer on
    either side. A single layer has no two sides: 0.
    """
    if isinstance(boundary, int):
        return boundary
    return min(max(int(boundary * num_layers + 0.5), 1), num_layers - 1)


def read_ranges(value: object, where: str = "layers") -> tuple[range, ...]:
    """The layers that `value` lists, in its order, repeats kept: from 3, "0..14", "0..14, 20" or [0..14, 20].

    Numbers count from 0 and ranges include both ends. Raises RecipeError at `where` for everything else: nothing
    listed, a range that runs backwards, a negative or fractional number, more than MAX_LAYERS layers.
    """
    parts = value if isinstance(value, (list, tuple)) else [value]
    if not parts:
        raise _refusal(where, "an empty list of layers.", "Name at least one layer, or leave `layers` out to take all.")
    ranges = tuple(_read_one(one, where) for part in parts for one in _split(part))
    if count(ranges) > MAX_LAYERS:
        raise _refusal(where, f"{count(ranges)} layers in one list; {MAX_LAYERS} is the limit.", "List fewer layers.")
    return ranges


def count(ranges: Sequence[range]) -> int:
    """How many layers `ranges` list in all."""
    return sum(len(one) for one in ranges)


def expand(ranges: Sequence[range]) -> tuple[int, ...]:
    """The layers of `ranges`, in order."""
    return tuple(layer for one in ranges for layer in one)


def warn_of_pair(layers: Sequence[int], where: str) -> str | None:
    """A warning about two layers that may be meant as the ends of a range, as mergekit's `layer_range: [0, 21]` is."""
    if len(layers) != 2 or layers[1] <= layers[0] + 1:
        return None
    first, last = layers
    ranges = f"write {first}..{last - 1} for a range (mergekit's [{first}, {last}]), {first}..{last} with both ends"
    return f"{where}: two layers, {first} and {last}; {ranges}"


def _split(part: object) -> Sequence[object]:
    return [text.strip() for text in part.split(",")] if isinstance(part, str) else [part]


def _read_one(one: object, where: str) -> range:
    if isinstance(one, str):
        return _read_text(one, where)
    if not isinstance(one, int) or isinstance(one, bool):
        raise _refusal(where, f"{show(one)} is not a layer.", _FORMS)
    if one < 0:
        raise _refusal(where, f"layer {one} does not exist; layers count from 0.", _FORMS)
    return _check_limit(range(one, one + 1), where)


def _read_text(text: str, where: str) -> range:
    if _ONE.fullmatch(text):
        return _check_limit(range(int(text), int(text) + 1), where)
    if ends := _RANGE.fullmatch(text):
        first, last = int(ends[1]), int(ends[2])
        if first > last:
            fix = f"Write {last}..{first}, or list the layers one by one for another order: [2, 1, 0]."
            raise _refusal(where, f"layers {text} run backwards.", fix)
        return _check_limit(range(first, last + 1), where)
    if ends := _LOOSE_RANGE.fullmatch(text):
        raise _refusal(where, f"{show(text)} is not a range of layers.", f"Write it as {ends[1]}..{ends[2]}.")
    raise _refusal(where, f"{show(text)} is not a layer or a range of layers.", _FORMS)


def _check_limit(layers: range, where: str) -> range:
    if layers[-1] >= MAX_LAYERS:
        raise _refusal(where, f"layer {layers[-1]} requested; the limit is layer {MAX_LAYERS - 1}.", _FORMS)
    return layers


def _refusal(where: str, what: str, fix: str) -> RecipeError:
    return RecipeError(Problem(where, what, fix))
