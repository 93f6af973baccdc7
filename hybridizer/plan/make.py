"""Recipe and donors -> plan: one source for every output tensor, a use or a reason for every donor tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hybridizer.checkpoint.dtypes import SAFETENSORS_NAMES
from hybridizer.checkpoint.hashing import hash_file
from hybridizer.core.errors import PlanError, Problem, RecipeError
from hybridizer.donors.donor import Donor
from hybridizer.families.config import splice_config
from hybridizer.families.reading import read_structure
from hybridizer.families.structure import Source, Structure
from hybridizer.plan.blends import check_blend
from hybridizer.plan.compatibility import find_incompatibilities
from hybridizer.plan.config_shapes import check_attention_left, check_config
from hybridizer.plan.hybrid import is_whole_host, name_method, plan_native
from hybridizer.plan.identity import check_identity
from hybridizer.plan.layout import LayerSource, lay_out, list_used
from hybridizer.plan.new_layers import draw_new_layers, fits_own_family, has_new_layers, shape_new_layers
from hybridizer.plan.origin import BlendUse, Copy
from hybridizer.plan.plan import DonorPin, Evidence, LayerRow, Plan, PlannedTensor
from hybridizer.plan.swap import check_attention_there
from hybridizer.plan.tensors import explain_unused, plan_tensors
from hybridizer.recipe.models import Recipe


def make_plan(recipe: Recipe, donors: Mapping[str, Donor], evidence: Evidence) -> Plan:
    """The plan of `recipe`, whose donors are open and whose layout names donors and numbers. No weight is read.

    Raises RecipeError for layers that do not exist and blends with wrong parameters, PlanError for donors that do not
    fit together; each with all its problems at once, at their lines of the recipe.
    """
    sources = lay_out(recipe, {name: donor.structure.num_layers for name, donor in donors.items()})
    _check_blends(recipe)
    _check_kinds(recipe, sources, donors)
    check_attention_there(recipe, sources, donors)
    check_identity(recipe, sources, donors)
    host = donors[recipe.layout.host]
    used = list_used(sources, donors)
    target = SAFETENSORS_NAMES.get(recipe.output.dtype)
    warnings = _check_donors_fit(recipe, host, donors, used, target)
    in_own_family = fits_own_family(recipe, sources, host)
    native = None if in_own_family else plan_native(recipe, host, donors, sources, target)
    unused = explain_unused(host, donors, used, sources)
    if native is None:
        config, tensors, blends = _plan_own_family(recipe, host, donors, sources, target)
    else:
        config, tensors, blends = native.config, native.tensors, ()
        unused = {name: dict(sorted({**unused[name], **native.replaced.get(name, {})}.items())) for name in unused}
        evidence = replace(evidence, reasons=(native.reason, *evidence.reasons))
    if target is not None:
        set_config_dtype(config, recipe.output.dtype)
    structure = _check_output(recipe, host, config, tensors)
    return Plan(
        name=recipe.name,
        host=host.name,
        seed=recipe.seed,
        executor="native" if native or has_new_layers(sources) else "copy",
        identity_of=native.identity_of if native else _find_identity(host, sources, tensors, config),
        donors={name: _pin(donor) for name, donor in donors.items()},
        layers=_rows(sources, donors, tensors, structure),
        tensors=tensors,
        blends=blends,
        unused=unused,
        config=config,
        tokenizer_files={name: hash_file(path) for name, path in host.tokenizer_files.items()},
        max_shard_bytes=recipe.output.max_shard_bytes,
        warnings=(*recipe.warnings, *warnings, *evidence.warnings),
        evidence=evidence,
        served_by=native.served_by if native else (),
    )


def _plan_own_family(
    recipe: Recipe, host: Donor, donors: Mapping[str, Donor], sources: Sequence[LayerSource], target: str | None
) -> tuple[dict[str, Any], tuple[PlannedTensor, ...], tuple[BlendUse, ...]]:
    """Config, tensors and blends of a model of its donors' own family."""
    shaped = shape_new_layers(recipe, sources, host) if has_new_layers(sources) else tuple(sources)
    firsts = [source.parts[0] for source in shaped]
    config = splice_config(host.structure, [Source(donors[part.donor].structure, part.layer) for part in firsts])
    tensors, blends = plan_tensors(host, donors, shaped, target)
    if has_new_layers(sources):
        tensors = draw_new_layers(tensors, sources, host, recipe.seed)
    return config, tensors, blends


def _check_blends(recipe: Recipe) -> None:
    problems = []
    for index, piece in enumerate(recipe.layout.slices or ()):
        blend = piece.blend
        if blend is None:
            continue
        names = [source.donor for source in blend.sources]
        base = names.index(blend.base) if blend.base is not None else None
        found = check_blend(blend.method, dict(blend.parameters), [dict(s.parameters) for s in blend.sources], base)
        where = recipe.locate(("layout", "slices", index, "blend"))
        problems += [Problem(where, what, fix) for what, fix in found]
    if problems:
        raise RecipeError(*problems)


