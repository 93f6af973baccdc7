"""`lr_scale` of a recipe -> a factor on the learning rate for every tensor, from names and places alone: no torch.

A pattern counts before a list of layers, and a list of layers before a side; of two patterns, or two lists, that hold
the same tensor the later one counts. `layer_decay` multiplies whatever that gives: 1 for final norm and head, `d` for
the last layer, `d * d` for the one below it, down to the embedding (arXiv 1801.06146 divides by 2.6 per layer).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import groupby

from hybridizer.plan.freeze import side_of
from hybridizer.recipe.fields import LAYER_DECAY, SIDES, LrScales, names_layers
from hybridizer.recipe.layers import expand, format_layers, read_ranges

_SIDES = SIDES[:2]
_LISTED = 4  # tensor names in a fix


def scale_tensors(scales: LrScales, places: Mapping[str, str], boundary: int, num_layers: int) -> dict[str, float]:
    """The factor on the learning rate of every tensor of `places`, above 0.

    `places` maps the name of each to `layer 3`, `embedding`, `final norm`, `head` or another place outside the layers.
    """
    decay = dict(scales).get(LAYER_DECAY, 1.0)
    ranked = _by_rank(scales)
    factors = {}
    for name, place in places.items():
        own = next((scale for key, scale in ranked if _holds(key, name, place, boundary)), 1.0)
        factors[name] = own * decay ** _steps_below_top(place, num_layers)
    return factors


def find_faults(
    scales: LrScales, places: Mapping[str, str], boundary: int, num_layers: int
) -> Iterator[tuple[str, str, str]]:
    """(key, what is wrong, fix) for every key of `scales` that holds no tensor, and for layers beyond the last one."""
    for key, _ in scales:
        if key == LAYER_DECAY or key in _SIDES:
            continue
        if names_layers(key):
            beyond = [layer for layer in expand(read_ranges(key)) if layer >= num_layers]
            if beyond:
                what = f"layers {format_layers(beyond)} of a model with {num_layers} layers (0..{num_layers - 1})."
                yield key, what, f"Give layers inside 0..{num_layers - 1}."
        elif not any(_holds(key, name, place, boundary) for name, place in places.items()):
            what = f"`{key}` is not a side, and no tensor has a name like it."
            yield key, what, _nearest(key, list(places))


def find_idle(scales: LrScales, trained: Mapping[str, str], boundary: int) -> tuple[str, ...]:
    """The keys of `scales` that hold none of the tensors that train."""
    keys = (key for key, _ in scales if key != LAYER_DECAY)
    return tuple(key for key in keys if not any(_holds(key, name, place, boundary) for name, place in trained.items()))


def rate_lines(factors: Mapping[str, float], places: Mapping[str, str], lr: float) -> list[str]:
    """The peak learning rates of the tensors of `factors` by place, equal layers in one line."""
    found: dict[str, set[float]] = {}
    for name, factor in factors.items():
        found.setdefault(places[name], set()).add(factor)
    layers = {int(place.split()[1]): tuple(sorted(of)) for place, of in found.items() if place.startswith("layer ")}
    lines = []
    for rates, group in groupby(sorted(layers), key=lambda layer: layers[layer]):
        numbers = list(group)
        lines.append(f"layer{'s' if len(numbers) > 1 else ''} {format_layers(numbers)}: {_show(rates, lr)}")
    outside = [f"{place}: {_show(tuple(sorted(of)), lr)}" for place, of in found.items() if place[:6] != "layer "]
    return [*lines, *outside]


def _by_rank(scales: LrScales) -> list[tuple[str, float]]:
    """The factors, those that count first at the beginning."""
    entries = [(key, scale) for key, scale in reversed(scales) if key != LAYER_DECAY]
    return sorted(entries, key=lambda entry: 2 if entry[0] in _SIDES else 1 if names_layers(entry[0]) else 0)


def _holds(key: str, name: str, place: str, boundary: int) -> bool:
    if key in _SIDES:
        return side_of(place, boundary) == key
    if names_layers(key):
        return place.startswith("layer ") and int(place.removeprefix("layer ")) in expand(read_ranges(key))
    return fnmatchcase(name, key)


def _steps_below_top(place: str, num_layers: int) -> int:
    if place in ("final norm", "head"):
        return 0
    return num_layers - int(place.removeprefix("layer ")) if place.startswith("layer ") else num_layers + 1


def _nearest(key: str, names: Sequence[str]) -> str:
    """A fix that lists names near the pattern `key`: those with a part like one of its own, else some of all."""
    parts = list(dict.fromkeys(part for name in names for part in name.split(".")))
    words = [word for word in re.split(r"[.*?\[\]]+", key) if word and word not in parts]
    close = [part for word in words for part in parts if word in part.split("_")]
    close = close or [found for word in words for found in get_close_matches(word, parts, n=1, cutoff=0.5)]
    if key.isalpha() and (side := get_close_matches(key, [*_SIDES, LAYER_DECAY], n=1)):
        return f"Did you mean '{side[0]}'?"
    if close:
        near = [name for name in names if close[0] in name.split(".")]
        return f"Did you mean '{close[0]}', as in {', '.join(near[:_LISTED])}?"
    return f"A pattern is compared with whole names, such as {', '.join(names[:_LISTED])}."


def _show(factors: tuple[float, ...], lr: float) -> str:
    return " and ".join(f"{lr * factor:.3g}" for factor in factors)
