"""Identity layers: copies that return their input until they are trained, and a freeze of all that donors give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hybridizer.core.errors import PlanError, Problem
from hybridizer.donors.donor import Donor
from hybridizer.families.identity import output_tensors, why_not_identity
from hybridizer.families.structure import Structure
from hybridizer.plan.layout import LayerSource, lay_out
from hybridizer.recipe.models import ORIGINALS, Recipe, Train
from hybridizer.recipe.sections import fill_in

METHOD = "identity"  # of such a layer in the plan's rows


def check_identity(recipe: Recipe, sources: Sequence[LayerSource], donors: Mapping[str, Donor]) -> None:
    """Raise PlanError, once for each donor, where layers that are to return their input could not."""
    problems: dict[str, Problem] = {}
    for source in sources:
        if not source.identity:
            continue
        part = source.parts[0]
        if part.donor in problems:
            continue
        structure = donors[part.donor].structure
        reason = why_not_identity(structure.text_family)
        if reason is None and not output_tensors(structure, part.layer):
            reason = f"none of the tensors of layer {part.layer} is a known output projection"
        if reason is not None:
            what = f"a layer of '{part.donor}' cannot be an identity copy: {reason} ('{structure.text_family}')."
            fix = "Delete `as: identity`: the layer is then copied as it is."
            problems[part.donor] = Problem(recipe.locate(("layout", "slices")), what, fix)
    if problems:
        raise PlanError(*problems.values())


def freeze_originals(recipe: Recipe, donors: Mapping[str, Donor]) -> Recipe:
    """`recipe` with `freeze: originals` as the layers that it means, in each stage, and with all three parts frozen.

    Identity copies, new layers and layers with a new mixer train; the last ones as a whole, their network too.
    A part that the recipe sets itself stays as it is set. Other recipes come back unchanged.
    """
    train = recipe.train
    if train is None or ORIGINALS not in (train.freeze, *(stage.changes.get("freeze") for stage in train.stages or ())):
        return recipe
    sources = lay_out(recipe, {name: donor.structure.num_layers for name, donor in donors.items()})
    layers = tuple(place for place, source in enumerate(sources) if not is_new(source)) or "none"
    host = donors[recipe.layout.host].structure
    meant = [
        {"freeze": layers, **_frozen_parts(settings, host)} if settings.freeze == ORIGINALS else {}
        for settings in train.as_stages()
    ]
    if train.stages is None:
        return replace(recipe, train=replace(train, **meant[0]))
    stages = tuple(fill_in(stage, **keys) if keys else stage for stage, keys in zip(train.stages, meant, strict=True))
    freeze = layers if train.freeze == ORIGINALS else train.freeze
    return replace(recipe, train=replace(train, freeze=freeze, stages=stages))


def is_new(source: LayerSource) -> bool:
    """Whether something in the layer is not its donor's: it is an identity copy, new, or has a new mixer."""
    return source.identity or source.mixer is not None


def _frozen_parts(train: Train, host: Structure) -> dict[str, Any]:
    """The keys of parts that `train` leaves open, set to freeze.

    A model without a norm of its own is not asked to freeze it; a tied head follows the embedding.
    """
    parts = {"embedding": host.embedding, "final_norm": host.final_norm, "head": host.head}
    if host.tied:
        parts["head"] = ()
        parts["embedding"] = host.embedding if train.head == "side" else ()
    return {key: "freeze" for key, there in parts.items() if there and getattr(train, key) == "side"}
