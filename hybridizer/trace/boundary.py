"""Where the boundary goes: one function per strategy, and one dictionary of them.

A boundary b is the first deep layer: it makes layers 0..b-1 of a donor shallow and b..L-1 deep. S(b) is the mean dJS of
the first minus that of the second; S(b) > 0 means that the shallow side is the more sensitive one, which supports
freezing the deep one (arXiv 2605.11416). Every boundary comes with its licence (licence.py), and with a warning where
it is not licensed, whatever strategy chose it.

A new strategy is a function here, an entry in STRATEGIES, and its name in recipe.STRATEGIES, which recipes are checked
against; the two are compared at import. One that searches for b by S(b) is named in SEARCHES too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hybridizer.core.errors import DidYouMean, InputError, Problem
from hybridizer.recipe.layers import first_deep_layer, format_layers
from hybridizer.recipe.models import STRATEGIES as NAMES
from hybridizer.trace.licence import ALL, GIVEN, INNER, LICENSED, Licence, inner_boundaries, judge, least_lower_end
from hybridizer.trace.record import TraceRecord


@dataclass(frozen=True)
class Boundary:
    """`layer` is b, 1..L-1: the first deep layer. `reason` is one sentence; `warning` is None where it is licensed."""

    layer: int
    strategy: str
    reason: str
    warning: str | None
    licence: Licence | None = None


def choose_boundary(choice: str | float, record: TraceRecord) -> Boundary:
    """The boundary of the donor traced in `record`, as a recipe or a user requests it.

    `choice` is the name of a strategy, a share of the depth (a float between 0 and 1), or b itself (an int). Raises
    InputError for an unknown name, a number outside its range, a donor of a single layer, which no boundary splits, and
    a strategy for which the record has no evidence.
    """
    if not record.boundary:
        what = f"{record.donor.reference} has a single layer, and a boundary needs one on each side."
        raise InputError(Problem("boundary", what, "Take a donor of two layers or more."))
    check_boundary(choice, {record.donor.reference: len(record.layers)})
    if isinstance(choice, str):
        name, (layer, reason) = choice, STRATEGIES[choice](record)
    elif isinstance(choice, int):
        name, (layer, reason) = "layer", fixed(record, choice)
    else:
        name, (layer, reason) = "share", share(record, choice)
    licence = judge(record.licence_settings, layer, SEARCHES.get(name, GIVEN))
    return Boundary(layer, name, reason, _warning(record, licence), licence)


def follow_boundary(chosen: Boundary, reference: str, place: float, record: TraceRecord) -> Boundary:
    """The boundary of another donor at `place`, a share or b itself, which strategy `chosen` found in `reference`.

    Judged as found by that strategy's search: donors of one origin have nearly the same trace, so that it is no
    independent test. Raises what `choose_boundary` raises.
    """
    layer = choose_boundary(place, record).layer
    licence = judge(record.licence_settings, layer, SEARCHES.get(chosen.strategy, GIVEN))
    reason = f"Placed by '{reference}': {chosen.reason} In this donor {_score(record, layer)}."
    return Boundary(layer, chosen.strategy, reason, _warning(record, licence), licence)


def check_boundary(choice: str | float, depths: Mapping[str, int]) -> None:
    """Raise InputError where `choice` cannot be a boundary of donors of these depths, whatever their traces show."""
    if isinstance(choice, str):
        if choice not in STRATEGIES:
            raise InputError(Problem("boundary", f"there is no strategy '{choice}'.", DidYouMean(choice, STRATEGIES)))
    elif isinstance(choice, int):
        for donor, depth in depths.items():
            if depth > 1 and not 1 <= choice < depth:
                what = f"layer {choice} leaves one side of {donor} empty: it has {depth} layers."
                raise InputError(Problem("boundary", what, f"Give a layer inside 1..{depth - 1}."))
    elif not 0 < choice < 1:
        what = f"{choice} is not a share of the depth between 0 and 1."
        raise InputError(Problem("boundary", what, "Give a share such as 0.5, or a layer such as 15."))


def midpoint(record: TraceRecord) -> tuple[int, str]:
    """Half of the layers, a half rounded up: the split of arXiv 2605.11416, whatever the trace shows."""
    num_layers = len(record.layers)
    layer = first_deep_layer(0.5, num_layers)
    return layer, f"The midpoint of {num_layers} layers, as in arXiv 2605.11416; {_score(record, layer)}."


def share(record: TraceRecord, choice: float) -> tuple[int, str]:
    """`choice` of the depth, rounded, at least one layer on each side."""
    layer = first_deep_layer(choice, len(record.layers))
    return layer, f"{choice:.0%} of {len(record.layers)} layers, as requested; {_score(record, layer)}."


def fixed(record: TraceRecord, choice: int) -> tuple[int, str]:
    """b as given."""
    return choice, f"{choice} shallow layers of {len(record.layers)}, as requested; {_score(record, choice)}."


def s_maximal(record: TraceRecord) -> tuple[int, str]:
    """The b with the largest debiased S(b), the smallest b among equals [ours; the paper does not search].

    A mean over few layers varies most, so this is drawn to the ends, where one spike decides; see `knee` and `auto`.
    """
    return _s_maximal_among(record, range(1, len(record.layers)))


def task_particle(record: TraceRecord) -> tuple[int, str]:
    """The last b that leaves the median task particle on the deep side: the task is executed by frozen layers.

    Ours, from the idea of arXiv 2604.20556. A particle in layer 0 gives b = 1, the least there is. Raises InputError
    where no prompt has a task particle.
    """
    particle = record.task_particle.layer
    if particle is None:
        what = f"no prompt has a task particle in the trace of {record.donor.reference}."
        raise InputError(Problem("boundary", what, "Trace with a lower tau or p_min, or choose another strategy."))
    layer = max(1, math.ceil(particle))
    place = f"the median task particle, at layer {particle:g} of 0..{len(record.layers) - 1},"
    return layer, f"Deep begins where {place} comes up; {_score(record, layer)}."


def knee(record: TraceRecord) -> tuple[int, str]:
    """The knee of the cumulative sensitivity: where the summed dJS is furthest above a steady climb to its total.

    With C(b) the share of all dJS that the first b layers have, it maximises C(b) - b / L, the smallest b among equals
    [ours; the definition of a knee is that of Kneedle, Satopaa et al. 2011]. That difference is S(b) times b (L - b),
    up to a factor that is the same for all b: S(b) weighted against single layers at the ends. It is computed so, from
    the debiased S(b). Raises InputError for a donor without any sensitivity, which has no knee.
    """
    if sum(row.delta_js for row in record.layers) <= 0:
        donor = record.donor.reference
        what = f"the perturbation changes nothing in any layer of {donor}, so its sensitivity has no knee."
        fix = "Choose another strategy, and check that this donor reads its input."
        raise InputError(Problem("boundary", what, fix))
    return _knee_among(record, range(1, len(record.layers)))


NO_PROMISE = "no trace was found to predict what training gains (`hybridize trial` measures it)"


def auto(record: TraceRecord) -> tuple[int, str]:
    """The licensed boundary whose licence is furthest from being lost, else the midpoint.

    Ours. Only boundaries with a quarter of the layers or more on each side are considered: for SmolLM2-135M both knee
    and largest S are at layer 2 of 30, because of a spike in one layer, which leaves almost nothing to train. Licences
    are corrected for this search (licence.py). Of those, the one with the largest least lower end of an interval of
    S(b) among all settings is taken. The midpoint is the one b that no search chose, which is why it is the fallback.
    The reason says that no licence promises what training will give: where boundaries were trained, no measure of a
    trace told more than how many layers train (docs/evidence.md, scripts/trace_outcome.py).
    """
    inner = inner_boundaries(len(record.layers))
    licensed = [b for b in inner if judge(record.licence_settings, b, INNER).verdict == LICENSED]
    span = f"boundaries {inner[0]} to {inner[-1]}"
    if not licensed:
        layer = first_deep_layer(0.5, len(record.layers))
        return layer, f"None of {span} is licensed, so the midpoint; {_score(record, layer)}; {NO_PROMISE}."
    layer = max(licensed, key=lambda b: (least_lower_end(record.licence_settings, b, INNER), -b))
    margin = f"S({layer}) is at least {least_lower_end(record.licence_settings, layer, INNER):+.3f} under every setting"
    reason = f"Of {span}, {format_layers(licensed)} are licensed, and {margin}; {_score(record, layer)}"
    return layer, f"{reason}; {NO_PROMISE}."


STRATEGIES: Mapping[str, Callable[[TraceRecord], tuple[int, str]]] = {
    "auto": auto,
    "knee": knee,
    "midpoint": midpoint,
    "s-maximal": s_maximal,
    "task-particle": task_particle,
}
SEARCHES: Mapping[str, str] = {"auto": INNER, "knee": ALL, "s-maximal": ALL}  # the others do not search S(b)
assert tuple(STRATEGIES) == NAMES, "recipe.STRATEGIES names another set of strategies, or in another order"


def _s_maximal_among(record: TraceRecord, boundaries: range) -> tuple[int, str]:
    layer = max(boundaries, key=lambda b: (record.boundary[b - 1].s_debiased, -b))
    where = f"among boundaries {boundaries[0]} to {boundaries[-1]}"
    return layer, f"The largest S(b) {where} is at layer {layer}: {_score(record, layer)}."


def _knee_among(record: TraceRecord, boundaries: range) -> tuple[int, str]:
    num_layers = len(record.layers)
    layer = max(boundaries, key=lambda b: (record.boundary[b - 1].s_debiased * b * (num_layers - b), -b))
    where = f"among boundaries {boundaries[0]} to {boundaries[-1]}"
    return layer, f"The knee of the cumulative sensitivity {where} is at layer {layer}: {_score(record, layer)}."


def _score(record: TraceRecord, layer: int) -> str:
    s, band = record.boundary[layer - 1].s_debiased, record.boundary[layer - 1].s_debiased_ci
    spread = f"95% interval {band[0]:+.3f} to {band[1]:+.3f}" if band else "one prompt, no interval"
    return f"S({layer}) = {s:+.3f} ({spread})"


def _warning(record: TraceRecord, licence: Licence) -> str | None:
    """Why the trace does not support freezing from this boundary on, and which boundaries it does; None for a licence.

    Named are those in the middle half, where `auto` searches.
    """
    if licence.verdict == LICENSED:
        return None
    licensed = [
        b for b in inner_boundaries(len(record.layers)) if judge(record.licence_settings, b, INNER).verdict == LICENSED
    ]
    others = f"Licensed are boundaries {format_layers(licensed)}." if licensed else "No boundary is licensed."
    return f"{record.donor.reference}: {licence.sentence} {others}"
