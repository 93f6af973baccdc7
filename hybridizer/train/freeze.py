"""From a freeze choice to the tensors that train, and the proof that exactly those changed.

Tensors are found through the modules that hold them, never by matching their names. The proof compares bytes, so it
also catches what flags cannot: a wrapper that registered a frozen tensor again and so made it trainable.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hybridizer.checkpoint.hashing import hash_chunks
from hybridizer.core.errors import Problem, RecipeError, RunError
from hybridizer.models.parts import ModelParts
from hybridizer.models.sharding import local_part, unshard
from hybridizer.plan.freeze import FreezeChoice, choose_frozen, with_adapters
from hybridizer.recipe.models import Lora, Train
from hybridizer.train.lora import add_lora_

REST = "outside the layers"


@dataclass(frozen=True)
class FreezePlan:
    """Which tensors of one model train: name -> place, where a place is `layer 3`, `embedding`, `head` and so on.

    Names are those of `model.named_parameters()`, a shared tensor under its first name, in model order.
    """

    choice: FreezeChoice
    trained: Mapping[str, str]
    frozen: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def side(self, name: str) -> str:
        """`shallow` or `deep`: the side on which the tensor `name` sits."""
        place = self.trained.get(name) or self.frozen[name]
        if place.startswith("layer "):
            return "shallow" if int(place.removeprefix("layer ")) < self.choice.boundary else "deep"
        return "deep" if place in {"final norm", "head"} else "shallow"


def plan_freeze(model: nn.Module, parts: ModelParts, settings: Train, boundary: int) -> FreezePlan:
    """Which parameters of `model` train under `settings`; the model is not touched.

    A tensor that several places share (tied embeddings, blocks used twice) is frozen if one of the places is. What is
    in no part (position tables, norms behind the embedding) trains only when no layer is frozen; the notes list it.
    Raises RecipeError where `choose_frozen` does, and for a part that is named and has no tensor.
    """
    _refuse_missing_parts(parts, settings)
    tied = bool(_ids(parts.embedding) & _ids(parts.head))
    choice = choose_frozen(settings, len(parts.layers), boundary, tied)
    places = _places(parts)
    frozen_places = _frozen_places(choice)
    trained: dict[str, str] = {}
    frozen: dict[str, str] = {}
    for name, parameter in model.named_parameters():
        homes = places.get(id(parameter), [REST])
        side = frozen if any(home in frozen_places for home in homes) else trained
        side[name] = next((home for home in homes if home in frozen_places), homes[0])
    assert trained, "choose_frozen leaves something to train"
    return FreezePlan(choice, trained, frozen, choice.notes + _notes(trained, frozen, places, model))


def plan_lora_(model: nn.Module, parts: ModelParts, plan: FreezePlan, settings: Lora, seed: int = 0) -> FreezePlan:
    """Put low-rank adapters on the linear modules of the layers that `plan` trains; the plan that trains only those.

    Everything else is frozen, the adapted weights, the embedding, the norms and the head included. Adapters begin with
    random numbers of `seed`. Raises InputError as `add_lora_` does.
    """
    known = {id(parameter) for parameter in model.parameters()}
    trained = {id(module) for i in plan.choice.trained_layers for module in parts.layers[i].modules()}
    linears = [name for name, module in model.named_modules() if id(module) in trained and type(module) is nn.Linear]
    add_lora_(model, linears, settings, seed)
    places = _places(parts)
    trained_places: dict[str, str] = {}
    frozen_places: dict[str, str] = {}
    for name, parameter in model.named_parameters():
        side = frozen_places if id(parameter) in known else trained_places
        side[name] = places.get(id(parameter), [REST])[0]
    note = f"low-rank adapters of rank {settings.rank} on {len(linears)} linear modules train, and nothing else"
    kept = [other for other in plan.notes if other not in plan.choice.notes]  # those about a tied table no longer hold
    return FreezePlan(with_adapters(plan.choice), trained_places, frozen_places, (*kept, note))


def apply_freeze_(model: nn.Module, plan: FreezePlan) -> None:
    """Set `requires_grad` of every parameter of `model` as planned. Raises RunError when the names do not fit."""
    parameters = dict(model.named_parameters())
    _refuse_other_names(parameters, plan)
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in plan.trained)


def check_freeze(model: nn.Module, plan: FreezePlan) -> None:
    """Return if every parameter of `model` is trainable or frozen as planned; raise RunError naming those that are not.

    To be called after anything that may have replaced parameters: casting, adapters, compilation, sharding.
    """
    parameters = dict(model.named_parameters())
    _refuse_other_names(parameters, plan)
    thawed = [name for name in plan.frozen if parameters[name].requires_grad]
    stuck = [name for name in plan.trained if not parameters[name].requires_grad]
    if thawed or stuck:
        what = f"frozen but trainable again: {_list(thawed)}; planned to train but frozen: {_list(stuck)}."
        fix = "Something registered these tensors again after the freeze: wrap first, then freeze."
        raise RunError(Problem("freeze", what, fix))


class FreezeProof:
    """Bytes before against bytes after: every trained tensor changed, no frozen one did.

    Made from the parameters (name -> tensor) as loaded, before any cast. This takes one pass over the weights, and the
    end one over the frozen ones; `begin` and `check_first_step` take one pass each over masters and frozen tensors.
    """

    def __init__(self, plan: FreezePlan, parameters: Mapping[str, Tensor]) -> None:
        self._plan = plan
        self.frozen_sha256 = {name: tensor_sha256(parameters[name]) for name in plan.frozen}
        self._before: dict[str, int] = {}

    def begin(self, masters: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
        """Remember the checksums of the float32 masters of what trains, and of the frozen parameters as cast."""
        self._before = {name: checksum(tensor) for name, tensor in self._taking_part(masters, parameters).items()}

    def check_first_step(
        self, masters: Mapping[str, Tensor], parameters: Mapping[str, Tensor], reached: Collection[str]
    ) -> tuple[str, ...]:
        """The trained tensors that no gradient reached (`reached` names the others), after one step from `begin`.

        A mixture of experts leaves some out of one batch; a layer without any gradient is an error. Raises RunError
        for that, for a tensor that had a gradient and did not change, and for a frozen one that changed.
        """
        now = self._taking_part(masters, parameters)
        same = {name for name, tensor in now.items() if checksum(tensor) == self._before[name]}
        stuck = [name for name in self._plan.trained if name in same and name in reached]
        if stuck:
            fix = "The learning rate is too small for these weights' precision, or the optimizer does not hold them."
            raise RunError(Problem("first step", f"had a gradient and did not change: {_list(stuck)}.", fix))
        self._refuse_dead_places(same)
        _refuse_changed("first step", [name for name in self._plan.frozen if name not in same])
        return tuple(name for name in self._plan.trained if name in same)

    def check_end(self, parameters: Mapping[str, Tensor]) -> None:
        """Return if the frozen tensors have the hashes of the beginning; raise RunError naming those that changed.

        To be called after every cast is undone, by every process where tensors are sharded over processes.
        """
        hashes = self.frozen_sha256
        _refuse_changed("end of training", [n for n in hashes if tensor_sha256(parameters[n]) != hashes[n]])

    def _taking_part(self, masters: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {**masters, **{name: parameters[name] for name in self._plan.frozen}}

    def _refuse_dead_places(self, still: set[str]) -> None:
        by_place: dict[str, list[str]] = defaultdict(list)
        for name in self._plan.trained:
            by_place[self._plan.trained[name]].append(name)
        dead = [place for place, names in by_place.items() if still.issuperset(names)]
        if dead:
            fix = "The graph is cut before them: look for reentrant checkpointing or a detached activation."
            raise RunError(Problem("first step", f"no gradient reached {_list(dead)}.", fix))


def checksum(tensor: Tensor) -> int:
    """CRC-32 of the bytes of `tensor`, of this process's shard if it is sharded: fast, not proof against malice."""
    return zlib.crc32(_bytes(tensor))


