"""Which layers and parts of a model stay frozen, decided from numbers alone: no weights, no torch.

A layer is chosen by its index, never by a name: as text, `layers.1` also hits layers 10 to 19.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from hybridizer.core.errors import Problem, RecipeError
from hybridizer.recipe.layers import format_layers
from hybridizer.recipe.models import ORIGINALS, Part, Train

PARTS = ("embedding", "final norm", "head")
REST = "outside the layers"


@dataclass(frozen=True)
class FreezeChoice:
    """What a `train` section freezes in one model: layer numbers, parts, and notes for the reader."""

    num_layers: int
    boundary: int  # layers 0..boundary-1 are shallow, the rest deep
    frozen_layers: tuple[int, ...]
    frozen_embedding: bool
    frozen_final_norm: bool
    frozen_head: bool
    notes: tuple[str, ...] = ()

    @property
    def trained_layers(self) -> tuple[int, ...]:
        """The layers that train, shallow first."""
        return tuple(i for i in range(self.num_layers) if i not in set(self.frozen_layers))

    @property
    def frozen_parts(self) -> tuple[str, ...]:
        """Those of embedding, final norm and head that are frozen."""
        frozen = (self.frozen_embedding, self.frozen_final_norm, self.frozen_head)
        return tuple(part for part, is_frozen in zip(PARTS, frozen, strict=True) if is_frozen)

    @property
    def frozen_places(self) -> frozenset[str]:
        """What is frozen: `layer 3`, `embedding`, `final norm`, `head`, and what is in no part where a layer is."""
        places = {*(f"layer {i}" for i in self.frozen_layers), *self.frozen_parts}
        return frozenset(places | {REST} if self.frozen_layers else places)


def trained_parts(frozen_parts: Collection[str]) -> tuple[str, ...]:
    """The parts outside the layers that are not among `frozen_parts`."""
    return tuple(part for part in PARTS if part not in frozen_parts)


def choose_frozen(settings: Train, num_layers: int, boundary: int, tied: bool) -> FreezeChoice:
    """What `settings` freeze in a model of `num_layers` layers with `boundary` shallow ones.

    `tied`: embedding and head are one tensor. It is trained or frozen as a whole: as the recipe requests for either
    part by name; where neither is named and the sides differ it is frozen, because a head that changes also changes
    the output of the frozen deep side.
    Raises RecipeError for layers outside the model, a boundary that leaves one side empty, a tied tensor requested to
    both train and freeze, and a choice that leaves nothing to train.
    """
    frozen_layers = _frozen_layers(settings.freeze, num_layers, boundary)
    first, last = 0 in frozen_layers, num_layers - 1 in frozen_layers
    embedding = _frozen_part(settings.embedding, side=first)
    final_norm = _frozen_part(settings.final_norm, side=last)
    head = _frozen_part(settings.head, side=last)
    notes: tuple[str, ...] = ()
    if tied:
        embedding, note = _is_tied_frozen(settings, embedding, head)
        head, notes = embedding, (note,)
    if embedding and final_norm and head and len(frozen_layers) == num_layers:
        raise RecipeError(
            Problem(
                "train.freeze",
                f"freezes all {num_layers} layers, embedding, final norm and head: nothing is left to train.",
                "Leave at least one layer out of it, or drop the `train` section.",
            )
        )
    return FreezeChoice(num_layers, boundary, tuple(sorted(frozen_layers)), embedding, final_norm, head, notes)


def side_of(place: str, boundary: int) -> str:
    """`shallow` or `deep`: the side of a place, which is `layer 3`, `embedding`, `final norm`, `head` or another."""
    if place.startswith("layer "):
        return "shallow" if int(place.removeprefix("layer ")) < boundary else "deep"
    return "deep" if place in {"final norm", "head"} else "shallow"


def with_adapters(choice: FreezeChoice) -> FreezeChoice:
    """`choice` for training low-rank adapters: they are added to the layers that train; all three parts are frozen.

    The note about a tied tensor is dropped: it no longer holds.
    """
    return replace(choice, frozen_embedding=True, frozen_final_norm=True, frozen_head=True, notes=())


def _frozen_part(choice: Part, side: bool) -> bool:
    return side if choice == "side" else choice == "freeze"


def _is_tied_frozen(settings: Train, embedding: bool, head: bool) -> tuple[bool, str]:
    """Whether the one tensor of embedding and head is frozen, and a note about it for the reader."""
    named = {choice for choice in (settings.embedding, settings.head) if choice != "side"}
    if len(named) == 2:
        raise RecipeError(
            Problem(
                "train.freeze",
                f"embedding: {settings.embedding}, head: {settings.head}, but the two are one tied tensor here.",
                "Give both the same value, or name only one of them.",
            )
        )
    frozen = "freeze" in named if named else embedding or head
    verb = "frozen" if frozen else "trained"
    if named or embedding == head:
        return frozen, f"embedding and head are one tied tensor, {verb} as a whole"
    return frozen, "embedding and head are one tied tensor, frozen as a whole because one of their sides is frozen"


def _frozen_layers(layers: str | tuple[int, ...], num_layers: int, boundary: int) -> set[int]:
    if not isinstance(layers, str):
        return _listed_layers(layers, num_layers)
    assert layers != ORIGINALS, "resolved by freeze_originals, which knows the layout"
    if layers == "none":
        return set()
    if not 0 < boundary < num_layers:
        raise RecipeError(
            Problem(
                "train.freeze",
                f"'{layers}' with a boundary of {boundary} selects nothing or everything of {num_layers} layers.",
                f"Give a boundary inside 1..{num_layers - 1}.",
            )
        )
    return set(range(boundary, num_layers)) if layers == "deep" else set(range(boundary))


def _listed_layers(layers: tuple[int, ...], num_layers: int) -> set[int]:
    beyond = [layer for layer in layers if layer >= num_layers]
    if beyond:
        raise RecipeError(
            Problem(
                "train.freeze",
                f"layers {format_layers(beyond)} requested of a model with {num_layers} layers (0..{num_layers - 1}).",
                f"Give layers inside 0..{num_layers - 1}, or deep, shallow or none.",
            )
        )
    return set(layers)