def _check_kinds(recipe: Recipe, sources: Sequence[LayerSource], donors: Mapping[str, Donor]) -> None:
    for layer, source in enumerate(sources):
        kinds = [donors[part.donor].structure.kinds[part.layer] for part in source.parts]
        if len(set(kinds)) > 1:
            parts = " with ".join(
                f"'{part.donor}' layer {part.layer} ({kind})" for part, kind in zip(source.parts, kinds, strict=True)
            )
            what = f"output layer {layer} would blend {parts}: layers of different kinds."
            fix = "Blend layers of one kind, or copy them."
            raise PlanError(Problem(recipe.locate(("layout", "slices")), what, fix))


def _check_donors_fit(
    recipe: Recipe, host: Donor, donors: Mapping[str, Donor], used: Mapping[str, set[int]], target: str | None
) -> list[str]:
    guests = {name: sorted(layers) for name, layers in used.items() if layers and name != host.name}
    where = {name: recipe.locate(("donors", name)) for name in donors}
    problems, warnings = find_incompatibilities(host, guests, donors, where, convert=target is not None)
    if problems:
        raise PlanError(*problems)
    train = recipe.train
    needed = {entry.generate.from_ for entry in train.data if entry.generate} if train else set()
    stages = train.as_stages() if train else ()
    teachers = {stage.objective.chosen.teacher for stage in stages if stage.objective}
    idle = [name for name in donors if not used[name] and name not in (host.name, *needed, *teachers)]
    return [*warnings, *(f"donor '{name}' gives no layer to the output" for name in idle)]


def _check_output(
    recipe: Recipe, host: Donor, config: Mapping[str, Any], tensors: Sequence[PlannedTensor]
) -> Structure:
    """The output's structure, if transformers can run it. Raises PlanError with every reason, known before a weight is
    read, why it cannot.
    """
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    structure = read_structure(config, shapes, where=f"the output, with the config of host '{host.name}'")
    problems = check_config(structure, recipe.locate(("donors", host.name)))
    problems = [replace(problem, what=f"host '{host.name}': {problem.what}") for problem in problems]
    problems += check_attention_left(structure, recipe.locate(("layout",)))
    if problems:
        raise PlanError(*problems)
    return structure


def _find_identity(
    host: Donor, sources: Sequence[LayerSource], tensors: Sequence[PlannedTensor], config: Mapping[str, object]
) -> str | None:
    """The host, where the model is its host again tensor for tensor, or with new layers without effect."""
    if has_new_layers(sources):
        return host.name if is_whole_host(host, sources, tensors) else None
    same = all(tensor.source == Copy(host.name, tensor.name) for tensor in tensors)
    same = same and len(tensors) == len(host.checkpoint.tensors) and config == host.config
    return host.name if same else None


def _pin(donor: Donor) -> DonorPin:
    structure = donor.structure
    return DonorPin(donor.reference, donor.revision, donor.fingerprint, structure.family, structure.num_layers)


def _rows(
    sources: Sequence[LayerSource],
    donors: Mapping[str, Donor],
    tensors: Sequence[PlannedTensor],
    output: Structure,
) -> tuple[LayerRow, ...]:
    """A row for each layer of `output`."""
    by_layer: dict[str, list[PlannedTensor]] = {}
    prefix = output.layer_prefix
    for tensor in tensors:
        if tensor.name.startswith(prefix):
            by_layer.setdefault(tensor.name.removeprefix(prefix).partition(".")[0], []).append(tensor)
    rows = []
    for layer, source in enumerate(sources):
        own = by_layer[str(layer)]
        rows.append(
            LayerRow(
                layer=layer,
                sources=tuple(f"{part.donor}@{_short(donors[part.donor])} {part.layer}" for part in source.parts),
                method=name_method(source),
                kind=output.kinds[layer],
                parameters=sum(math.prod(tensor.shape) for tensor in own),
                dtype="+".join(sorted({tensor.dtype for tensor in own})),
            )
        )
    return tuple(rows)


def _short(donor: Donor) -> str:
    return (donor.fingerprint or "unpinned").removeprefix("sha256:")[:8]


def set_config_dtype(config: dict[str, Any], dtype: str) -> None:
    """Set every dtype in `config` to `dtype`, under the key that it uses (`dtype` or `torch_dtype`)."""
    found = False
    for section in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in ("dtype", "torch_dtype"):
            if key in section:
                section[key] = dtype
                found = True
    if not found:
        config["torch_dtype"] = dtype
