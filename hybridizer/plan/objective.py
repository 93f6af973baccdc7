"""What an objective needs of its teacher: the tokens, the layers that correspond, and what it adds to a step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hybridizer.core.errors import Problem, RecipeError
from hybridizer.donors.donor import Donor
from hybridizer.donors.vocabulary import compare_vocabularies
from hybridizer.families.reading import read_structure
from hybridizer.families.structure import Structure
from hybridizer.plan.dimensions import ObjectiveShape
from hybridizer.plan.freeze import REST, FreezeChoice
from hybridizer.plan.origin import Copy
from hybridizer.plan.plan import LayerRow, Plan, TrainPlan
from hybridizer.plan.shapes import planned_shape
from hybridizer.recipe.layers import format_layers
from hybridizer.recipe.models import Layout, Train, plain
from hybridizer.recipe.objective import Align

Pairs = tuple[tuple[int, int], ...]
"""Layers of the student, each with the layer of the teacher whose output its output is brought to."""


def check_teacher(train: Train, where: str, host: Donor, teacher: Donor) -> None:
    """Return if `teacher` has the tokens of `host` and takes rows as long. Raises RecipeError at `where`."""
    problems = []
    difference = compare_vocabularies(host, teacher)
    if difference is not None:
        what = f"the teacher's tokens are not the student's: {difference}"
        problems.append(Problem(where, what, "Take a teacher with the tokenizer of the host."))
    longest = teacher.structure.max_tokens
    if longest is not None and longest < train.seq_len:
        what = f"rows of {train.seq_len} tokens; the teacher takes {longest}."
        problems.append(Problem(where, what, f"Set `seq_len` to at most {longest}, or take another teacher."))
    if problems:
        raise RecipeError(*problems)


def resolve_objective(
    layout: Layout, train: Train, plan: Plan, choice: FreezeChoice, host: Structure, teacher: Donor
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The objective as it is in a plan, the teacher by its content and layers by number, and notes about it.

    Raises RecipeError, at `train.<key>`, for layers that do not exist or correspond to none of the teacher's, states of
    another width, targets that nothing trained is below of, and trained layers that no gradient would reach.
    """
    objective = train.objective
    assert objective is not None, "called for objectives with a teacher"
    values: dict[str, Any] = {**plain(objective.chosen), "teacher": teacher.fingerprint or ""}
    notes = [f"{objective.kind}: the teacher is '{teacher.name}' ({teacher.reference}), frozen, in eval mode"]
    if plan.identity_of == teacher.name:
        notes.append(f"{objective.kind}: the student starts as a copy of its teacher, so that the error starts at zero")
    top_k, vocabulary = keeps_largest(train), host.shapes[host.embedding[0]][0]
    if top_k > vocabulary:
        what = f"{top_k} tokens to keep of each distribution; the vocabulary has {vocabulary}."
        raise RecipeError(Problem("train.objective.distill.top_k", what, f"Give at most {vocabulary}; 64 is usual."))
    if isinstance(objective.chosen, Align):
        pairs, problems = _pair_layers(layout, objective.chosen, plan, choice.boundary, teacher)
        problems += list(_misplaced(objective.chosen, pairs, choice, host, teacher.structure))
        if problems:
            raise RecipeError(*(Problem("train.objective.align.at", what, fix) for what, fix in problems))
        values["pairs"] = [list(pair) for pair in pairs]
        shown = ", ".join(f"{ours} to {theirs}" for ours, theirs in pairs)
        notes.append(f"align: outputs of layers are brought to the teacher's: {shown}")
        notes.append("align: losses are not in nats: 1 is the error of a state of zeros, 0 of the teacher's own")
    return {objective.kind: values}, tuple(notes)


def keeps_largest(train: Train) -> int:
    """How many of a teacher's tokens the objective of `train` keeps on disk; 0 where the teacher is in memory."""
    distill = train.objective.distill if train.objective is not None else None
    return (distill.top_k or 0) if distill is not None else 0


def pairs_of(settings: Mapping[str, Any]) -> Pairs:
    """The layers that the settings of a TrainPlan align; none where it has no such objective."""
    return tuple((ours, theirs) for ours, theirs in settings.get("objective", {}).get("align", {}).get("pairs", ()))


def copies_of(plan: Plan, teacher: Donor) -> dict[str, str]:
    """The tensors of the output that are copies of the teacher's, by name, each with its name in the teacher."""
    pinned = {name for name, pin in plan.donors.items() if pin.fingerprint == teacher.fingerprint}
    same = pinned if teacher.fingerprint else {teacher.name}
    return {
        tensor.name: tensor.source.tensor
        for tensor in plan.tensors
        if isinstance(tensor.source, Copy) and tensor.source.donor in same
    }


def count_shared(plan: Plan, stages: Sequence[TrainPlan], teacher: Donor) -> int:
    """The parameters of `teacher` that are in memory once: copies of them in the student are frozen in all `stages`.

    `stages` are the one that trains and those before it, whose values the student keeps.
    """
    frozen = frozenset.intersection(*(_frozen_places(stage) for stage in stages))
    shapes = {tensor.name: tensor.shape for tensor in plan.tensors}
    structure = read_structure(plan.config, shapes, "the planned model")
    parts = {"embedding": structure.embedding, "final norm": structure.final_norm, "head": structure.head}
    places = {name: f"layer {layer}" for layer, names in enumerate(structure.layers) for name in names.values()}
    places |= {name: part for part, names in parts.items() for name in names}
    held = {theirs: name for name, theirs in copies_of(plan, teacher).items() if places.get(name, REST) in frozen}
    return sum(math.prod(shapes[name]) for name in held.values())


