"""A recipe's layout -> the donor layers of each output layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hybridizer.core.errors import Problem, RecipeError
from hybridizer.donors.donor import Donor
from hybridizer.recipe.layers import first_deep_layer, format_layers
from hybridizer.recipe.models import Blend, Layout, Recipe
from hybridizer.recipe.tree import KeyPath


@dataclass(frozen=True)
class Part:
    """One donor layer."""

    donor: str
    layer: int


@dataclass(frozen=True)
class LayerSource:
    """What one output layer is made of: one part that is copied, several that `blend` mixes, or none for a new layer.

    `mixer` is the kind that replaces the attention of the part, that is added beside it ("parallel mamba2"), or that
    the new layer has; with `zero_output` its output projections start at zero. `slice` is the entry of the recipe,
    where it has entries. `init` and `fit` are those of a `Mixer`. With `identity` a copy returns its input: its
    output tensors are replaced.
    """

    parts: tuple[Part, ...]
    blend: Blend | None = None
    mixer: str | None = None
    zero_output: bool = False
    slice: int | None = None
    init: str = "fresh"
    fit: str = "none"
    identity: bool = False


def lay_out(recipe: Recipe, depths: Mapping[str, int]) -> tuple[LayerSource, ...]:
    """The source of every output layer, shallow to deep. `depths` is the number of layers of each donor.

    Raises RecipeError with every requested layer that its donor does not have, each at its line.
    """
    if recipe.layout.slices:
        return _by_slices(recipe, depths)
    return _by_dial(recipe, depths)


def _by_slices(recipe: Recipe, depths: Mapping[str, int]) -> tuple[LayerSource, ...]:
    problems: list[Problem] = []
    sources: list[LayerSource] = []
    for index, piece in enumerate(recipe.layout.slices or ()):
        path: KeyPath = ("layout", "slices", index)
        blend = piece.blend
        if piece.fresh is not None:
            sources += (piece.count or 1) * [LayerSource((), None, piece.fresh, piece.zero_output, index)]
            continue
        if blend is None:
            assert piece.donor is not None, "checked when the recipe was loaded"
            layers = _count_out(piece.donor, piece.layers, path, recipe, depths, problems)
            mixer = None if piece.mixer is None else f"{'parallel ' * piece.mixer.parallel}{piece.mixer.kind}"
            init, fit = (piece.mixer.init, piece.mixer.fit) if piece.mixer else ("fresh", "none")
            made = (None, mixer, piece.zero_output, index, init, fit, piece.as_ is not None)
            sources += [LayerSource((Part(piece.donor, layer),), *made) for layer in layers]
            continue
        sides = [
            _count_out(source.donor, source.layers, (*path, "blend", "sources", number), recipe, depths, problems)
            for number, source in enumerate(blend.sources)
        ]
        if len({len(side) for side in sides}) > 1:
            counts = ", ".join(f"{len(side)} of '{s.donor}'" for side, s in zip(sides, blend.sources, strict=True))
            fix = "Give every source of a blend the same number of layers."
            problems.append(Problem(recipe.locate((*path, "blend")), f"a blend of unequal lengths: {counts}.", fix))
            continue
        names = [source.donor for source in blend.sources]
        for column in zip(*sides, strict=True):
            parts = tuple(Part(name, layer) for name, layer in zip(names, column, strict=True))
            sources.append(LayerSource(parts, blend, slice=index))
    if problems:
        raise RecipeError(*problems)
    return tuple(sources)


def _count_out(
    donor: str,
    requested: tuple[int, ...] | None,
    path: KeyPath,
    recipe: Recipe,
    depths: Mapping[str, int],
    problems: list[Problem],
) -> tuple[int, ...]:
    depth = depths[donor]
    if requested is None:
        return tuple(range(depth))
    if any(layer >= depth for layer in requested):
        found = f"which has {depth} layers (0..{depth - 1})."
        what = f"layers {format_layers(requested)} requested of donor '{donor}', {found}"
        fix = f"Give layers inside 0..{depth - 1}, or leave `layers` out to take all."
        problems.append(Problem(recipe.locate((*path, "layers")), what, fix))
    return requested


def _by_dial(recipe: Recipe, depths: Mapping[str, int]) -> tuple[LayerSource, ...]:
    layout = recipe.layout
    shallow, deep = _sides(layout)
    assert isinstance(layout.boundary, (int, float)), "strategies are resolved before the layout"
    ends = {name: first_deep_layer(layout.boundary, depths[name]) for name in (shallow, deep)}
    problems = [
        Problem(
            recipe.locate(("layout", "boundary")),
            f"boundary {layout.boundary} leaves one side of donor '{name}' empty: it has {depths[name]} layers.",
            f"Give a layer inside 1..{depths[name] - 1}, or a share between 0 and 1.",
        )
        for name, end in sorted(ends.items())
        if not 0 < end < depths[name]
    ]
    if problems:
        raise RecipeError(*problems)
    below = [LayerSource((Part(shallow, layer),)) for layer in range(ends[shallow])]
    return (*below, *(LayerSource((Part(deep, layer),)) for layer in range(ends[deep], depths[deep])))


def _sides(layout: Layout) -> tuple[str, str]:
    assert layout.shallow is not None and layout.deep is not None, "checked when the recipe was loaded"
    return layout.shallow, layout.deep


def list_used(sources: tuple[LayerSource, ...], donors: Mapping[str, Donor]) -> dict[str, set[int]]:
    """The layers of each donor that the output uses; an empty set for a donor that gives none."""
    used: dict[str, set[int]] = {name: set() for name in donors}
    for source in sources:
        for part in source.parts:
            used[part.donor].add(part.layer)
    return used
