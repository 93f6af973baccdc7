"""How far two next-token distributions are apart, and what that says of layers and boundaries.

Sources: layer sensitivity of arXiv 2605.11416; the boundary score is our reading of that paper's appendix.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def js_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Jensen-Shannon divergence (...) in bits of natural log-probabilities (..., vocab): 0 equal, 1 disjoint.

    float32. Exactly 0 where the inputs are the same numbers, finite for disjoint supports. With r = p / (p + q) it is
    the mean over (p + q) / 2 of 1 - h(r), h the binary entropy: rounding of r cancels, so that small values are right.
    Source: arXiv 2605.11416, which leaves the base of the logarithm open; we use 2.
    """
    p, q = log_p.float().exp(), log_q.float().exp()
    total = p + q
    r = (p / total).nan_to_num_(nan=0.5)  # 0 / 0, where both are 0; any other NaN comes back with `total`
    rest = 1 - r
    bits = torch.xlogy(r, 2 * r).add_(torch.xlogy(rest, 2 * rest))
    return bits.mul_(total).sum(-1).div_(2 * math.log(2)).clamp_(0, 1)


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) (...) in bits of natural log-probabilities (..., vocab), in float32; the first axes broadcast."""
    log_p, log_q = log_p.float(), log_q.float()
    gap = torch.where(log_p == -torch.inf, 0.0, log_p - log_q)
    return gap.mul_(log_p.exp()).sum(-1).div_(math.log(2)).clamp_min_(0)


def kl_from_uniform(log_p: Tensor) -> Tensor:
    """KL(p || uniform) (...) in bits of natural log-probabilities (..., vocab): log2(vocab) less the entropy."""
    return kl_divergence(log_p, torch.full_like(log_p, -math.log(log_p.shape[-1]), dtype=torch.float32))


def delta_js(js: NDArray[np.float64]) -> NDArray[np.float64]:
    """dJS(l) = |JS(l) - JS(l-1)| for l = 1..L, (..., L), from JS(0)..JS(L), (..., L+1).

    Applied to means over prompts, never to single prompts: the mean of absolute differences is another, larger number.
    """
    return np.abs(np.diff(js, axis=-1))


def boundary_scores(js: NDArray[np.float64]) -> NDArray[np.float64]:
    """S(b) for b = 1..L-1, (..., L-1), from JS(0)..JS(L), (..., L+1): mean dJS of layers 1..b less that of b+1..L.

    Positive where the shallow side is the sensitive one. Our reading of the appendix of arXiv 2605.11416.
    """
    changes = delta_js(js)
    num_layers = changes.shape[-1]
    shallow = np.cumsum(changes, axis=-1)[..., :-1]
    deep = changes.sum(axis=-1, keepdims=True) - shallow
    b = np.arange(1, num_layers)
    return shallow / b - deep / (num_layers - b)


def boundary_at(share: float, num_layers: int) -> int:
    """The last shallow layer when `share` (0..1) of the layers is shallow: rounded, and never 0 or all."""
    return min(max(math.floor(share * num_layers + 0.5), 1), num_layers - 1)
