"""Cross-entropy over a vocabulary of any size without materialising all logits.

Logits exist for a few hundred tokens at a time. The loss is the root of the graph, so its gradient is known up to one
factor while the logits are at hand: the backward pass only multiplies, and no product is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn
from torch.nn import functional

from hybridizer.models.matmul import matmul_dtype

IGNORED = -100
CHUNK_BYTES = 64 * 2**20  # of float32 logits; in cache-sized pieces a CPU spends a fifth of the time on the softmax
# A GPU needs products of thousands of rows: 64 MiB are 110 tokens at a vocabulary of 152k. Not measured yet.
CUDA_CHUNK_BYTES = 1024 * 2**20
# Of float32 logits that a CPU reads losses from at a time: fresh memory for a whole chunk costs more than its softmax.
PIECE_BYTES = 2 * 2**20


Head = Callable[[Tensor], Tensor]


@runtime_checkable
class Criterion(Protocol):
    """A loss of logits that is computed a chunk of tokens at a time; `rows` are the places of a chunk among `targets`.

    Both methods return what to minimise and what to report, of which there are `num_terms` per token: zeros where the
    target is ignored.
    """

    targets: Int64[Tensor, "tokens"]
    num_terms: int

    def fill_(
        self, logits: Float32[Tensor, "chunk vocabulary"], rows: slice, slopes: bool
    ) -> tuple[Float32[Tensor, "chunk"], Float32[Tensor, "terms chunk"]]:
        """The losses of a chunk; with `slopes`, `logits` then hold the gradient of each token's loss.

        That of a token whose target is ignored is undefined.
        """

    def grow(
        self, logits: Float32[Tensor, "chunk vocabulary"], rows: slice
    ) -> tuple[Float32[Tensor, ""], Float32[Tensor, "terms chunk"]]:
        """The sum of the losses of a chunk, with the graph back to `logits`, and the terms without one."""


class NextToken:
    """-ln p(target)."""

    num_terms = 1

    def __init__(self, targets: Int64[Tensor, "tokens"]) -> None:
        self.targets = targets

    def fill_(self, logits: Tensor, rows: slice, slopes: bool) -> tuple[Tensor, Tensor]:
        """As in Criterion."""
        counted, target = self.targets[rows] != IGNORED, self.targets[rows].clamp_min(0)[:, None]
        losses = torch.where(counted, _softmax_(logits, target), 0.0)
        if slopes:
            logits.scatter_add_(-1, target, logits.new_full((1, 1), -1.0).expand_as(target))
        return losses, losses[None]

    def grow(self, logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """As in Criterion."""
        log_p, targets = functional.log_softmax(logits, -1), self.targets[rows]
        loss = functional.nll_loss(log_p, targets, ignore_index=IGNORED, reduction="sum")
        return loss, functional.nll_loss(log_p.detach(), targets, ignore_index=IGNORED, reduction="none")[None]


def loss_chunk_bytes(device: torch.device) -> int:
    """The bytes of float32 logits that a training on `device` holds at a time."""
    return CUDA_CHUNK_BYTES if device.type == "cuda" else CHUNK_BYTES


def chunked_loss(
    hidden: Float[Tensor, "tokens width"],
    head: Head,
    parameters: Sequence[Tensor],
    criterion: Criterion,
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[Float32[Tensor, ""], Float32[Tensor, "terms tokens"]]:
    """The sum of `criterion` over all tokens, and its terms for each, through which no gradients flow.

    `head` maps `hidden` to logits (tokens, vocabulary): a bare `nn.Linear` takes a faster path, a head with biases,
    scales or soft-caps is differentiated chunk by chunk by autograd. `parameters` are those of the head; they get
    gradients if they require them. Softmax and sum are in float32 for inputs of any precision. The same input gives the
    same bits. At most `chunk_bytes` of float32 logits exist at once.
    """
    assert hidden.ndim == 2 and criterion.targets.shape == hidden.shape[:1], (hidden.shape, criterion.targets.shape)
    if isinstance(head, nn.Linear) and head.bias is None:
        chunk_tokens = max(1, chunk_bytes // (4 * head.out_features))
        hidden = hidden.to(matmul_dtype(hidden.dtype, hidden.device))  # else each chunk would widen the whole weight
        loss, terms = _LinearLoss.apply(hidden, head.weight, criterion, chunk_tokens)
    else:
        loss, terms = _HeadLoss.apply(hidden, criterion, head, chunk_bytes, *parameters)
    return loss, terms


@torch.no_grad()
def token_losses(
    hidden: Float[Tensor, "tokens width"],
    head: Head,
    targets: Int64[Tensor, "tokens"],
    chunk_bytes: int = CHUNK_BYTES,
) -> Float32[Tensor, "tokens"]:
    """-ln p(target) of each token in nats: what `NextToken` sums, without gradients.

    The head computes at most `chunk_bytes` of float32 logits at once; on a CPU the losses need PIECE_BYTES besides.
    """
    assert hidden.ndim == 2 and targets.shape == hidden.shape[:1], (hidden.shape, targets.shape)
    chunk_tokens = max(1, chunk_bytes // (4 * count_logits(head, hidden)))
    chunks = zip(hidden.split(chunk_tokens), targets.split(chunk_tokens), strict=True)
    return torch.cat([losses for rows, ids in chunks for losses in _losses_of(head(rows), ids)])


def _losses_of(
    logits: Float[Tensor, "chunk vocabulary"], targets: Int64[Tensor, "chunk"]
) -> Iterator[Float32[Tensor, "piece"]]:
    """-ln p(target) of the rows of `logits`, a piece at a time on a CPU; each row has the bits that it has alone."""
    on_cpu = logits.device.type == "cpu"
    rows = max(1, PIECE_BYTES // (4 * logits.shape[-1])) if on_cpu else len(logits)
    for piece, ids in zip(logits.split(rows), targets.split(rows), strict=True):
        yield functional.cross_entropy(piece.float(), ids, reduction="none")


class _LinearLoss(torch.autograd.Function):
    """The loss of the logits `hidden @ weight.T`: softmax in place, gradients written out by hand."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, criterion: Criterion, chunk_tokens: int
    ) -> tuple[Tensor, Tensor]:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        weight_cast = weight.to(hidden.dtype)
        total, terms = _zeros_of(hidden, criterion)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        buffer = hidden.new_empty((min(chunk_tokens, len(hidden)), len(weight)))
        for start in range(0, len(hidden), chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            piece, counted = hidden[rows], criterion.targets[rows] != IGNORED
            logits = torch.mm(piece, weight_cast.T, out=buffer[: len(piece)]).float()
            losses, terms[:, rows] = criterion.fill_(logits, rows, needs_hidden or needs_weight)
            total += losses.sum()
            if not (needs_hidden or needs_weight):
                continue
            slope = logits if logits.dtype == hidden.dtype else buffer[: len(piece)].copy_(logits)
            if grad_hidden is not None:
                torch.mm(slope, weight_cast, out=grad_hidden[rows])
                grad_hidden[rows].mul_(counted[:, None])
            if grad_weight is not None:
                _add_product_(grad_weight, slope.T, piece * counted[:, None])
        ctx.grads = grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype)
        ctx.mark_non_differentiable(terms)
        return total, terms

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return (*_take_scaled(ctx, grad_outputs[0]), None, None)


