"""Layers of donors as layers of another family, beside layers with new mixers: tensors and config of the output.

What the target needs is in hybridizer.families.target; here it meets donors and a recipe. No weight is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hybridizer.checkpoint.dtypes import FLOATING
from hybridizer.core.errors import PlanError, Problem
from hybridizer.donors.donor import Donor
from hybridizer.families.families import read_traits
from hybridizer.families.target import (
    EMBEDDING,
    HEAD,
    LAYER_PREFIX,
    Facts,
    LayerMap,
    Made,
    Served,
    Sizes,
    Target,
    read_facts,
)
from hybridizer.families.targets import find_target
from hybridizer.plan.identity import METHOD as IDENTITY
from hybridizer.plan.layout import LayerSource
from hybridizer.plan.origin import ZERO, Affine, Convert, Copy, Derived, Fitted, Fresh, Join, Origin, Source, Spread
from hybridizer.plan.plan import PlannedTensor
from hybridizer.plan.starts import ATTENTION, check_starts, pin_calibration
from hybridizer.plan.swap import locate_slice
from hybridizer.recipe.models import Recipe


@dataclass(frozen=True)
class NativePlan:
    """The part of a plan that is another family's: config, tensors, who runs it, and why."""

    config: dict[str, Any]
    tensors: tuple[PlannedTensor, ...]
    served_by: tuple[Served, ...]
    reason: str
    identity_of: str | None
    replaced: Mapping[str, Mapping[str, str]]


def plan_native(
    recipe: Recipe, host: Donor, donors: Mapping[str, Donor], sources: Sequence[LayerSource], dtype: str | None
) -> NativePlan:
    """The output of `recipe` in the family that holds its layers; `dtype` is the one to convert to, None to keep.

    Raises PlanError, with all problems of the first check that finds any, where no family holds them, a donor misses a
    condition of the family, a mixer cannot have the sizes, or a tensor has no place.
    """
    kinds = frozenset(source.mixer for source in sources if source.mixer is not None)
    family = host.structure.text_family
    target, reason, fix = find_target(family, kinds, recipe.layout.target)
    if target is None:
        raise PlanError(Problem(_first_new(recipe, sources), reason, fix))
    used = {part.donor for source in sources for part in source.parts} | {host.name}
    facts = {name: read_facts(donors[name].structure) for name in donors if name in used}
    _check_conditions(recipe, target, facts, sources)
    sizes = _choose_sizes(recipe, target, facts[host.name])
    check_starts(recipe, target, host, facts[host.name], sizes, sources)
    assembly = _Assembly(recipe, target, host, donors, facts, sizes, dtype, pin_calibration(recipe, sources))
    tensors = [*assembly.ends(), *(t for layer, source in enumerate(sources) for t in assembly.layer(layer, source))]
    config = _write_config(recipe, target, facts[host.name], sizes, sources)
    exact = target.bit_exact or host.main_dtype == "F32"
    if not exact:
        reason += (
            f" Its numbers are the donor's within rounding: {host.main_dtype} cannot hold all weights of its norms."
        )
    return NativePlan(
        config,
        tuple(tensors),
        target.served_by(facts[host.name], _layer_names(target, sources), config),
        reason,
        host.name if exact and is_whole_host(host, sources, tensors, target.branch) else None,
        _replaced(donors, sources, tensors),
    )


def _first_new(recipe: Recipe, sources: Sequence[LayerSource]) -> str:
    """The line of the first slice with a new mixer, or that of `target`."""
    index = next((source.slice for source in sources if source.mixer is not None), None)
    return recipe.locate(("layout", "target")) if index is None else locate_slice(recipe, index)


