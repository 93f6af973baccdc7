"""The config of a model whose layers come from several donors: edited from the host's config."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from hybridizer.core.errors import PlanError, Problem
from hybridizer.families.compatibility import check_compatible
from hybridizer.families.encodings import CannotExpress, Values
from hybridizer.families.families import read_traits, why_bound
from hybridizer.families.keys import GLOBAL_LISTS
from hybridizer.families.reading import DEPTH_NAMES, DRAFT_COUNTS
from hybridizer.families.structure import Source, Structure
from hybridizer.families.traits import Trait


def splice_config(host: Structure, sources: Sequence[Source]) -> dict[str, Any]:
    """The host's config.json, edited so that output layer i has the traits that `sources[i]` has in its donor.

    The depth and every encoding of every per-layer trait are rewritten, all else is kept as it is on disk. Raises
    PlanError, with all problems, when the family cannot have these layers in this order.
    """
    checks = (_check_range, _check_bound, check_compatible, _check_chains)  # each relies on those before it
    problems = next((found for check in checks if (found := check(host, sources))), [])
    text = dict(host.text_config)
    if not problems:
        text |= _depth_edits(host, len(sources))
        for trait in read_traits(host.text_family):
            values = tuple(source.donor.traits[trait.name][source.layer] for source in sources)
            try:
                text = trait.encode(text, values)
            except CannotExpress as error:
                problems.append(_cannot_express(host, trait, values, error))
    if problems:
        raise PlanError(*problems)
    config = {**host.config, host.text_path[0]: text} if host.text_path else text
    return copy.deepcopy(config)


def _check_range(host: Structure, sources: Sequence[Source]) -> list[Problem]:
    if not sources:
        return [Problem(host.where, "no layers were requested.", "A model needs at least one layer.")]
    return [
        Problem(
            source.donor.where,
            f"layer {source.layer} was requested, and the donor has {source.donor.num_layers} layers.",
            f"Give a layer inside 0..{source.donor.num_layers - 1}.",
        )
        for source in sources
        if not 0 <= source.layer < source.donor.num_layers
    ]


def _is_identity(host: Structure, sources: Sequence[Source]) -> bool:
    """Every layer of the host in its own place, and nothing else."""
    return [source.layer for source in sources] == list(range(host.num_layers)) and all(
        source.donor.where == host.where for source in sources
    )


def _check_bound(host: Structure, sources: Sequence[Source]) -> list[Problem]:
    """The first model whose layers cannot be moved, or whose config has a per-layer list that is not in the tables."""
    if _is_identity(host, sources):
        return []
    for donor in (host, *(source.donor for source in sources)):
        if reason := why_bound(donor.text_family, donor.text_config):
            what = f"layers of '{donor.text_family}' cannot be moved: {reason}."
            fix = "Take donors of another family, or all layers of one model as they are."
            return [Problem(donor.where, what, fix)]
        if unknown := _unknown_lists(donor):
            what = f"`{unknown[0]}` looks like a per-layer list, and '{donor.text_family}' is not known to have one."
            return [Problem(f"{donor.where}/config.json", what, "Remove it if it has no effect.")]
    return []


def _check_chains(host: Structure, sources: Sequence[Source]) -> list[Problem]:
    """The first layer that would be separated from the layer whose result it uses."""
    for trait in read_traits(host.text_family):
        for place, source in enumerate(sources):
            if source.donor.traits[trait.name][source.layer] in trait.chained:
                before = sources[place - 1] if place else None
                if before is None or (before.donor.where, before.layer) != (source.donor.where, source.layer - 1):
                    what = f"layer {source.layer} uses the {trait.name} of the layer before it, and would follow "
                    what += f"{before}." if before else "no layer."
                    fix = f"Keep it behind layer {source.layer - 1} of the same donor."
                    return [Problem(source.donor.where, what, fix)]
    return []


def _unknown_lists(donor: Structure) -> list[str]:
    explained = {key for trait in read_traits(donor.text_family) for key in trait.keys} | GLOBAL_LISTS
    return sorted(
        key
        for key, value in donor.text_config.items()
        if isinstance(value, list) and len(value) == donor.num_layers and key not in explained
    )


def _depth_edits(host: Structure, num_layers: int) -> dict[str, Any]:
    """The depth under each of its names, and no draft layers where the draft head is left out."""
    text = host.text_config
    edits: dict[str, Any] = {name: num_layers for name in DEPTH_NAMES if isinstance(text.get(name), int)}
    if host.text_family == "longcat_flash" and "num_hidden_layers" in edits:
        edits["num_hidden_layers"] = 2 * num_layers
    if any(extra.role == "draft" for extra in host.extra):
        edits |= {name: 0 for name in DRAFT_COUNTS if text.get(name)}
    return edits


def _cannot_express(host: Structure, trait: Trait, values: Values, error: CannotExpress) -> Problem:
    order = ", ".join(map(str, values))
    what = f"the {trait.name} of the layers would be {order}; family '{host.text_family}' encodes it {error}."
    return Problem(
        host.where, what, "Choose an order of layers that the family can encode, or a host of another family."
    )