class _HeadLoss(torch.autograd.Function):
    """The loss of the logits of any head function, by autograd within each chunk."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, criterion: Criterion, head: Head, chunk_bytes: int, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        wanted = [p for p, needed in zip(parameters, ctx.needs_input_grad[4:], strict=True) if needed]
        sums = [torch.zeros_like(p, dtype=torch.float32) for p in wanted]
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        total, terms = _zeros_of(hidden, criterion)
        chunk_tokens = max(1, chunk_bytes // (4 * count_logits(head, hidden)))
        for start in range(0, len(hidden), chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            piece = hidden[rows].detach().requires_grad_(grad_hidden is not None)
            with torch.set_grad_enabled(bool(wanted) or grad_hidden is not None):
                loss, terms[:, rows] = criterion.grow(head(piece).float(), rows)
            total += loss.detach()
            leaves = ([] if grad_hidden is None else [piece]) + wanted
            grads = list(torch.autograd.grad(loss, leaves)) if leaves else []
            if grad_hidden is not None:
                grad_hidden[rows] = grads.pop(0)
            for grad_sum, grad in zip(sums, grads, strict=True):
                grad_sum.add_(grad)
        found = iter(total_grad.to(p.dtype) for total_grad, p in zip(sums, wanted, strict=True))
        ctx.grads = (grad_hidden, *(next(found) if needed else None for needed in ctx.needs_input_grad[4:]))
        ctx.mark_non_differentiable(terms)
        return total, terms

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, *rest = _take_scaled(ctx, grad_outputs[0])
        return (grad_hidden, None, None, None, *rest)


def _softmax_(
    logits: Float32[Tensor, "tokens vocabulary"], target: Int64[Tensor, "tokens 1"]
) -> Float32[Tensor, "tokens"]:
    """Replace `logits` by their softmax; return -ln p(target) of each token, finite for any logits.

    -ln p is computed from the largest entry, which never underflows, and not from p(target), which does.
    """
    top, wanted = logits.amax(-1), logits.gather(-1, target)[:, 0]
    torch.softmax(logits, -1, out=logits)
    return top - logits.amax(-1).log() - wanted


def _zeros_of(
    hidden: Float[Tensor, "tokens width"], criterion: Criterion
) -> tuple[Float32[Tensor, ""], Float32[Tensor, "terms tokens"]]:
    """A sum of losses and the terms of each token, to be filled."""
    sizes = criterion.num_terms, len(hidden)
    return hidden.new_zeros((), dtype=torch.float32), hidden.new_zeros(sizes, dtype=torch.float32)


def count_logits(head: Head, hidden: Float[Tensor, "tokens width"]) -> int:
    """How many logits `head` gives for a token; other heads than a linear layer run on the first of `hidden`."""
    if isinstance(head, nn.Linear):
        return head.out_features  # a single row takes half as long as 64: the weights are read
    with torch.no_grad():
        return head(hidden[:1]).shape[-1]


def _add_product_(
    total: Float32[Tensor, "rows columns"], left: Float[Tensor, "rows inner"], right: Float[Tensor, "inner columns"]
) -> None:
    """Add `left @ right` to the float32 `total`: in place where they are float32, without a second matrix."""
    if left.dtype == total.dtype:
        torch.addmm(total, left, right, out=total)  # addmm_ would not be seen by FLOP counters
    else:
        total += left @ right


def _take_scaled(ctx: Any, factor: Float32[Tensor, ""]) -> list[Tensor | None]:
    """The gradients stored in `ctx`, times `factor`. `ctx` drops them: autograd copies shared gradients."""
    grads, ctx.grads = ctx.grads, None
    return [None if grad is None else grad.mul_(factor) for grad in grads]