def _check_conditions(
    recipe: Recipe, target: Target, facts: Mapping[str, Facts], sources: Sequence[LayerSource]
) -> None:
    problems = [
        Problem(
            recipe.locate(("donors", name)),
            f"donor '{name}' in the family {target.family}, which needs that {condition.says}: {found}.",
            condition.fix,
        )
        for name, fact in facts.items()
        for condition in target.conditions
        if (found := condition.broken(fact)) is not None
    ]
    problems += [
        Problem(
            locate_slice(recipe, source.slice),
            f"a {source.mixer} in the place of attention, in the family {target.family}: {target.no_swap}.",
            f"Add new layers instead, as {{fresh: {source.mixer}}}.",
        )
        for source in sources
        if source.parts and source.mixer is not None and target.no_swap is not None
    ]
    problems += [
        Problem(
            locate_slice(recipe, source.slice),
            f"a blend in a model of another family than its donors' ({target.family}).",
            "Blend first, in a recipe of its own, and take the blended model as donor.",
        )
        for source in dict.fromkeys(source for source in sources if source.blend is not None)
    ]
    problems += [
        Problem(
            locate_slice(recipe, source.slice),
            f"an identity layer in a model of another family than its donor's ({target.family}).",
            "Write `zero_output: true` with a `mixer` or `fresh`, or grow the donor first, in a recipe of its own.",
        )
        for source in dict.fromkeys(source for source in sources if source.identity)
    ]
    if problems:
        raise PlanError(*dict.fromkeys(problems))


def _choose_sizes(recipe: Recipe, target: Target, host: Facts) -> Sizes:
    """The sizes of the new mixers: the recipe's where it gives them, and those that the host suggests."""
    suggested = target.suggest_sizes(host)
    asked = recipe.layout.mixer_sizes
    given = {key: value for key, value in vars(asked).items() if isinstance(value, int)} if asked else {}
    where = recipe.locate(("layout", "mixer_sizes"))
    problems = [
        Problem(
            where, f"`{key}` has no effect on the mixers of a {target.family}.", f"It takes {', '.join(suggested)}."
        )
        for key in given
        if key not in suggested
    ]
    sizes = {**suggested, **given}
    if not problems:
        fix = f"Sizes that fit: {', '.join(f'{key} {value}' for key, value in suggested.items())}."
        problems = [Problem(where, what, fix) for what in target.check_sizes(host, sizes)]
    if problems:
        raise PlanError(*problems)
    return sizes


def _layer_names(target: Target, sources: Sequence[LayerSource]) -> list[str]:
    return [target.attention if source.mixer is None else target.mixers[source.mixer] for source in sources]


def _write_config(
    recipe: Recipe, target: Target, host: Facts, sizes: Sizes, sources: Sequence[LayerSource]
) -> dict[str, Any]:
    names = _layer_names(target, sources)
    kinds = {} if target.branch else {"layer_types": names}
    config = {**target.write_config(host, sizes), "num_hidden_layers": len(names), **kinds}
    attention = next(trait for trait in read_traits(target.family) if trait.name == "attention")
    if problem := attention.rule(attention.decode(config, len(names))):
        where = recipe.locate(("layout", "slices"))
        raise PlanError(
            Problem(where, f"layers in this order: the family {target.family} works {problem}.", "Change them.")
        )
    return config


def name_method(source: LayerSource) -> str:
    """How a layer is made, for tables."""
    if source.blend is not None:
        return source.blend.method
    if source.identity:
        return IDENTITY
    if not source.parts:
        return f"fresh {source.mixer}"
    if source.mixer is None:
        return "copy"
    return source.mixer if source.mixer.startswith("parallel ") else f"{source.mixer} for attention"


def is_whole_host(
    host: Donor, sources: Sequence[LayerSource], tensors: Sequence[PlannedTensor], branch: str | None = None
) -> bool:
    """Whether every layer is the host's own in order, or new and without effect, and none of its numbers is rounded.

    `branch` is the kind of mixer beside an attention, which has no effect with an output of zero.
    """
    kept = [source for source in sources if source.parts or not source.zero_output]
    silent = [s for s in kept if s.mixer is None or (s.zero_output and s.mixer == branch)]
    own = [part for source in silent for part in source.parts if part.donor == host.name]
    if [part.layer for part in own] != list(range(host.structure.num_layers)) or len(own) != len(kept):
        return False
    stored = host.checkpoint.tensors
    return all(t.dtype == stored[o.tensor].dtype for t in tensors for o in t.source.origins)


def _replaced(
    donors: Mapping[str, Donor], sources: Sequence[LayerSource], tensors: Sequence[PlannedTensor]
) -> dict[str, dict[str, str]]:
    """The tensors of used layers that have no use, because a new mixer stands in their place, by donor."""
    taken = {(origin.donor, origin.tensor) for tensor in tensors for origin in tensor.source.origins}
    found: dict[str, dict[str, str]] = {}
    for source in sources:
        for part in source.parts:
            for name in donors[part.donor].structure.layers[part.layer].values():
                if (part.donor, name) not in taken:
                    found.setdefault(part.donor, {})[name] = f"replaced by {source.mixer}"
    return found


