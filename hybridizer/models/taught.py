"""Objectives with a frozen teacher: its next tokens (distillation), or its hidden states (alignment)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Float16, Float32, Int, Int32, Int64
from torch import Tensor
from torch.nn import functional

from hybridizer.core.errors import InputError, Problem
from hybridizer.models.distill import Distillation, Divergence
from hybridizer.models.largest import Largest, LargestOnly
from hybridizer.models.loss import IGNORED, NextToken
from hybridizer.models.objective import CausalLMLoss, LossBySource, Student, chosen
from hybridizer.models.residual import layer_states

Terms = tuple[Float32[Tensor, ""], Float32[Tensor, "terms tokens"]]


class TaughtLoss(LossBySource):
    """A loss that needs `teacher`, held outside this module: it is neither trained, sharded nor put to train."""

    def __init__(self, student: Student, teacher: CausalLMLoss) -> None:
        """Raises InputError as `CausalLMLoss` does."""
        super().__init__(student)
        self._taught_by = (teacher,)

    @property
    def teacher(self) -> CausalLMLoss:
        """The teacher, which gives its own hidden states and logits."""
        return self._taught_by[0]


class DistillLoss(TaughtLoss):
    """The divergence of the next token from the teacher's, and -ln p(target), as `divergence` mixes them."""

    term_names = ("next_token", "divergence")

    def __init__(self, student: Student, teacher: CausalLMLoss, divergence: Divergence) -> None:
        """Raises InputError as `CausalLMLoss` does, and for a teacher that gives another number of logits."""
        super().__init__(student, teacher)
        self._divergence = divergence
        counts = [objective.count_logits() for objective in (teacher, self)]
        if counts[0] != counts[1]:
            what = f"the teacher gives {counts[0]} logits per token, the student {counts[1]}."
            raise InputError(Problem("train.objective.distill", what, "Take a teacher whose head is as wide."))

    def _terms(self, input_ids: Tensor, position_ids: Tensor, targets: Tensor, places: Tensor | None) -> Terms:
        """The loss sum of one batch; of each token -ln p(target), and the divergence."""
        with torch.no_grad():
            theirs = chosen(self.teacher.hidden(input_ids, position_ids), places)
        hidden = chosen(self.hidden(input_ids, position_ids), places)
        criterion = Distillation(chosen(targets, places), self._divergence, theirs, self.teacher.head)
        return self._chunked(hidden, criterion)


class LargestOnlyLoss(LossBySource):
    """The loss of `DistillLoss` where only the teacher's largest next tokens are known, and no teacher is there."""

    term_names = DistillLoss.term_names

    def __init__(self, student: Student, divergence: Divergence) -> None:
        """Raises InputError as `CausalLMLoss` does."""
        super().__init__(student)
        self._divergence = divergence

    def forward(  # type: ignore[override]
        self,
        input_ids: Int[Tensor, "rows tokens"],
        position_ids: Int[Tensor, "rows tokens"],
        targets: Int64[Tensor, "rows tokens"],
        sources: Int64[Tensor, "rows tokens"],
        places: Int64[Tensor, "counted"] | None,
        ids: Int32[Tensor, "predicted k"],
        log_p: Float16[Tensor, "predicted k+1"],
    ) -> tuple[Float32[Tensor, ""], Float32[Tensor, "sums"]]:
        """The loss sum of one batch, and those of each source and term.

        `ids` and `log_p` are `Largest` of the tokens that are predicted, in their order; one row at least.
        """
        flat = chosen(targets, places)
        # Tokens at which nothing is predicted take those of any other: they do not count.
        number = ((flat != IGNORED).cumsum(0) - 1).clamp_min(0)
        criterion = LargestOnly(flat, self._divergence, Largest(ids[number], log_p[number]))
        total, terms = self._chunked(chosen(self.hidden(input_ids, position_ids), places), criterion)
        return total, self._sums(terms, chosen(sources, places))

    @torch.no_grad()
    def divergences(
        self,
        hidden: Float[Tensor, "tokens width"],
        log_p: Float32[Tensor, "tokens vocabulary"],
        largest: Largest,
    ) -> tuple[float, float]:
        """The mean divergence from the teacher's whole `log_p`, at the temperature, and from its `largest` alone."""
        targets = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)
        criteria = (
            Distillation(targets, self._divergence, log_p * self._divergence.temperature, lambda logits: logits),
            LargestOnly(targets, self._divergence, largest),
        )
        whole, kept = (float(self._chunked(hidden, criterion)[1][1].mean()) for criterion in criteria)
        return whole, kept


