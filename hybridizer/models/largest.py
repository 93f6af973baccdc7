"""The divergence from a teacher of whose next tokens only the k most likely are known, and the mass of all others.

The others count as one event. Merging events lowers a divergence (log-sum inequality), so that the value is a lower
bound of the divergence of all tokens, equal where k is the whole vocabulary. Leaving them out instead, with the kept
probabilities as they are or scaled to sum to 1, is biased: the student then learns to give unlikely tokens nothing
(arXiv 2503.16870). Here it learns their mass, and among them keeps its own distribution. That paper draws tokens at
random, which has an unbiased gradient of the forward divergence alone, with the noise of the draw.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Float16, Float32, Int32, Int64
from torch import Tensor

from hybridizer.models.distill import Divergence, Taught

LEAST = -60_000.0  # ln p of what has no mass: float16 ends at -65,504


class Largest(NamedTuple):
    """The k largest of a teacher's next tokens: `ids`, and ln p of each; the last column is ln of the others' mass."""

    ids: Int32[Tensor, "tokens k"]
    log_p: Float16[Tensor, "tokens k+1"]


def keep_largest(logits: Float32[Tensor, "tokens vocabulary"], k: int, temperature: float) -> Largest:
    """The `k` most likely tokens of softmax(`logits` / `temperature`), which is computed in float32, as float16.

    float16 has 11 bits, so that a probability p is off by at most a share of -ln p / 2048.
    """
    log_p = torch.log_softmax(logits / temperature, -1)
    values, ids = log_p.topk(k, -1)
    rest = log_p.scatter_(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    return Largest(ids.int(), torch.cat([values, rest], -1).clamp_min(LEAST).half())


class LargestOnly(Taught):
    """A Criterion as `distill.Distillation` is one, of a teacher's k largest: -ln p(target), and the divergence."""

    def __init__(self, targets: Int64[Tensor, "tokens"], divergence: Divergence, largest: Largest) -> None:
        """`largest` are those of each token of `targets`, at the temperature of `divergence`."""
        super().__init__(targets, divergence)
        self._largest = largest

    def _given(self, rows: slice) -> tuple[Tensor, Tensor]:
        """The tokens that are kept, and ln p of each and of all others, which sum to 1 again after rounding."""
        return self._largest.ids[rows].long(), torch.log_softmax(self._largest.log_p[rows].float(), -1)

    def _mix_(self, ours: Tensor, target: Tensor, slopes: bool, *given: Tensor) -> tuple[Tensor, Tensor]:
        ids, log_p = given
        heat, weight = self._divergence.temperature, self._divergence.weight
        next_token = ours.logsumexp(-1) - ours.gather(-1, target)[:, 0]
        log_q = ours / heat if heat != 1 else ours.clone()
        log_q -= log_q.logsumexp(-1, keepdim=True)
        kept = log_q.gather(-1, ids)
        others = log_q.exp_().scatter_(-1, ids, 0.0)  # the probabilities of tokens that are not kept
        mass = others.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        events = torch.cat([kept, mass.log()], -1)
        value, slope, factor = (_forward if self._divergence.direction == "forward" else _reverse)(events, log_p)
        if slopes:
            at_one = torch.softmax(ours, -1) if weight < 1 else None
            torch.mul(others, factor, out=ours)
            ours.scatter_(-1, ids, slope).mul_(weight * heat)
            if at_one is not None:
                ours.add_(at_one, alpha=1 - weight)
                ours.scatter_add_(-1, target, ours.new_full((1, 1), weight - 1).expand_as(target))
        return weight * heat * heat * value + (1 - weight) * next_token, torch.stack([next_token, value])


Slopes = tuple[Float[Tensor, "tokens"], Float[Tensor, "tokens k"], Float[Tensor, "tokens 1"]]


def _forward(log_q: Float32[Tensor, "tokens events"], log_p: Float32[Tensor, "tokens events"]) -> Slopes:
    """The sum of p (ln p - ln q) over the events, the last of which is all other tokens.

    Then its gradient by the logits of the kept tokens, and what the probability of each other is its gradient times.
    """
    p = log_p.exp()
    value = ((log_p - log_q) * p).sum(-1)
    return value, log_q[:, :-1].exp() - p[:, :-1], 1 - (log_p[:, -1:] - log_q[:, -1:]).exp()


def _reverse(log_q: Float32[Tensor, "tokens events"], log_p: Float32[Tensor, "tokens events"]) -> Slopes:
    """The sum of q (ln q - ln p) over the events, and the rest as in `_forward`."""
    q, ratio = log_q.exp(), log_q - log_p
    value = (q * ratio).sum(-1)
    return value, q[:, :-1] * (ratio[:, :-1] - value[:, None]), ratio[:, -1:] - value[:, None]
