"""How far two next-token distributions are apart, in bits.

Source: the layer sensitivity of arXiv 2605.11416, which leaves the base of the logarithm open; we use 2.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Float32
from torch import Tensor

LEAST_BITS = -126.0  # log2 of the smallest normal float32; what is below counts as that, so that nothing is infinite
_BLOCK = 2**18  # elements: on a CPU, blocks that stay in the cache make the divergence three times faster


def log2_softmax(logits: Float[Tensor, "*batch vocab"]) -> Float32[Tensor, "*batch vocab"]:
    """log2 of the probabilities (..., vocab) of `logits` in any dtype, in float32, never below LEAST_BITS."""
    return torch.log_softmax(logits.float(), dim=-1).mul_(1 / math.log(2)).clamp_min_(LEAST_BITS)


def js_divergence(
    log2_p: Float[Tensor, "*#batch vocab"], log2_q: Float[Tensor, "*#batch vocab"]
) -> Float[Tensor, "*#batch"]:
    """Jensen-Shannon divergence (...) in bits of log2-probabilities (..., vocab) that broadcast: 0 equal, 1 disjoint.

    In float32. Exactly 0 where the inputs are the same numbers. With r = p / (p + q) it is the sum over the vocabulary
    of (p + q) / 2 times 1 - h(r), h the binary entropy: the rounding of r cancels, so that small values are right.
    Source: arXiv 2605.11416, which leaves the base of the logarithm open; we use 2.
    """
    log2_p, log2_q = torch.broadcast_tensors(log2_p, log2_q)
    if log2_p.ndim > 2:
        return torch.stack([js_divergence(p, q) for p, q in zip(log2_p, log2_q, strict=True)])
    rows = max(1, _BLOCK // log2_p.shape[-1])
    if log2_p.ndim == 2 and len(log2_p) > rows:
        blocks = zip(torch.split(log2_p, rows), torch.split(log2_q, rows), strict=True)
        return torch.cat([js_divergence(p, q) for p, q in blocks])
    p, q = log2_p.exp2(), log2_q.exp2()
    total = q.add_(p)
    r = p.div_(total)
    rest = 1 - r
    bits = (2 * r).log2_().mul_(r)
    bits.addcmul_(rest.clamp(min=2**LEAST_BITS).mul_(2).log2_(), rest)
    return bits.mul_(total).sum(dim=-1).div_(2).clamp_(0, 1)


def kl_divergence(
    log2_p: Float[Tensor, "*batch vocab"], log2_q: Float[Tensor, "*batch k vocab"]
) -> Float[Tensor, "*batch k"]:
    """KL(p || q) (..., k) in bits of one p, log2-probabilities (..., vocab), from each of k q (..., k, vocab)."""
    p = log2_p.exp2().unsqueeze(-1)
    return (log2_p.unsqueeze(-2) @ p - log2_q @ p).squeeze(-1).clamp_min(0)


def kl_from_uniform(log2_p: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch"]:
    """KL(p || uniform) (...) in bits of log2-probabilities (..., vocab): log2(vocab) less the entropy."""
    return math.log2(log2_p.shape[-1]) + (log2_p * log2_p.exp2()).sum(dim=-1)
