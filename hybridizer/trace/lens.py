"""The logit lens: the next-token distribution if this residual stream were the output of the last layer.

P(s) = softmax(head(norm(h(s)))) of each state s of the residual stream (0 is the embedding output, l + 1 the output of
layer l), by the model's own code from the last layer to the logits (arXiv 2605.11416).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from hybridizer.core.errors import DonorError, Problem
from hybridizer.models.parts import MODEL_FAULTS, Parts, agree, arbitrary_ids, first_floating, run_model
from hybridizer.models.residual import bare_outputs, last_rows, read_outputs, replaced, run_tail
from hybridizer.trace.divergence import log2_softmax


@runtime_checkable
class Translator(Protocol):
    """Maps a state of the residual stream to the basis of the last one, before the model's tail reads it."""

    def __call__(self, state: int, rows: Float[Tensor, "n *streams hidden"]) -> Float[Tensor, "n *streams hidden"]: ...


@dataclass(frozen=True)
class Lens:
    """The model's tail as a function of residual rows; with a `translator`, a tuned lens."""

    model: nn.Module
    parts: Parts
    translator: Translator | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, and so of the residual stream and the logits."""
        return next(self.model.parameters()).dtype

    def layer_log2_probs(
        self, hidden: Sequence[Float[Tensor, "n *streams hidden"]]
    ) -> Float32[Tensor, "n states vocab"]:
        """log2 of P(0)..P(L) of the L+1 states h(0)..h(L)."""
        if self.translator is None:
            return self.final_log2_probs(hidden)
        return self.final_log2_probs(
            [*(self.translator(state, rows) for state, rows in enumerate(hidden[:-1])), hidden[-1]]
        )

    def final_log2_probs(self, rows: Sequence[Float[Tensor, "n *streams hidden"]]) -> Float32[Tensor, "n states vocab"]:
        """log2 of the model's next-token probabilities when its last layer outputs each of `rows` in turn."""
        stacked = torch.stack([row.to(rows[-1].device) for row in rows], dim=1)  # (n, k, ..., hidden)
        logits = run_tail(self.model, self.parts, stacked.flatten(0, 1))
        return log2_softmax(logits).view(*stacked.shape[:2], -1)


@torch.no_grad()
def check_lens(model: nn.Module, parts: Parts) -> None:
    """Check on a short run that the lens at the last layer is the model's own next-token distribution.

    With its own h(L) and other token ids in a run of the same shape, the model must compute the same logits bit for
    bit; the lens, which reads single positions, must agree up to rounding. Raises DonorError where either fails.
    """
    name = type(model).__name__
    ids = arbitrary_ids(model, 2, 7)
    try:
        own = run_model(model, ids)
        final = read_outputs(model, parts, ids, first_floating)[-1]
        with replaced(parts, bare_outputs(parts, final)):
            again = run_model(model, ids.flip(0, 1))
        rows = run_tail(model, parts, last_rows(parts, final))
    except MODEL_FAULTS as error:
        raise _refusal(name, f"its tail does not run alone: {type(error).__name__}: {str(error)[:200]}") from error
    if not torch.isfinite(own).any(dim=-1).all():
        raise _refusal(name, f"its logits are not numbers in {own.dtype}")
    if not torch.equal(own, again):
        raise _refusal(name, "its logits depend on more than the output of the last layer, so no lens can be exact")
    if not agree(rows, own[:, -1]):
        raise _refusal(name, "its logits at one position depend on other positions after the last layer")


def _refusal(name: str, reason: str) -> DonorError:
    return DonorError(Problem(name, f"this model cannot be traced: {reason}.", "Trace another donor."))
