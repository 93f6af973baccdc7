"""New layers in a model of its donors' own family, where that is a hybrid: shaped as its layers of their kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hybridizer.core.errors import PlanError, Problem
from hybridizer.donors.donor import Donor
from hybridizer.families.attention import OLD_NAMES
from hybridizer.families.target import Target
from hybridizer.families.targets import TARGETS
from hybridizer.plan.layout import LayerSource, Part
from hybridizer.plan.origin import ZERO, Fresh
from hybridizer.plan.plan import PlannedTensor
from hybridizer.recipe.models import Recipe


def has_new_layers(sources: Sequence[LayerSource]) -> bool:
    """Whether some layers come from no donor."""
    return any(not source.parts for source in sources)


def fits_own_family(recipe: Recipe, sources: Sequence[LayerSource], host: Donor) -> bool:
    """Whether the model is of the donors' own family: no part is new, or the family has the new layers."""
    family = host.structure.text_family
    if recipe.layout.target not in (None, family):
        return False
    target = TARGETS.get(family)
    return all(source.mixer is None or (not source.parts and _has(target, source)) for source in sources)


def _has(target: Target | None, source: LayerSource) -> bool:
    return target is not None and source.mixer in target.mixers


def shape_new_layers(recipe: Recipe, sources: Sequence[LayerSource], host: Donor) -> tuple[LayerSource, ...]:
    """`sources`, each new layer with the host's first layer of its kind as the part whose shapes it has.

    Raises PlanError where the host has no such layer, layers of several networks, or a config inside another one, and
    for sizes, which the host's config holds.
    """
    family = host.structure.text_family
    where, problems = recipe.locate(("layout", "slices")), []
    if recipe.layout.mixer_sizes is not None:
        what = f"new layers of {family} have the sizes that the host's config holds."
        problems.append(Problem(recipe.locate(("layout", "mixer_sizes")), what, "Delete `mixer_sizes`."))
    if len(set(host.structure.traits.get("mlp", ()))) > 1 or host.structure.text_path:
        what = f"new layers in '{host.name}', whose layers differ in their networks or whose config is inside another."
        problems.append(Problem(where, what, "Repeat its layers instead: list them twice."))
    made = []
    for source in sources:
        part = None if source.parts else _like(source, host)
        if not source.parts and part is None:
            what = f"'{host.name}' has no layer with {source.mixer} whose sizes a new one could have."
            problems.append(Problem(where, what, "Take a host that has one."))
        elif part is not None and source.zero_output and _has_experts(host, part):
            what = f"`zero_output` in '{host.name}', whose layers have experts: each has an output of its own."
            problems.append(Problem(where, what, "Leave it out, or take a host with one network per layer."))
        made.append(source if part is None else replace(source, parts=(part,)))
    if problems:
        raise PlanError(*dict.fromkeys(problems))
    return tuple(made)


def _like(source: LayerSource, host: Donor) -> Part | None:
    assert source.mixer is not None, "a new layer has a mixer"
    name = TARGETS[host.structure.text_family].mixers[source.mixer]
    kinds = host.structure.traits["attention"]
    found = [layer for layer, kind in enumerate(kinds) if kind == OLD_NAMES.get(name, name)]
    return Part(host.name, found[0]) if found else None


def _has_experts(host: Donor, part: Part) -> bool:
    return any("expert" in suffix or "moe" in suffix for suffix in host.structure.layers[part.layer])


def draw_new_layers(
    tensors: Sequence[PlannedTensor], sources: Sequence[LayerSource], host: Donor, seed: int
) -> tuple[PlannedTensor, ...]:
    """`tensors`, those of new layers drawn from `seed` instead of copied."""
    prefix, target = host.structure.layer_prefix, TARGETS[host.structure.text_family]
    new = {str(layer): source for layer, source in enumerate(sources) if not source.parts}
    made = []
    for tensor in tensors:
        layer, _, suffix = tensor.name.removeprefix(prefix).partition(".")
        source = new.get(layer) if tensor.name.startswith(prefix) else None
        made.append(tensor if source is None else replace(tensor, source=_drawn(target, source, suffix, seed)))
    return tuple(made)


def _drawn(target: Target, source: LayerSource, suffix: str, seed: int) -> Fresh:
    assert source.mixer is not None
    outputs = {*target.outputs[source.mixer], *target.outputs["network"]}
    return Fresh(ZERO if source.zero_output and suffix in outputs else target.family, seed)
