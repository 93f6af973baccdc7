"""`layout.swap` as slices: which layers of the donor get another mixer, by a rule or by evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from hybridizer.core.errors import PlanError, Problem, RecipeError
from hybridizer.donors.donor import Donor
from hybridizer.families.structure import Structure
from hybridizer.mixers.choice import Choice, choose_layers
from hybridizer.plan.layout import LayerSource
from hybridizer.recipe.layers import first_deep_layer, format_layers
from hybridizer.recipe.mixer import EVIDENCE_PLACES, Swap
from hybridizer.recipe.models import Recipe, Slice
from hybridizer.recipe.tree import KeyPath

ASSUMED = "uniform"  # the place of a check, where evidence decides later


def swapped_donor(recipe: Recipe) -> str:
    """The name of the donor whose layers `layout.swap` takes."""
    return recipe.layout.swap_section.donor or recipe.layout.host


def count_kept(recipe: Recipe, num_layers: int) -> int:
    """How many of the donor's `num_layers` keep their attention.

    All where `count` is 0. Raises RecipeError, at the line of `count`, where none is left, or a share swaps none.
    """
    swap = recipe.layout.swap_section
    if swap.count == 0:
        return num_layers
    num_swapped = first_deep_layer(swap.count, num_layers)
    if not 0 < num_swapped < num_layers:
        name, where = swapped_donor(recipe), recipe.locate(("layout", "swap", "count"))
        what = f"{swap.count} layers to be swapped of donor '{name}', which has {num_layers}: one keeps its attention."
        raise RecipeError(Problem(where, what, f"Give a number from 1 to {num_layers - 1}, or a share such as 0.5."))
    return num_layers - num_swapped


def choose_by_rule(recipe: Recipe, num_layers: int) -> Choice:
    """The layers by a rule that needs no evidence; where the recipe asks for evidence, spread evenly."""
    swap = recipe.layout.swap_section
    place = ASSUMED if swap.place in EVIDENCE_PLACES else swap.place
    num_kept = count_kept(recipe, num_layers)
    if num_kept == num_layers:
        return Choice(place, tuple(range(num_layers)), ())
    return choose_layers(place, num_layers, num_kept, seed=swap.seed)


def as_slices(recipe: Recipe, choice: Choice) -> Recipe:
    """`recipe` with the layers of its swap written out."""
    swap, donor, swapped = recipe.layout.swap_section, swapped_donor(recipe), set(choice.swapped)
    layers = sorted({*choice.kept, *choice.swapped})
    slices = tuple(
        _slice(swap, donor, tuple(run), mixed) for mixed, run in groupby(layers, key=lambda layer: layer in swapped)
    )
    return replace(recipe, layout=replace(recipe.layout, swap=None, slices=slices))


def assume_swap(recipe: Recipe, depths: Mapping[str, int]) -> Recipe:
    """`recipe` with its swap written out by a rule, for checks of everything else. `depths`: of the donors."""
    if recipe.layout.swap is None:
        return recipe
    return as_slices(recipe, choose_by_rule(recipe, depths[swapped_donor(recipe)]))


def check_attention_there(recipe: Recipe, sources: Sequence[LayerSource], donors: Mapping[str, Donor]) -> None:
    """Return if every layer that gets another mixer has an attention. Raises PlanError, once for each donor."""
    problems: dict[str, Problem] = {}
    for source in sources:
        for part in source.parts if source.mixer is not None else ():
            missing = _without_attention(donors[part.donor].structure)
            if part.layer not in missing or part.donor in problems:
                continue
            family = donors[part.donor].structure.text_family
            has = f"layer {part.layer} of donor '{part.donor}' has no attention of its own that a {source.mixer} could"
            what = f"{has} take the place of: it has {missing[part.layer]} ('{family}'). Layers without attention of "
            what += f"its own: {format_layers(sorted(missing))}."
            fix = "Keep the layers as they are, or take a donor with attention in every layer."
            problems[part.donor] = Problem(locate_slice(recipe, source.slice), what, fix)
    if problems:
        raise PlanError(*problems.values())


def locate_slice(recipe: Recipe, index: int | None) -> str:
    """The line of a slice, or that of the swap which it was written out from."""
    swap: KeyPath = ("layout", "swap")
    return recipe.locate(swap if swap in recipe.places else ("layout", "slices", index or 0))


def _without_attention(structure: Structure) -> dict[int, str]:
    """The layers that have no attention of their own, with what they have."""
    kinds = structure.traits.get("attention", ())
    return {
        layer: str(kind)
        for layer, kind in enumerate(kinds)
        if kind == "linear_attention" or not str(kind).endswith("attention")
    }


def describe_choice(swap: Swap, donor: str, choice: Choice) -> str:
    """Which layers were chosen and how, in one sentence."""
    if not choice.swapped:
        return f"No layer of '{donor}' is swapped: `count` is 0."
    total = len(choice.kept) + len(choice.swapped)
    found = f"{len(choice.swapped)} of {total} layers of '{donor}' get {swap.mixer.kind}"
    layers = f"{format_layers(choice.swapped)}; attention stays in {format_layers(choice.kept)}"
    return f"{found}, {_HOW[swap.place].format(seed=swap.seed)}: {layers}."


def _slice(swap: Swap, donor: str, layers: tuple[int, ...], mixed: bool) -> Slice:
    if not mixed:
        return Slice(donor=donor, layers=layers)
    return Slice(donor=donor, layers=layers, mixer=swap.mixer, zero_output=swap.zero_output)


_HOW = {
    "uniform": "spread evenly",
    "shallow": "the shallow ones",
    "deep": "the deep ones",
    "random": "drawn by the seed {seed}",
    "trace": "those that a disturbance moves least, by a trace",
    "leave-one-out": "those that cost least when they are swapped alone, in bits per token",
    "kl": "those that change the next tokens least when they are swapped alone, in bits per token",
}