def _frozen_places(stage: TrainPlan) -> frozenset[str]:
    places = {*(f"layer {layer}" for layer in stage.frozen_layers), *stage.frozen_parts}
    return frozenset(places | {REST} if stage.frozen_layers else places)


def objective_shape(
    train: Train, settings: Mapping[str, Any], teacher: Donor | None, shared_parameters: int = 0
) -> ObjectiveShape | None:
    """What the objective of `train` adds to a step, `settings` being those of its plan; None for next-token.

    `shared_parameters` of the teacher are the student's own.
    """
    if train.objective is None:
        return None
    assert teacher is not None, "an objective has a teacher"
    tensors = {name: (entry.shape, entry.dtype) for name, entry in teacher.checkpoint.tensors.items()}
    shape, pairs = planned_shape(teacher.config, tensors), pairs_of(settings)
    if not pairs:
        kept = keeps_largest(train)
        shared = 0 if kept else shared_parameters
        return ObjectiveShape(shape, len(shape.layers), True, shared_parameters=shared, kept=kept)
    stops = max(ours for ours, _ in pairs) + 1 if train.objective.chosen.weight == 1 else None
    return ObjectiveShape(shape, max(theirs for _, theirs in pairs) + 1, False, stops, len(pairs), shared_parameters)


def _pair_layers(
    layout: Layout, align: Align, plan: Plan, boundary: int, teacher: Donor
) -> tuple[Pairs, list[tuple[str, str]]]:
    count, depth = len(plan.layers), teacher.structure.num_layers
    if align.at == "boundary" and layout.slices:
        what = "`at` is boundary, and a layout by `slices` has none."
        return (), [(what, "List the layers: at: [14].")]
    named = {"boundary": (boundary - 1,), "last": (count - 1,)}
    layers = named[align.at] if isinstance(align.at, str) else align.at
    beyond = [layer for layer in layers if layer >= count]
    if beyond:
        what = f"`at` lists layers {format_layers(beyond)} of a model with {count} layers (0..{count - 1})."
        return (), [(what, f"Give layers inside 0..{count - 1}.")]
    found = {layer: _counterpart(plan, layer, depth) for layer in layers}
    problems = [
        (
            f"the output of layer {layer} corresponds to no layer of the teacher, which has {depth}.",
            _why_none(plan.layers[layer]),
        )
        for layer, theirs in found.items()
        if theirs is None
    ]
    return tuple((layer, theirs) for layer, theirs in found.items() if theirs is not None), problems


def _counterpart(plan: Plan, layer: int, depth: int) -> int | None:
    """The layer of a teacher of `depth` layers whose output stands where the output of `layer` stands.

    It enters the donor layer that comes next in the output, which may not be the one after this layer's own.
    """
    if layer == len(plan.layers) - 1:
        return depth - 1
    for row, before in ((plan.layers[layer + 1], 1), (plan.layers[layer], 0)):
        donor, number = _origin(row) or ("", -1)
        if number >= before and plan.donors[donor].num_layers == depth:
            return number - before
    return None


def _origin(row: LayerRow) -> tuple[str, int] | None:
    """The first donor that gives a layer, and its number there; None for a new layer."""
    if not row.sources:
        return None
    source, _, number = row.sources[0].rpartition(" ")
    return source.rpartition("@")[0], int(number)


def _why_none(row: LayerRow) -> str:
    """The fix for a layer that corresponds to none of the teacher's."""
    if not row.sources:
        return "The layer is new: give the layer above the new ones, or `at: last`."
    return "Take a teacher of the depth of the donor that gives the layer, or `at: last`."


def _misplaced(
    align: Align, pairs: Pairs, choice: FreezeChoice, host: Structure, teacher: Structure
) -> Iterator[tuple[str, str]]:
    if not pairs:
        return
    width, theirs = (structure.shapes[structure.embedding[0]][-1] for structure in (host, teacher))
    if width != theirs:
        what = f"the teacher's states are {theirs} wide, the student's {width}."
        yield what, "Take a teacher of the same width, or the objective `distill`."
    lowest = 0 if not choice.frozen_embedding else min(choice.trained_layers, default=choice.num_layers)
    first, last = min(ours for ours, _ in pairs), max(ours for ours, _ in pairs)
    if lowest > first:
        what = f"nothing trains at or below layer {first}, so that its output cannot change."
        yield what, f"Give layers from {lowest} on, or train lower ones."
    if align.weight < 1:
        return
    above = [layer for layer in choice.trained_layers if layer > last]
    parts = {"final norm": choice.frozen_final_norm, "head": choice.frozen_head}
    unreached = [f"layers {format_layers(above)}"] if above else []
    unreached += [name for name, frozen in parts.items() if not frozen and not (name == "head" and host.tied)]
    if unreached:
        what = f"{' and '.join(unreached)} would train, and no gradient comes from behind layer {last}."
        yield what, "Freeze them (freeze: deep), align at a later layer, or give `weight` below 1."
