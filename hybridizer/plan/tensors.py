"""One source for every output tensor, a use or a reason for every donor tensor."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from hybridizer.checkpoint.dtypes import FLOATING
from hybridizer.core.errors import PlanError, Problem
from hybridizer.donors.donor import Donor
from hybridizer.families.identity import output_tensors
from hybridizer.plan.layout import LayerSource
from hybridizer.plan.origin import ZERO, BlendUse, Convert, Copy, Fresh, Merge, Origin
from hybridizer.plan.plan import PlannedTensor
from hybridizer.recipe.models import Blend

UNUSED_LAYER = re.compile(r"layer (\d+) is in no slice")


def plan_tensors(
    host: Donor, donors: Mapping[str, Donor], sources: Sequence[LayerSource], target: str | None
) -> tuple[tuple[PlannedTensor, ...], tuple[BlendUse, ...]]:
    """Every output tensor with its source, and the blends they refer to by index.

    The host's tensors outside its layers come first, then the layers shallow to deep; within each, in the order of
    the file they are copied from, so that neighbours stay neighbours. `target` is the safetensors dtype to convert to;
    tensors that the host stores in another dtype (such as a float32 router) stay in it.
    """
    apart = _kept_apart(host)
    blends: dict[Blend, int] = {}
    tensors = []
    for name in _in_file_order(host, keep_outside(host)):
        entry = host.checkpoint.tensors[name]
        dtype = _output_dtype(entry.dtype, apart.get(name), target)
        tensors.append(PlannedTensor(name, dtype, entry.shape, _copy(Origin(host.name, name), entry.dtype, dtype)))
    for layer, source in enumerate(sources):
        first = donors[source.parts[0].donor]
        names = first.structure.layers[source.parts[0].layer]
        suffix_of = {name: suffix for suffix, name in names.items()}
        zero = output_tensors(first.structure, source.parts[0].layer) if source.identity else frozenset()
        for name in _in_file_order(first, suffix_of):
            suffix = suffix_of[name]
            origins = tuple(_origin(source, number, suffix, donors) for number in range(len(source.parts)))
            entry = first.checkpoint.tensors[name]
            if source.blend is not None and entry.dtype not in FLOATING:
                what = f"'{suffix}' is {entry.dtype}; only floating tensors can be blended."
                raise PlanError(Problem(f"donor '{first.name}'", what, "Copy these layers instead of blending them."))
            dtype = _output_dtype(entry.dtype, apart.get(suffix), target)
            output = f"{host.structure.layer_prefix}{layer}.{suffix}"
            if suffix in zero:
                made: Copy | Convert | Merge | Fresh = Fresh(ZERO, 0)
            elif source.blend is None:
                made = _copy(origins[0], entry.dtype, dtype)
            else:
                made = Merge(blends.setdefault(source.blend, len(blends)), origins)
            tensors.append(PlannedTensor(output, dtype, entry.shape, made))
    return tuple(tensors), tuple(_use(blend) for blend in blends)


def _copy(origin: Origin, found: str, dtype: str) -> Copy | Convert:
    return (Copy if found == dtype else Convert)(origin.donor, origin.tensor)


def keep_outside(host: Donor) -> set[str]:
    """The host's tensors outside its layers that the output keeps."""
    inside = {name for layer in host.structure.layers for name in layer.values()}
    return set(host.checkpoint.tensors) - inside - set(_dropped(host))


def explain_unused(
    host: Donor, donors: Mapping[str, Donor], used: Mapping[str, set[int]], sources: Sequence[LayerSource]
) -> dict[str, dict[str, str]]:
    """For every donor, its tensors that the output leaves out, each with the reason."""
    return {
        name: dict(sorted((_explain(donor, donor is host, used[name], host.name) | _replaced(donor, sources)).items()))
        for name, donor in donors.items()
    }


def _replaced(donor: Donor, sources: Sequence[LayerSource]) -> dict[str, str]:
    """The output tensors of layers that the output has as identity copies alone."""
    parts = [
        (source.parts[0].layer, source) for source in sources if source.parts and source.parts[0].donor == donor.name
    ]
    whole = {layer for layer, source in parts if not source.identity}
    whole |= {part.layer for source in sources if source.blend for part in source.parts if part.donor == donor.name}
    alone = {layer for layer, _ in parts} - whole
    names = [donor.structure.layers[layer][key] for layer in alone for key in output_tensors(donor.structure, layer)]
    return {name: "its identity copies return their input without it" for name in names}


def _explain(donor: Donor, is_host: bool, used: set[int], host: str) -> dict[str, str]:
    reasons = _dropped(donor)  # their wording enters the plan's hash
    layer_of = {name: number for number, layer in enumerate(donor.structure.layers) for name in layer.values()}
    for name in donor.checkpoint.tensors:
        if name in layer_of:
            if layer_of[name] not in used:
                reasons[name] = f"layer {layer_of[name]} is in no slice"
        elif not is_host and name not in reasons:
            reasons[name] = f"outside the layers, where the host '{host}' decides"
    return reasons


def _dropped(donor: Donor) -> dict[str, str]:
    return {extra.name: extra.reason for extra in donor.structure.extra if not extra.kept}


def _kept_apart(host: Donor) -> dict[str, str]:
    """Floating dtypes other than the main one, by tensor name outside the layers and by suffix inside them."""
    names = {name: name for name in keep_outside(host)}
    for layer in host.structure.layers:
        names |= layer
    entries = {key: host.checkpoint.tensors[name].dtype for key, name in names.items()}
    return {key: dtype for key, dtype in entries.items() if dtype in FLOATING and dtype != host.main_dtype}


def _output_dtype(dtype: str, apart: str | None, target: str | None) -> str:
    if target is None or dtype not in FLOATING:
        return dtype
    return apart or target


def _in_file_order(donor: Donor, names: Mapping[str, str] | set[str]) -> list[str]:
    entries = donor.checkpoint.tensors
    return sorted(names, key=lambda name: (entries[name].file.name, entries[name].begin, name))


def _origin(source: LayerSource, number: int, suffix: str, donors: Mapping[str, Donor]) -> Origin:
    part = source.parts[number]
    name = donors[part.donor].structure.layers[part.layer].get(suffix)
    if name is None:
        what = f"layer {part.layer} of '{part.donor}' has no '{suffix}', which layer {source.parts[0].layer} has."
        fix = "Blend layers of one kind, or copy them."
        raise PlanError(Problem(f"blend of '{source.parts[0].donor}' and '{part.donor}'", what, fix))
    return Origin(part.donor, name)


def _use(blend: Blend) -> BlendUse:
    names = [source.donor for source in blend.sources]
    base = None if blend.base is None else names.index(blend.base)
    per_source = tuple(dict(source.parameters) for source in blend.sources)
    return BlendUse(blend.method, dict(blend.parameters), per_source, base)
