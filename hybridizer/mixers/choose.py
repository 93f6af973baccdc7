"""Which layers keep their attention: evenly, by a seed, or by evidence of what each layer loses without it.

The evidence here is measured in memory: the attention of one layer at a time is replaced by a fitted mixer, and beside
it by nothing. A mixer that does not beat nothing is named.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from hybridizer.core.errors import DidYouMean, InputError, Problem
from hybridizer.mixers.control import BesideNothing, bits, divergence, log2_probs
from hybridizer.mixers.fit import DEFAULT, FitSettings, Make, fit_each
from hybridizer.mixers.stream import Batch, Mix, read_batch, run_layer
from hybridizer.models.objective import CausalLMLoss
from hybridizer.models.parts import Parts
from hybridizer.models.residual import bare_outputs, replaced

MEASURED = {"leave-one-out": "bits", "kl": "kl"}
STRATEGIES = ("uniform", "random", "trace", *MEASURED)


@dataclass(frozen=True)
class SwapScore(BesideNothing):
    """One layer whose attention alone was replaced.

    `bits` per token more than the donor's on the scored text, and `kl` in bits per token from the donor's next-token
    distribution, with the fitted mixer; `bits_dropped` and `kl_dropped` with nothing in its place.
    """

    layer: int
    bits: float
    bits_dropped: float
    kl: float
    kl_dropped: float
    explained: float


@dataclass(frozen=True)
class Choice:
    """The layers that keep their attention and those that are swapped; `evidence` per layer, larger where it matters.

    `useless` are swapped layers whose mixer was measured and does not beat nothing.
    """

    strategy: str
    kept: tuple[int, ...]
    swapped: tuple[int, ...]
    evidence: tuple[float, ...] = ()
    scores: tuple[SwapScore, ...] = ()
    useless: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As a plain record."""
        return asdict(self)


def choose_layers(
    strategy: str,
    num_layers: int,
    num_kept: int,
    *,
    seed: int = 0,
    evidence: Sequence[float] = (),
    scores: Sequence[SwapScore] = (),
) -> Choice:
    """Which `num_kept` of the layers keep their attention.

    "uniform" spreads them evenly, "random" draws them by `seed`. "trace" keeps the layers with the largest `evidence`,
    one number per layer, such as what LayerTracer reads of it. "leave-one-out" and "kl" keep those that lose most with
    a mixer, by `scores` of `score_swaps`; a layer without a score keeps its attention. Ties go to the shallower layer.
    Raises InputError for an unknown strategy, a number that leaves nothing to swap or no attention, and evidence that
    is missing.
    """
    _check(strategy, num_layers, num_kept, evidence, scores)
    if strategy == "uniform":
        kept = [math.floor((number + 0.5) * num_layers / num_kept) for number in range(num_kept)]
    elif strategy == "random":
        kept = random.Random(seed).sample(range(num_layers), num_kept)
    else:
        if strategy in MEASURED:
            measured = {score.layer: float(getattr(score, MEASURED[strategy])) for score in scores}
            evidence = [measured.get(layer, math.inf) for layer in range(num_layers)]
        kept = sorted(range(num_layers), key=lambda layer: -evidence[layer])[:num_kept]
    rest = tuple(layer for layer in range(num_layers) if layer not in kept)
    useless = tuple(score.layer for score in scores if score.layer in rest and not score.helps)
    return Choice(strategy, tuple(sorted(kept)), rest, tuple(evidence), tuple(scores), useless)


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


def _check(
    strategy: str, num_layers: int, num_kept: int, evidence: Sequence[float], scores: Sequence[SwapScore]
) -> None:
    problems = []
    if strategy not in STRATEGIES:
        problems.append(Problem("keep", f"there is no strategy '{strategy}'.", str(DidYouMean(strategy, STRATEGIES))))
    if not 0 < num_kept < num_layers:
        what = f"{num_kept} of {num_layers} layers are to keep their attention."
        problems.append(Problem("keep", what, f"Give a number from 1 to {num_layers - 1}."))
    if strategy == "trace" and len(evidence) != num_layers:
        what = f"{len(evidence)} numbers of evidence for {num_layers} layers."
        problems.append(Problem("keep", what, "Trace the donor first, or choose another strategy."))
    if strategy in MEASURED and not scores:
        problems.append(Problem("keep", "no layer was measured.", "Measure the layers with score_swaps first."))
    if problems:
        raise InputError(*problems)