@dataclass(frozen=True)
class _Assembly:
    """Makes the planned tensors of one output."""

    recipe: Recipe
    target: Target
    host: Donor
    donors: Mapping[str, Donor]
    facts: Mapping[str, Facts]
    sizes: Sizes
    dtype: str | None
    calibration: tuple[str, int, int]

    def ends(self) -> list[PlannedTensor]:
        """Embedding, final norm and head, which are the host's."""
        found = self.host.structure
        names = {**dict.fromkeys(found.embedding, EMBEDDING), **dict.fromkeys(found.head, HEAD)}
        made = {names[name]: Made("copy", (name,)) for name in (*found.embedding, *found.head)}
        if found.final_norm:
            made[self.target.final_norm] = self.target.map_norm(found.final_norm[0])
        placed = {*found.embedding, *found.head, *found.final_norm[:1]}
        lost = [n for n in (*found.final_norm, *(e.name for e in found.extra if e.kept)) if n not in placed]
        lost += [name for name in placed if not name.endswith(".weight")]
        self._refuse_lost(self.host, lost)
        return self._planned(self.host, "", {name: name for name in placed}, made)

    def layer(self, layer: int, source: LayerSource) -> list[PlannedTensor]:
        """The tensors of output layer `layer`."""
        prefix = f"{LAYER_PREFIX}{layer}."
        if not source.parts:
            new = self.target.new_block
            shapes = dict(new(self.facts[self.host.name])) if new else self._mapped_shapes()
            return self._fresh(prefix, source, {**shapes, **self._mixer_shapes()}, ("network",))
        part = source.parts[0]
        donor = self.donors[part.donor]
        names = donor.structure.layers[part.layer]
        mapped = self._map(part.donor, names)
        self._refuse_lost(donor, [name for suffix, name in names.items() if suffix not in mapped.used])
        if self.target.branch is not None:
            own = self._planned(donor, prefix, names, {**mapped.block, **mapped.attention})
            return [*own, *self._with_branch(prefix, source)]
        if source.mixer is None:
            return self._planned(donor, prefix, names, {**mapped.block, **mapped.attention})
        block = self._planned(donor, prefix, names, mapped.block)
        if source.fit != "none" or source.init != "fresh":
            return [*block, *self._started(prefix, source, donor, names)]
        return [*block, *self._fresh(prefix, source, self._mixer_shapes(), ())]

    def _started(self, prefix: str, source: LayerSource, donor: Donor, names: Mapping[str, str]) -> list[PlannedTensor]:
        """The tensors of a mixer that is derived from the attention it replaces, or fitted to it.

        `names` maps the suffixes of the layer that it is in to the donor's tensors.
        """
        assert source.mixer is not None
        seed, used = self.recipe.seed, [names[suffix] for suffix in sorted(names) if suffix.endswith(ATTENTION)]
        origins = tuple(Origin(donor.name, name) for name in used)
        made: Source = Derived(source.mixer, origins, seed)
        if source.fit != "none":
            made = Fitted(source.mixer, source.init, origins, seed, *self.calibration)
        outputs = self.target.outputs[source.mixer] if source.zero_output else ()
        dtype = self.dtype or self.host.main_dtype
        return [
            PlannedTensor(f"{prefix}{suffix}", dtype, shape, Fresh(ZERO, seed) if suffix in outputs else made)
            for suffix, shape in self._mixer_shapes().items()
        ]

    def _with_branch(self, prefix: str, source: LayerSource) -> list[PlannedTensor]:
        """The branch beside the attention that every layer of the target has: without effect where none was asked."""
        branch = replace(source, mixer=self.target.branch, zero_output=source.zero_output or source.mixer is None)
        return self._fresh(prefix, branch, self._mixer_shapes(), ())

    def _map(self, donor: str, names: Mapping[str, str]) -> LayerMap:
        shapes = {suffix: self.donors[donor].checkpoint.tensors[name].shape for suffix, name in names.items()}
        return self.target.map_layer(self.facts[donor], shapes)

    def _mixer_shapes(self) -> dict[str, tuple[int, ...]]:
        return dict(self.target.mixer_shapes(self.facts[self.host.name], self.sizes))

    def _mapped_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of norms and network, which new layers share with the host's first layer."""
        names = self.host.structure.layers[0]
        block = self._map(self.host.name, names).block
        return {t.name: t.shape for t in self._planned(self.host, "", names, block)}

    def _fresh(
        self, prefix: str, source: LayerSource, shapes: Mapping[str, tuple[int, ...]], parts: tuple[str, ...]
    ) -> list[PlannedTensor]:
        assert source.mixer is not None, "only layers with a new mixer have fresh tensors"
        outputs = {suffix for part in (source.mixer, *parts) for suffix in self.target.outputs[part]}
        dtype, seed = self.dtype or self.host.main_dtype, self.recipe.seed
        return [
            PlannedTensor(
                f"{prefix}{suffix}",
                dtype,
                shape,
                Fresh(ZERO if source.zero_output and suffix in outputs else self.target.family, seed),
            )
            for suffix, shape in shapes.items()
        ]

    def _planned(
        self, donor: Donor, prefix: str, names: Mapping[str, str], made: Mapping[str, Made]
    ) -> list[PlannedTensor]:
        """The tensors that are `made` of donor tensors, in the order of the donor's file; `names` maps suffixes."""
        entries = donor.checkpoint.tensors

        def place(suffix: str) -> tuple[str, int, str]:
            first = [entries[names[of]] for of in made[suffix].of[:1]]
            return (first[0].file.name, first[0].begin, suffix) if first else ("", 0, suffix)

        return [self._tensor(donor, f"{prefix}{suffix}", names, made[suffix]) for suffix in sorted(made, key=place)]

    def _tensor(self, donor: Donor, output: str, names: Mapping[str, str], made: Made) -> PlannedTensor:
        missing = [suffix for suffix in made.of if suffix not in names]
        if missing:
            what = f"its layers have no '{missing[0]}', which the family {self.target.family} needs."
            fix = "Take another donor: this one is not built as its family is."
            raise PlanError(Problem(self._line(donor), f"donor '{donor.name}': {what}", fix))
        if made.how == "zero":
            dtype = self.dtype or donor.main_dtype
            return PlannedTensor(output, dtype, made.shape, Fresh(ZERO, self.recipe.seed))
        entries = [donor.checkpoint.tensors[names[suffix]] for suffix in made.of]
        found = {entry.dtype for entry in entries}
        if self.dtype is None and len(found) > 1:
            what = f"donor '{donor.name}' holds {' and '.join(made.of)} in {' and '.join(sorted(found))}."
            raise PlanError(Problem(self._line(donor), what, "Set `output: {dtype: bfloat16}`, or another dtype."))
        dtype = self.dtype if self.dtype is not None and found <= set(FLOATING) else entries[0].dtype
        origins = tuple(Origin(donor.name, names[suffix]) for suffix in made.of)
        source = _source(made, origins, converted=found != {dtype})
        shape = entries[0].shape
        if made.how == "join":
            shape = (sum(entry.shape[0] for entry in entries), *shape[1:])
        if made.how == "spread":
            shape = (2 * shape[0], *shape[1:])
        return PlannedTensor(output, dtype, shape, source)

    def _refuse_lost(self, donor: Donor, names: Sequence[str]) -> None:
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            what = f"donor '{donor.name}': the family {self.target.family} has no place for '{names[0]}'{more}."
            fix = "Take a donor without it, or keep the donors' own family: leave `mixer`, `fresh` and `target` out."
            raise PlanError(Problem(self._line(donor), what, fix))

    def _line(self, donor: Donor) -> str:
        return self.recipe.locate(("donors", donor.name))


def _source(made: Made, origins: tuple[Origin, ...], *, converted: bool) -> Source:
    first = origins[0]
    if made.how == "join":
        return Join(origins, converted)
    if made.how == "affine":
        return Affine(first.donor, first.tensor, made.factor, made.shift)
    if made.how == "spread":
        return Spread(first.donor, first.tensor, made.rows)
    assert made.how == "copy", made
    return (Convert if converted else Copy)(first.donor, first.tensor)
