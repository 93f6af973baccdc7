"""The stages of a training of swapped or new layers, where a recipe names neither stages nor an objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hybridizer.donors.donor import Donor
from hybridizer.donors.vocabulary import compare_vocabularies
from hybridizer.plan.layout import LayerSource, lay_out
from hybridizer.recipe.models import ORIGINALS, Recipe, Stage, Train
from hybridizer.recipe.objective import NEXT_TOKEN, Align, Distill, Objective
from hybridizer.recipe.sections import fill_in

# [ours] Shares of the tokens. States first, while one layer cannot undo what another learns; then the next tokens.
SHARES = {"align": 0.2, "distill": 0.6, NEXT_TOKEN: 0.2}


def add_default_stages(recipe: Recipe, donors: Mapping[str, Donor]) -> tuple[Recipe, tuple[str, ...]]:
    """`recipe` with its training in stages, align, distill and next-token, and a sentence about them.

    It comes back unchanged where it has `stages` or an `objective`, `next-token` too, or no layer whose attention was
    replaced or that is new; with a reason where such a layer cannot have those stages. The teacher is the donor whose
    layers were swapped, or the host. The layout is resolved.
    """
    train = recipe.train
    if train is None or train.stages is not None or train.objective is not None or _names_objective(recipe):
        return recipe, ()
    sources = lay_out(recipe, {name: donor.structure.num_layers for name, donor in donors.items()})
    new = [layer for layer, source in enumerate(sources) if _is_replaced(source)]
    if not new:
        return recipe, ()
    swapped = (part.donor for layer in new for part in sources[layer].parts)
    teacher = next(swapped, recipe.layout.host)
    if reason := _why_not(recipe, train, donors, teacher):
        return recipe, (f"Training is by the next token alone: {reason}.",)
    at = _aligned(sources, new, teacher)
    stages = _make(train, teacher, at)
    made = ", ".join(f"{stage.name} {stage.tokens:,} tokens" for stage in stages)
    said = f"Training is in the stages that are the default for swapped and new layers: {made}; the teacher is "
    said += f"'{teacher}'. `train.stages` or `train.objective` replaces them."
    return fill_in(recipe, train=fill_in(train, stages=stages)), (said,)


def _names_objective(recipe: Recipe) -> bool:
    """Whether the recipe gives `objective`, be it the next token, of which nothing else is left."""
    return ("train", "objective") in recipe.places


def _is_replaced(source: LayerSource) -> bool:
    return source.mixer is not None and not source.mixer.startswith("parallel ")


def _why_not(recipe: Recipe, train: Train, donors: Mapping[str, Donor], teacher: str) -> str | None:
    if train.lora is not None:
        return "stages cannot train adapters"
    if train.tokens < 10 * _step(train):
        return f"{train.tokens:,} tokens are fewer than ten steps of {_step(train):,}"
    if teacher != recipe.layout.host:
        difference = compare_vocabularies(donors[recipe.layout.host], donors[teacher])
        if difference is not None:
            return f"the tokens of '{teacher}', whose layers were swapped, are not the host's: {difference.rstrip('.')}"
    longest = donors[teacher].structure.max_tokens
    if longest is not None and longest < train.seq_len:
        return f"rows of {train.seq_len} tokens are longer than '{teacher}' takes"
    return None


def _aligned(sources: Sequence[LayerSource], new: Sequence[int], teacher: str) -> tuple[int, ...]:
    """The new layers whose output stands where a layer of the teacher's does: it enters the teacher's next layer."""
    found = []
    for layer in new:
        parts = sources[layer].parts
        behind = sources[layer + 1].parts if layer + 1 < len(sources) else ()
        enters = any(part.donor == teacher and part.layer > 0 for part in behind)
        if layer == len(sources) - 1 or enters or any(part.donor == teacher for part in parts):
            found.append(layer)
    return tuple(found)


def _make(train: Train, teacher: str, at: tuple[int, ...]) -> tuple[Stage, ...]:
    """Stages of whole steps, the last with what is left over."""
    objectives = {
        "align": Objective(align=Align(teacher=teacher, at=at)) if at else None,
        "distill": Objective(distill=Distill(teacher=teacher)),
    }
    stages, step = list[Stage](), _step(train)
    for kind, objective in objectives.items():
        if objective is not None:
            tokens = max(1, int(train.tokens * SHARES[kind] / step + 0.5)) * step
            freeze = {"freeze": ORIGINALS} if kind == "align" else {}
            stages.append(fill_in(Stage(tokens=tokens, name=kind), objective=objective, **freeze))
    left = train.tokens - sum(stage.tokens for stage in stages)
    return (*stages, Stage(tokens=left, name=NEXT_TOKEN))


def _step(train: Train) -> int:
    return train.seq_len * train.global_batch_size
