"""Chooses the layers of `layout.swap`: by a rule, by a trace, or by mixers that are fitted and scored in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from hybridizer import __version__
from hybridizer.core.cache import cache_folder
from hybridizer.core.errors import CheckpointError, InputError, Problem, RecipeError
from hybridizer.core.progress import Monitor
from hybridizer.core.records import content_hash, read_json, to_jsonable, write_json
from hybridizer.donors.donor import Donor
from hybridizer.families.mixer_shapes import AttentionShape, MixerShape
from hybridizer.mixers.choice import Choice, SwapScore, choose_layers
from hybridizer.pipeline.calibration import read_calibration, write_calibration
from hybridizer.plan.make import make_plan
from hybridizer.plan.origin import Fitted
from hybridizer.plan.plan import Evidence, Plan
from hybridizer.plan.swap import (
    as_slices,
    assume_swap,
    choose_by_rule,
    count_kept,
    describe_choice,
    swapped_donor,
)
from hybridizer.recipe.mixer import EVIDENCE_PLACES, Swap
from hybridizer.recipe.models import Recipe
from hybridizer.splice.fitted import FORM, fitted_tensors, mixer_shapes, read_windows


def choose_swapped(recipe: Recipe, donors: Mapping[str, Donor], monitor: Monitor) -> tuple[Recipe, Evidence]:
    """The recipe with the layers of its swap written out as slices, and the evidence for them.

    Everything that needs no evidence is checked first, as if the layers were spread evenly. What is measured is kept in
    the cache. Raises RecipeError for a count that the donor does not have and a text that is too short, PlanError for
    what no family holds, and what a trace raises.
    """
    swap = recipe.layout.swap_section
    name = swapped_donor(recipe)
    depth = donors[name].structure.num_layers
    num_kept, facts = count_kept(recipe, depth), dict[str, Any]()
    assumed = assume_swap(recipe, {name: depth})
    if num_kept == depth or swap.place not in EVIDENCE_PLACES:
        choice = choose_by_rule(recipe, depth)
    elif swap.place == "trace":
        make_plan(assumed, donors, Evidence())  # a fault is found before the donor runs
        facts, evidence = _by_trace(recipe, donors[name], monitor)
        choice = choose_layers(swap.place, depth, num_kept, evidence=evidence)
    else:
        facts, scores = _by_score(recipe, make_plan(assumed, donors, Evidence()), donors, monitor)
        choice = choose_layers(swap.place, depth, num_kept, scores=scores)
    record = {"place": swap.place, "seed": swap.seed, "donor": name, "mixer": swap.mixer.kind, **facts}
    record |= {key: value for key, value in choice.to_json().items() if key != "strategy"}
    evidence_of = Evidence((describe_choice(swap, name, choice),), tuple(_warn(choice)), swap=to_jsonable(record))
    return as_slices(recipe, choice), evidence_of


def _warn(choice: Choice) -> list[str]:
    if not choice.useless:
        return []
    layers = ", ".join(map(str, choice.useless))
    return [f"swapped alone, the mixers of layers {layers} do not come closer to the donor than nothing does"]


def _by_trace(recipe: Recipe, donor: Donor, monitor: Monitor) -> tuple[dict[str, Any], tuple[float, ...]]:
    """What LayerTracer reads of every layer of `donor`: how far a disturbance moves the distributions there."""
    from hybridizer.trace.runs import request_from_section, trace

    swap = recipe.layout.swap_section
    request = request_from_section(recipe.trace, swap.seed, recipe.folder)
    layers = trace(donor, request, monitor).record.layers
    figure = {"context": "delta_js", "layer": "js", "both": "layer_js"}[request.settings.perturb]
    facts = {"figure": figure, "probes": request.settings.probes, "perturb": request.settings.perturb}
    return facts, tuple(float(getattr(layer, figure) or 0.0) for layer in layers)


def _by_score(
    recipe: Recipe, assumed: Plan, donors: Mapping[str, Donor], monitor: Monitor
) -> tuple[dict[str, Any], tuple[SwapScore, ...]]:
    """Every layer swapped alone: fitted on the calibration text, scored behind it; from the cache where it is there.

    `assumed` is a plan of the same mixers in other layers.
    """
    swap, source, donor = recipe.layout.swap_section, fitted_tensors(assumed)[0].source, donors[swapped_donor(recipe)]
    assert isinstance(source, Fitted), "checked when the recipe was loaded"
    facts = {"text": source.text, "fit_tokens": source.tokens, "window": source.window, "tokens": swap.score_tokens}
    shapes = mixer_shapes(assumed)
    made = [swap.mixer.kind, swap.mixer.init, swap.seed, to_jsonable(shapes)]
    key = content_hash([FORM, __version__, donor.fingerprint, facts, made]).removeprefix("sha256:")[:32]
    path = cache_folder() / f"swaps-{key}.json"
    try:
        if path.is_file():
            found = read_json(path)
            return facts, tuple(SwapScore(**score) for score in found["scores"])
    except (CheckpointError, KeyError, TypeError):
        monitor.note(f"scores of layers of '{donor.name}': damaged in the cache, measured again")
    write_calibration(recipe, donors, monitor)
    scores = _score(recipe, swap, replace(source, seed=swap.seed), shapes, donor, monitor)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"scores": [asdict(score) for score in scores], **facts})
    return facts, scores


def _score(
    recipe: Recipe,
    swap: Swap,
    source: Fitted,
    shapes: tuple[MixerShape, AttentionShape],
    donor: Donor,
    monitor: Monitor,
) -> tuple[SwapScore, ...]:
    import torch

    from hybridizer.mixers.choose import score_swaps
    from hybridizer.mixers.fit import new_mixers
    from hybridizer.models.load import load_causal_lm
    from hybridizer.models.parts import find_parts

    model, tokenizer = load_causal_lm(donor.folder, torch.float32, trust_remote_code="remote_code" in donor.allow)
    parts, num_scored = find_parts(model), max(1, swap.score_tokens // source.window)
    num_fitted, layers = max(2, source.tokens // source.window), range(parts.num_layers)
    where = recipe.locate(("layout", "swap", "place"))
    try:
        windows = read_windows(tokenizer, read_calibration(recipe), num_fitted + num_scored, source.window)
    except InputError as error:
        raise RecipeError(*(Problem(where, f"`{p.where}`: {p.what}", p.fix) for p in error.problems)) from error
    if len(windows) < 2 + num_scored:
        what = f"{len(windows)} windows of {source.window} tokens in the calibration text, and a fit needs two beside "
        what += f"the {num_scored} that are scored."
        raise RecipeError(Problem(where, what, "Give more text, or a smaller `score_tokens` or `calibration.window`."))
    shape, attention = shapes
    make = new_mixers(parts, source.mixer, source.init, shape, attention, source.seed)
    with monitor.task("swap each layer alone", len(layers), "layers") as advance:
        fitted, scored = windows[:-num_scored], windows[-num_scored:]
        scores: tuple[SwapScore, ...] = score_swaps(model, parts, fitted, scored, layers, make, advance=advance)
    return scores
