"""The frozen teacher of an objective: loaded, prepared as the model that trains is, and put behind the loss."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from hybridizer.checkpoint.hashing import same_bytes
from hybridizer.checkpoint.reader import open_checkpoint
from hybridizer.donors.donor import Donor
from hybridizer.models.distill import Divergence
from hybridizer.models.load import load_model
from hybridizer.models.memory import page_out
from hybridizer.models.objective import CausalLMLoss, LossBySource, Student, TrainableParts
from hybridizer.models.parts import find_parts
from hybridizer.models.taught import AlignLoss, DistillLoss, LargestOnlyLoss
from hybridizer.plan.freeze import FreezeChoice
from hybridizer.plan.objective import Pairs, copies_of
from hybridizer.plan.plan import Plan
from hybridizer.recipe.objective import Distill, Objective
from hybridizer.train.freeze import REST, FreezePlan


@dataclass(frozen=True)
class Teacher:
    """A model in eval mode without gradients, its parts, and `sha256:<hex>` of its donor's content.

    `pairs` are layers of the student, each with the teacher's layer that it is aligned with; none for distillation.
    """

    model: nn.Module
    parts: TrainableParts
    fingerprint: str
    pairs: Pairs = ()

    @property
    def freeze_plan(self) -> FreezePlan:
        """The plan that freezes all of it."""
        count = len(self.parts.layers)
        choice = FreezeChoice(count, 0, tuple(range(count)), True, True, True)
        return FreezePlan(choice, {}, {name: REST for name, _ in self.model.named_parameters()})


def load_teacher(donor: Donor, pairs: Pairs) -> Teacher:
    """The model of `donor`, in the dtype of its checkpoint. Raises DonorError when transformers cannot load it."""
    assert donor.fingerprint is not None, "donors of a build are pinned"
    model = load_model(donor.folder, trust_remote_code="remote_code" in donor.allow)
    return Teacher(model, find_parts(model), donor.fingerprint, pairs)


def find_twins(plan: Plan, spliced: Path, teacher: Donor, names: Collection[str]) -> dict[str, str]:
    """Those tensors of the spliced model among `names` that are the teacher's byte for byte, with their names there.

    The files are compared: in memory, pages of both checkpoints would stay with the process.
    """
    ours, theirs = open_checkpoint(spliced).tensors, teacher.checkpoint.tensors
    return {
        name: other
        for name, other in copies_of(plan, teacher).items()
        if name in names and name in ours and same_bytes(ours[name], theirs[other])
    }


def share_tensors_(teacher: nn.Module, model: nn.Module, twins: Mapping[str, str]) -> int:
    """Let `teacher` hold parameters of `model` in place of its own; how many numbers those have.

    `twins` are names in `model`, each with its name in `teacher`, of tensors with equal bytes that never train. Those
    that either model holds under another name, in another shape or in another dtype stay what they are. One parameter
    object is in both models, so that a cast or a move of one is that of the other.
    """
    ours, theirs = dict(model.named_parameters()), dict(teacher.named_parameters())
    held = {
        id(theirs[other]): ours[name]
        for name, other in twins.items()
        if name in ours and other in theirs
        if (ours[name].shape, ours[name].dtype) == (theirs[other].shape, theirs[other].dtype)
    }
    replaced = []
    for module in teacher.modules():
        for key, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) in held:
                replaced.append(parameter.data)
                setattr(module, key, held[id(parameter)])
    page_out(replaced)  # the file stays mapped while the teacher has other tensors of it
    return sum(parameter.numel() for parameter in held.values())


def lower_(teacher: nn.Module, dtype: torch.dtype, model: nn.Module) -> None:
    """Hold the parameters of `teacher` that are wider than `dtype` in it, except those that it shares with `model`.

    A teacher is neither trained nor exported: a copy in the precision that computes is all that is needed of it. What
    it computes keeps its bits, except that a bias is added before the product is rounded, no longer after.
    """
    shared = {id(parameter) for parameter in model.parameters()}
    for parameter in teacher.parameters():
        if id(parameter) not in shared and parameter.dtype.is_floating_point and parameter.itemsize > dtype.itemsize:
            parameter.data = parameter.data.to(dtype)


def taught_loss(objective: Objective, teacher: Teacher, student: Student) -> tuple[LossBySource, CausalLMLoss]:
    """The loss of `objective` for `student`, and its teacher as a module that runs it. Raises InputError as they do."""
    # In eval mode as a module too: what tests it for leaks restores the mode that it finds.
    behind, chosen = CausalLMLoss(teacher.model, teacher.parts, student.chunk_bytes).eval(), objective.chosen
    if isinstance(chosen, Distill):
        return DistillLoss(student, behind, _divergence(chosen)), behind
    assert teacher.pairs, "alignment has layers that correspond"
    return AlignLoss(student, behind, teacher.pairs, chosen.loss, chosen.weight), behind


def largest_loss(objective: Objective, student: Student) -> LargestOnlyLoss:
    """The loss of `objective` for `student` from a cache of its teacher. Raises InputError as the loss does."""
    assert objective.distill is not None, "checked when the recipe was loaded"
    return LargestOnlyLoss(student, _divergence(objective.distill))


def _divergence(distill: Distill) -> Divergence:
    return Divergence(distill.direction, distill.temperature, distill.weight)