class AlignLoss(TaughtLoss):
    """The error of hidden states against the teacher's, the mean over `pairs` of layers, student's and teacher's.

    With a `weight` of 1 the student ends behind the last of these layers, and so does the teacher always; below 1 the
    rest is -ln p(target).
    """

    def __init__(
        self,
        student: Student,
        teacher: CausalLMLoss,
        pairs: Sequence[tuple[int, int]],
        kind: Literal["mse", "cosine"] = "mse",
        weight: float = 1.0,
    ) -> None:
        """Raises InputError as `CausalLMLoss` does."""
        super().__init__(student, teacher)
        self._pairs, self._kind, self._weight = tuple(sorted(pairs)), kind, weight
        self.term_names = ("alignment",) if weight == 1 else ("next_token", "alignment")

    def _terms(self, input_ids: Tensor, position_ids: Tensor, targets: Tensor, places: Tensor | None) -> Terms:
        """The loss sum of one batch; of each token -ln p(target), if it counts, and the error of its states."""
        flat = chosen(targets, places)
        theirs = self._teacher_states(input_ids, position_ids)
        heads: list[Tensor] = []  # the input of the head, where it is reached
        stops = self._weight == 1
        layers = [self._parts.layers[ours] for ours, _ in self._pairs]
        ours = layer_states(layers, lambda: heads.append(self.hidden(input_ids, position_ids)), stop=stops)
        errors = torch.stack(
            [
                state_errors(chosen(mine, places), chosen(other, places), self._kind)
                for mine, other in zip(ours, theirs, strict=True)
            ]
        ).mean(0)
        errors = torch.where(flat != IGNORED, errors, 0.0)
        total, terms = errors.sum(), errors.detach()[None]
        if not stops:
            next_token, others = self._chunked(chosen(heads[0], places), NextToken(flat))
            total = self._weight * total + (1 - self._weight) * next_token
            terms = torch.cat([others, terms])
        return total, terms

    @torch.no_grad()
    def _teacher_states(self, input_ids: Tensor, position_ids: Tensor) -> list[Tensor]:
        """The teacher's states in the order of the pairs; a layer of it may be in several."""
        wanted = sorted({theirs for _, theirs in self._pairs})
        layers = [self.teacher.layers[layer] for layer in wanted]
        found = layer_states(layers, lambda: self.teacher.hidden(input_ids, position_ids), stop=True)
        by_layer = dict(zip(wanted, found, strict=True))
        return [by_layer[theirs] for _, theirs in self._pairs]


def state_errors(
    ours: Float[Tensor, "tokens width"], theirs: Float[Tensor, "tokens width"], kind: Literal["mse", "cosine"]
) -> Float32[Tensor, "tokens"]:
    """The error of each token's state, 0 where it is the teacher's, in float32.

    mse: the squared difference as a share of the teacher's square, so that the few tokens whose states are a hundred
    times as long as the others' count like them, and 1 is the error of zeros. cosine: 1 - the cosine, from 0 to 2.
    Raises InputError for states of different shapes.
    """
    if ours.shape != theirs.shape:
        what = f"the student's states are {tuple(ours.shape)}, the teacher's {tuple(theirs.shape)}."
        raise InputError(Problem("train.objective.align", what, "Take a teacher of the same width."))
    ours, theirs = ours.float(), theirs.float()
    if kind == "cosine":
        return 1 - functional.cosine_similarity(ours, theirs, dim=-1)
    return (ours - theirs).square().sum(-1) / theirs.square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
