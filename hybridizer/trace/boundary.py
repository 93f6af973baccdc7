"""Where the boundary goes: one function a strategy, and one dictionary of them.

A boundary b makes layers 1..b of a donor shallow and b+1..L deep. S(b) is the mean dJS of the first less that of the
second; S(b) > 0 says that the shallow side is the sensitive one, which is what licenses freezing the deep one
(arXiv 2605.11416). Whatever strategy chose it, a boundary comes with a warning where the trace does not say so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hybridizer.core.errors import InputError, Problem, nearest
from hybridizer.recipe.layers import first_deep_layer
from hybridizer.trace.evidence import Evidence, read_evidence


@dataclass(frozen=True)
class Boundary:
    """`layer` is b, 1..L-1: the number of shallow layers. `reason` is one sentence, `warning` one or None."""

    layer: int
    strategy: str
    reason: str
    warning: str | None


def choose_boundary(asked: str | float, record: Mapping[str, Any]) -> Boundary:
    """The boundary of the donor traced in `record`, a "hybridizer.trace/1" object, as a recipe asks for it.

    `asked` is the name of a strategy, a share of the depth (a float between 0 and 1), or b itself (an int). Raises
    InputError for an unknown name, a number outside its range, a damaged record, and a strategy for which the
    record has no evidence.
    """
    evidence = read_evidence(record)
    if isinstance(asked, str):
        if asked not in STRATEGIES:
            raise InputError(Problem("boundary", f"there is no strategy '{asked}'.", nearest(asked, STRATEGIES)))
        name, (layer, reason) = asked, STRATEGIES[asked](evidence)
    elif isinstance(asked, int):
        name, (layer, reason) = "layer", fixed(evidence, asked)
    else:
        name, (layer, reason) = "share", share(evidence, asked)
    return Boundary(layer, name, reason, _warning(evidence, layer))


def midpoint(evidence: Evidence) -> tuple[int, str]:
    """Half of the layers, a half rounded up: the split of arXiv 2605.11416, whatever the trace says."""
    layer = first_deep_layer(0.5, evidence.num_layers)
    return layer, f"The midpoint of {evidence.num_layers} layers, as in arXiv 2605.11416; {_score(evidence, layer)}."


def share(evidence: Evidence, asked: float) -> tuple[int, str]:
    """`asked` of the depth, rounded, at least one layer on each side. Raises InputError outside (0, 1)."""
    if not 0 < asked < 1:
        what = f"{asked} is not a share of the depth between 0 and 1."
        raise InputError(Problem("boundary", what, "Give a share such as 0.5, or a layer such as 15."))
    layer = first_deep_layer(asked, evidence.num_layers)
    return layer, f"{asked:.0%} of {evidence.num_layers} layers, as asked; {_score(evidence, layer)}."


def fixed(evidence: Evidence, asked: int) -> tuple[int, str]:
    """b as given. Raises InputError where it leaves one side empty."""
    if not 1 <= asked < evidence.num_layers:
        what = f"layer {asked} leaves one side of {evidence.donor} empty: it has {evidence.num_layers} layers."
        raise InputError(Problem("boundary", what, f"Give a layer inside 1..{evidence.num_layers - 1}."))
    return asked, f"{asked} shallow layers of {evidence.num_layers}, as asked; {_score(evidence, asked)}."


def s_maximal(evidence: Evidence) -> tuple[int, str]:
    """The b with the largest S(b), the smallest b among equals [ours; the paper does not search].

    A mean over few layers varies most, so this is drawn to the ends, where one spike decides; see `knee` and `auto`.
    """
    return _s_maximal_among(evidence, range(1, evidence.num_layers))


def task_particle(evidence: Evidence) -> tuple[int, str]:
    """The last b that leaves the median task particle on the deep side: the task is executed by frozen layers.

    Ours, from the idea of arXiv 2604.20556. A particle in layer 1 gives b = 1, the least there is. Raises InputError
    where no prompt has a task particle.
    """
    if evidence.particle is None:
        what = f"no prompt has a task particle in the trace of {evidence.donor}."
        raise InputError(Problem("boundary", what, "Trace with a lower tau or p_min, or choose another strategy."))
    layer = max(1, math.ceil(evidence.particle) - 1)
    place = f"the median task particle, at layer {evidence.particle:g} of {evidence.num_layers},"
    return layer, f"Deep begins where {place} comes up; {_score(evidence, layer)}."


def knee(evidence: Evidence) -> tuple[int, str]:
    """The knee of the cumulative sensitivity: where the summed dJS is furthest above a steady climb to its total.

    With C(b) the share of all dJS that layers 1..b have, it maximises C(b) - b / L, the smallest b among equals
    [ours; the definition of a knee is that of Kneedle, Satopaa et al. 2011]. That difference is S(b) times b (L - b),
    up to a factor that is the same for all b: S(b) weighted against lonely layers at the ends. Raises InputError for
    a donor without any sensitivity, which has no knee.
    """
    if sum(evidence.delta_js) <= 0:
        what = f"the perturbation changes nothing in any layer of {evidence.donor}, so its sensitivity has no knee."
        fix = "Choose another strategy, and doubt this donor: does it read its input?"
        raise InputError(Problem("boundary", what, fix))
    return _knee_among(evidence, range(1, evidence.num_layers))


def auto(evidence: Evidence) -> tuple[int, str]:
    """The knee if S is positive there beyond doubt, else the b of the largest S if that is, else the midpoint.

    Ours. Only boundaries with a quarter of the layers or more on either side are looked at: for SmolLM2-135M both knee
    and largest S lie after layer 2 of 30, where one layer's spike makes them, and next to nothing is left to train.
    "Beyond doubt": the 95% interval of S(b) lies above 0. That interval does not know that b was searched for, so it is
    too sure by some; the midpoint is the one b that no search chose, which is why it is the last resort.
    """
    quarter = math.ceil(evidence.num_layers / 4)
    inner = range(quarter, evidence.num_layers - quarter + 1)
    for choose in (_knee_among, _s_maximal_among):
        layer, reason = choose(evidence, inner)
        if _doubt(evidence, layer) is None:
            return layer, reason
    layer = first_deep_layer(0.5, evidence.num_layers)
    span = f"between {inner[0]} and {inner[-1]}"
    return layer, f"No boundary {span} is beyond doubt, so the midpoint; {_score(evidence, layer)}."


STRATEGIES: Mapping[str, Callable[[Evidence], tuple[int, str]]] = {
    "auto": auto,
    "knee": knee,
    "midpoint": midpoint,
    "s-maximal": s_maximal,
    "task-particle": task_particle,
}


def _s_maximal_among(evidence: Evidence, boundaries: range) -> tuple[int, str]:
    layer = max(boundaries, key=lambda b: (evidence.scores[b - 1], -b))
    where = f"among boundaries {boundaries[0]} to {boundaries[-1]}"
    return layer, f"The largest S(b) {where} is after layer {layer}: {_score(evidence, layer)}."


def _knee_among(evidence: Evidence, boundaries: range) -> tuple[int, str]:
    total = sum(evidence.delta_js) or 1.0
    shares = [sum(evidence.delta_js[:b]) / total for b in range(evidence.num_layers)]
    layer = max(boundaries, key=lambda b: (shares[b] - b / evidence.num_layers, -b))
    found = f"the first {layer} of {evidence.num_layers} layers have {shares[layer]:.0%} of the sensitivity"
    where = f"among boundaries {boundaries[0]} to {boundaries[-1]}"
    return layer, f"The knee of the cumulative sensitivity {where}: {found}; {_score(evidence, layer)}."


def _score(evidence: Evidence, layer: int) -> str:
    interval = evidence.intervals[layer - 1]
    spread = f"95% interval {interval[0]:+.3f} to {interval[1]:+.3f}" if interval else "one prompt, no interval"
    return f"S({layer}) = {evidence.scores[layer - 1]:+.3f} ({spread})"


def _warning(evidence: Evidence, layer: int) -> str | None:
    doubt = _doubt(evidence, layer)
    if doubt is None:
        return None
    return f"Freezing deep is not supported by the trace of {evidence.donor}: {_score(evidence, layer)} {doubt}."


def _doubt(evidence: Evidence, layer: int) -> str | None:
    """Why S at this boundary does not license freezing deep, None where it does."""
    interval = evidence.intervals[layer - 1]
    if evidence.scores[layer - 1] <= 0:
        return "is not positive"
    if interval is None:
        return "may be chance"
    return "has an interval that contains zero" if interval[0] <= 0 else None