def tensor_sha256(tensor: Tensor) -> str:
    """`sha256:<hex>` of the bytes of `tensor` in its own precision, row by row, as safetensors stores them.

    Every process must call this for a tensor that is sharded over them.
    """
    return f"sha256:{hash_chunks([_bytes(unshard(tensor))])}"


def _bytes(tensor: Tensor) -> Any:
    return local_part(tensor).detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _refuse_changed(where: str, names: list[str]) -> None:
    if names:
        fix = "This is a bug in the training code or in a wrapper around the model: please report it."
        raise RunError(Problem(where, f"frozen tensors changed: {_list(names)}.", fix))


def _ids(module: nn.Module | None) -> set[int]:
    return set() if module is None else {id(parameter) for parameter in module.parameters()}


def _places(parts: ModelParts) -> dict[int, list[str]]:
    """Parameter identity -> the places that hold it, in the order of the forward pass."""
    places: dict[int, list[str]] = defaultdict(list)
    named = [("embedding", parts.embedding), *((f"layer {i}", layer) for i, layer in enumerate(parts.layers))]
    for place, module in [*named, ("final norm", parts.final_norm), ("head", parts.head)]:
        for identity in _ids(module):
            places[identity].append(place)
    return places


def _frozen_places(choice: FreezeChoice) -> set[str]:
    parts = {"embedding": choice.frozen_embedding, "final norm": choice.frozen_final_norm, "head": choice.frozen_head}
    places = {f"layer {i}" for i in choice.frozen_layers} | {place for place, frozen in parts.items() if frozen}
    return places | {REST} if choice.frozen_layers else places


def _refuse_missing_parts(parts: ModelParts, settings: Train) -> None:
    requests = {"final_norm": (settings.final_norm, parts.final_norm), "head": (settings.head, parts.head)}
    for name, (choice, module) in requests.items():
        if choice != "side" and not _ids(module):
            what = f"is `{choice}` for the {name.replace('_', ' ')}, and this model has no such tensor."
            raise RecipeError(Problem(f"train.{name}", what, f"Drop `{name}`."))


def _refuse_other_names(parameters: Collection[str], plan: FreezePlan) -> None:
    planned = {**plan.trained, **plan.frozen}
    missing = [name for name in planned if name not in parameters]
    extra = [name for name in parameters if name not in planned]
    if missing or extra:
        what = f"the model is not the planned one; missing: {_list(missing)}; not in the plan: {_list(extra)}."
        raise RunError(Problem("freeze", what, "Plan the freeze on the model as it is trained, adapters included."))


def _notes(
    trained: Mapping[str, str], frozen: Mapping[str, str], places: Mapping[int, list[str]], model: nn.Module
) -> tuple[str, ...]:
    notes = []
    for name, parameter in model.named_parameters():
        homes = [home for home in places.get(id(parameter), []) if home.startswith("layer ")]
        if len(homes) > 1:
            notes.append(f"{name} is shared by {_list(homes)}, {'trained' if name in trained else 'frozen'} in all")
    rest = [name for name, place in {**trained, **frozen}.items() if place == REST]
    if rest:
        notes.append(f"{'frozen' if rest[0] in frozen else 'trained'}, because in no part: {_list(rest)}")
    return tuple(notes)


def _list(names: Iterable[str], most: int = 5) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "none"
