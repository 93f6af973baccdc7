"""A hybrid beside its donor and its control, the same layers with nothing in the place of their attention: in memory.

A hybrid that does not beat its control gains nothing from its mixers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn

from hybridizer.mixers.choice import BesideNothing
from hybridizer.mixers.stream import Mix, swapped
from hybridizer.models.objective import CausalLMLoss
from hybridizer.models.parts import Parts


@dataclass(frozen=True)
class HybridScore(BesideNothing):
    """Bits per token of a text by the donor, by the hybrid, and by the hybrid with its mixers dropped.

    `kl` and `kl_dropped` are the mean divergence from the donor's next-token distribution to theirs, in bits.
    """

    donor_bits: float
    bits: float
    bits_dropped: float
    kl: float
    kl_dropped: float


@torch.no_grad()
def score_hybrid(
    model: nn.Module, parts: Parts, scored: Int64[Tensor, "rows tokens"], mixes: Mapping[int, Mix]
) -> HybridScore:
    """The score of the donor with `mixes` in place of the attention of their layers, on rows without padding.

    One row is in memory at a time, with three distributions over the vocabulary per token. The model is not changed.
    """
    objective = CausalLMLoss(model, parts)
    sums = torch.zeros(5, dtype=torch.float64)
    for row in scored.split(1):
        donor = log2_probs(objective, row)
        found = [donor]
        for inside in (mixes, dict.fromkeys(mixes, torch.zeros_like)):
            with swapped(parts, inside):
                found.append(log2_probs(objective, row))
        sums += torch.tensor([*(bits(log_p, row) for log_p in found), *(divergence(donor, p) for p in found[1:])])
    return HybridScore(*(float(value) for value in sums / len(scored)))


def log2_probs(objective: CausalLMLoss, ids: Int64[Tensor, "rows tokens"]) -> Float32[Tensor, "rows tokens vocabulary"]:
    """The model's next-token distributions, as logarithms to base 2."""
    hidden = objective.hidden(ids.to(next(objective.parameters()).device))
    logits = objective.logits(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2])
    return torch.log_softmax(logits, dim=-1) / math.log(2)


def bits(log_p: Float32[Tensor, "rows tokens vocabulary"], ids: Int64[Tensor, "rows tokens"]) -> float:
    """Bits per predicted token: -log2 p of every token but the first of each row."""
    return -float(log_p[:, :-1].gather(-1, ids[:, 1:, None].to(log_p.device)).double().mean())


def divergence(
    donor: Float32[Tensor, "rows tokens vocabulary"], other: Float32[Tensor, "rows tokens vocabulary"]
) -> float:
    """The mean over tokens of KL(donor || other) in bits, from logarithms to base 2."""
    return float((donor.exp2() * (donor - other)).sum(-1).mean())
