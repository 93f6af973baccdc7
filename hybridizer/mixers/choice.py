"""Which layers keep their attention: evenly, by a seed, or by evidence of what each layer loses without it."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hybridizer.core.errors import DidYouMean, InputError, Problem

MEASURED = {"leave-one-out": "bits", "kl": "kl"}
STRATEGIES = ("uniform", "shallow", "deep", "random", "trace", *MEASURED)


class BesideNothing:
    """What was measured with new mixers, and with nothing in their place: the divergence from the donor in bits."""

    kl: float
    kl_dropped: float

    @property
    def helps(self) -> bool:
        """Whether the mixers are closer to the donor than nothing is."""
        return self.kl < self.kl_dropped


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

    "uniform" spreads them evenly, "random" draws them by `seed`. "shallow" and "deep" name the end whose layers are
    swapped: with "shallow" the deepest ones keep their attention. "trace" keeps the layers with the largest `evidence`,
    one number per layer, such as what LayerTracer reads of it. "leave-one-out" and "kl" keep those that lose most with
    a mixer, by `scores` of `score_swaps`; a layer without a score keeps its attention. Ties go to the shallower layer.
    Raises InputError for an unknown strategy, a number that leaves nothing to swap or no attention, and evidence that
    is missing.
    """
    _check(strategy, num_layers, num_kept, evidence, scores)
    if strategy == "uniform":
        kept = [math.floor((number + 0.5) * num_layers / num_kept) for number in range(num_kept)]
    elif strategy in ("shallow", "deep"):
        first = num_layers - num_kept if strategy == "shallow" else 0
        kept = list(range(first, first + num_kept))
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
