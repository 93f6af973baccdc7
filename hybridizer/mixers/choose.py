"""What each layer loses when its attention alone is replaced: the evidence for which layers keep it.

It is measured in memory: the attention of one layer at a time is replaced by a fitted mixer, and beside it by nothing.
A mixer that does not beat nothing is named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from hybridizer.mixers.choice import SwapScore
from hybridizer.mixers.control import bits, divergence, log2_probs
from hybridizer.mixers.fit import DEFAULT, FitSettings, Make, fit_each
from hybridizer.mixers.stream import Batch, Mix, read_batch, run_layer
from hybridizer.models.objective import CausalLMLoss
from hybridizer.models.parts import Parts
from hybridizer.models.residual import bare_outputs, replaced


@torch.no_grad()
def score_swaps(
    model: nn.Module,
    parts: Parts,
    ids: Int64[Tensor, "windows tokens"],
    scored: Int64[Tensor, "rows tokens"],
    layers: Sequence[int],
    make: Make,
    settings: FitSettings = DEFAULT,
    advance: Callable[[int], None] = lambda layers: None,
) -> tuple[SwapScore, ...]:
    """What each of `layers` loses on the rows `scored` when its attention alone is replaced by a mixer fitted on `ids`.

    The rows are one batch of texts without padding. Nothing is written and the model is not changed. Layers beneath the
    swapped one are not run again. `advance` gets 1 per layer. Raises InputError as `fit_mixers` does.
    """
    batch, objective = read_batch(model, parts, scored), CausalLMLoss(model, parts)
    streams = [batch.embedded]
    for layer in range(parts.num_layers):
        streams.append(run_layer(parts, layer, batch, streams[-1]))
    donor = _read_tail(objective, parts, scored, streams[-1])
    donor_bits = bits(donor, scored)
    found = []
    for fitted in fit_each(model, parts, ids, layers, make, settings):
        layer = fitted.layer
        mixes: tuple[Mix, Mix] = (fitted.module(parts.device), torch.zeros_like)
        losses = []
        for mix in mixes:
            log_p = _read_tail(objective, parts, scored, _finish(parts, layer, batch, streams[layer], mix))
            losses.append((bits(log_p, scored) - donor_bits, divergence(donor, log_p)))
        (more, kl), (more_dropped, kl_dropped) = losses
        found.append(SwapScore(layer, more, more_dropped, kl, kl_dropped, fitted.explained_heldout))
        advance(1)
    return tuple(found)


def _finish(
    parts: Parts, layer: int, batch: Batch, hidden: Float[Tensor, "rows tokens hidden"], mix: Mix
) -> Float[Tensor, "rows tokens hidden"]:
    """The output of the last layer from the input of `layer`, with `mix` in place of that layer's attention."""
    hidden = run_layer(parts, layer, batch, hidden, mix)
    for above in range(layer + 1, parts.num_layers):
        hidden = run_layer(parts, above, batch, hidden)
    return hidden


def _read_tail(
    objective: CausalLMLoss, parts: Parts, ids: Tensor, stream: Float[Tensor, "rows tokens hidden"]
) -> Float32[Tensor, "rows tokens vocabulary"]:
    """The next-token distributions where `stream` is the output of the last layer, by the model's own code."""
    with replaced(parts, bare_outputs(parts, stream)):
        return log2_probs(objective, ids)
