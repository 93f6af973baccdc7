"""The divergence of a student's next tokens from a teacher's, a chunk of tokens at a time through both heads.

The student's logits of a chunk exist beside the teacher's of half of it, and are replaced by the gradient while they
are at hand. Everything element-wise runs on a few tokens at a time, so that temporaries stay in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from hybridizer.models.loss import IGNORED, Head
from hybridizer.models.matmul import matmul_dtype

PIECE = {"cpu": 2**19, "cuda": 2**25}  # elements of logits that are worked on at a time


@dataclass(frozen=True)
class Divergence:
    """KL(teacher, student) if forward, else KL(student, teacher), at a temperature T, counted T squared times.

    At T both are softmax(logits / T); the factor keeps gradients of one size at any T (arXiv 1503.02531). The loss
    is `weight` of it and 1 - `weight` of -ln p(target), which is at temperature 1.
    """

    direction: Literal["forward", "reverse"] = "forward"
    temperature: float = 1.0
    weight: float = 1.0


class Taught:
    """What the criteria below share: the logits of a chunk, a few tokens at a time, beside what the teacher gives."""

    num_terms = 2

    def __init__(self, targets: Int64[Tensor, "tokens"], divergence: Divergence) -> None:
        self.targets, self._divergence = targets, divergence

    def _given(self, rows: slice) -> tuple[Tensor, ...]:
        """What the teacher gives for the tokens `rows`."""
        raise NotImplementedError

    def _mix_(self, ours: Tensor, target: Tensor, slopes: bool, *given: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of each token and its two terms; with `slopes`, `ours` then holds the gradient of the loss."""
        raise NotImplementedError

    @torch.no_grad()
    def fill_(self, logits: Tensor, rows: slice, slopes: bool) -> tuple[Tensor, Tensor]:
        """As in models.loss.Criterion."""
        targets = self.targets[rows]
        losses, terms = logits.new_empty(len(logits)), logits.new_empty(2, len(logits))
        half = -(-len(logits) // 2)  # of the teacher's logits half a chunk exists, beside the student's whole one
        for start in range(0, len(logits), half):
            part = slice(start, min(start + half, len(logits)))
            given = self._given(slice(rows.start + part.start, rows.start + part.stop))
            self._fill_part_(logits[part], targets[part], slopes, given, losses[part], terms[:, part])
        counted = targets != IGNORED
        return torch.where(counted, losses, 0.0), torch.where(counted, terms, 0.0)

    def _fill_part_(
        self,
        logits: Tensor,
        targets: Tensor,
        slopes: bool,
        given: tuple[Tensor, ...],
        losses: Tensor,
        terms: Tensor,
    ) -> None:
        """Fill `losses` and `terms` of some tokens of a chunk, a few of them at a time."""
        step = max(1, PIECE.get(logits.device.type, PIECE["cpu"]) // logits.shape[-1])
        for start in range(0, len(logits), step):
            part = slice(start, start + step)
            target = targets[part].clamp_min(0)[:, None]
            losses[part], terms[:, part] = self._mix_(logits[part], target, slopes, *(one[part] for one in given))

    def grow(self, logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """As in models.loss.Criterion."""
        slopes = logits.detach().clone()  # what computed the logits may need them for its own gradient
        losses, terms = self.fill_(slopes, rows, logits.requires_grad)
        loss: Tensor = _Known.apply(logits, losses.sum(), slopes.mul_((self.targets[rows] != IGNORED)[:, None]))
        return loss, terms


class Distillation(Taught):
    """A Criterion of two terms per token, in nats: -ln p(target), and the divergence without its factor."""

    def __init__(
        self,
        targets: Int64[Tensor, "tokens"],
        divergence: Divergence,
        hidden: Float[Tensor, "tokens width"],
        head: Head,
    ) -> None:
        """`head` maps `hidden`, the teacher's own, to the teacher's logits, as wide as the student's."""
        super().__init__(targets, divergence)
        self._head, self._weight, self._hidden = head, None, hidden.detach()
        if isinstance(head, nn.Linear) and head.bias is None:
            self._hidden = self._hidden.to(matmul_dtype(hidden.dtype, hidden.device))
            self._weight = head.weight.detach().to(self._hidden.dtype)
        self._buffer = hidden.new_empty(0)

    def _mix_(self, ours: Tensor, target: Tensor, slopes: bool, *given: Tensor) -> tuple[Tensor, Tensor]:
        return _mix_(ours, given[0], target, self._divergence, slopes)

    def _given(self, rows: slice) -> tuple[Float32[Tensor, "chunk vocabulary"]]:
        """The teacher's logits."""
        piece = self._hidden[rows]
        if self._weight is None:
            return (self._head(piece).float(),)
        if len(self._buffer) < len(piece):
            self._buffer = piece.new_empty(len(piece), len(self._weight))
        return (torch.mm(piece, self._weight.T, out=self._buffer[: len(piece)]).float(),)


def _mix_(
    ours: Float32[Tensor, "tokens vocabulary"],
    theirs: Float32[Tensor, "tokens vocabulary"],
    target: Int64[Tensor, "tokens 1"],
    divergence: Divergence,
    slopes: bool,
) -> tuple[Float32[Tensor, "tokens"], Float32[Tensor, "2 tokens"]]:
    """The loss of each token and its two terms; with `slopes`, `ours` then holds the gradient of the loss.

    `theirs` is used up.
    """
    heat, weight = divergence.temperature, divergence.weight
    at_one = torch.log_softmax(ours, -1) if heat == 1 or weight < 1 else None
    if at_one is None:
        next_token = ours.logsumexp(-1) - ours.gather(-1, target)[:, 0]
    else:
        next_token = -at_one.gather(-1, target)[:, 0]
    log_q = at_one if heat == 1 and at_one is not None else torch.log_softmax(ours / heat, -1)
    log_p = torch.log_softmax(theirs.div_(heat) if heat != 1 else theirs, -1)
    value, slope = (_forward if divergence.direction == "forward" else _reverse)(log_q, log_p)
    if slopes:
        torch.mul(slope, weight * heat, out=ours)
        if weight < 1:
            assert at_one is not None
            ours.add_(at_one.exp(), alpha=1 - weight)
            ours.scatter_add_(-1, target, ours.new_full((1, 1), weight - 1).expand_as(target))
    return weight * heat * heat * value + (1 - weight) * next_token, torch.stack([next_token, value])


def _forward(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of p (ln p - ln q) of each token, and its gradient by the logits of q; `log_p` is used up."""
    p = log_p.exp()
    value = log_p.sub_(log_q).mul_(p).sum(-1)
    return value, torch.sub(log_q.exp(), p, out=log_p)


def _reverse(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of q (ln q - ln p) of each token, and its gradient by the logits of q; `log_p` is used up."""
    q = log_q.exp()
    slope = torch.sub(log_q, log_p, out=log_p).mul_(q)
    value = slope.sum(-1)
    return value, slope.addcmul_(q, value[:, None], value=-1)


class _Known(torch.autograd.Function):
    """A number whose gradient by `logits` is known already."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, value: Tensor, slopes: Tensor) -> Tensor:
        ctx.slopes = slopes
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        slopes, ctx.slopes = ctx.slopes, None
        return slopes.mul_(grad_outputs[0]), None, None
