"""What training changed in a model: bits per byte, samples, and the profile of its deep side, before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hybridizer.core.errors import Problem, RecipeError
from hybridizer.core.progress import Monitor
from hybridizer.core.records import content_hash, write_json
from hybridizer.data.tokenizer import load_encoder
from hybridizer.donors.donor import Donor
from hybridizer.donors.open import Access, open_donor
from hybridizer.donors.reference import parse_reference
from hybridizer.evaluate.figures import BITS_PER_BYTE, compare_pairs, text_figures
from hybridizer.evaluate.gate import GateResult, Limit, judge, read_limits
from hybridizer.evaluate.run import compare_runs, evaluate
from hybridizer.pipeline.plan import Planned
from hybridizer.pipeline.run import RunFolder
from hybridizer.plan.manifest import read_manifest
from hybridizer.recipe.models import DataEntry, Evaluate, Recipe
from hybridizer.trace.record import TraceRun
from hybridizer.trace.runs import TraceRequest, request_from_section, trace
from hybridizer.train.run import open_texts


@dataclass(frozen=True)
class BeforeAfter:
    """The records of schema "hybridizer.scores/1" and, where the recipe traced its donors, "hybridizer.profile/2".

    `gate` holds the limits of the recipe, judged.
    """

    scores: Mapping[str, Any]
    profile: Mapping[str, Any] | None
    gate: tuple[GateResult, ...] = ()


def evaluate_run(planned: Planned, run: RunFolder, monitor: Monitor) -> BeforeAfter:
    """Compare the run's model with the spliced one that it was trained from.

    Writes scores.json and profile.json. Both sides are scored and traced once for each content and kept in the cache.
    """
    scores, gate = _compare_scores(planned, run, monitor)
    write_json(run.scores, scores)
    traced = planned.resolved.traces or planned.resolved.recipe.trace is not None
    profile = _compare_profiles(planned, run, monitor) if traced else None
    if profile is not None:
        write_json(run.profile, profile)
    return BeforeAfter(scores, profile, gate)


def read_gate(recipe: Recipe) -> tuple[Limit, ...]:
    """The limits that the recipe's `evaluate.gate` names, each on the bits per byte of a text that is evaluated.

    Called before training as well. Raises RecipeError for limits that could never be judged.
    """
    if recipe.evaluate is None or recipe.evaluate.gate is None:
        return ()
    path = recipe.folder / recipe.evaluate.gate
    limits = read_limits(path)
    sources = [entry.name for entry in recipe.train.data] if recipe.train else []
    names = [*sources, *(text.name for text in recipe.evaluate.bits_per_byte)]
    problems = []
    for limit in limits:
        if limit.metric != BITS_PER_BYTE or limit.what not in names:
            what = f"no '{limit.metric}' of '{limit.what}' is evaluated in {recipe.locate(('evaluate', 'gate'))}."
            problems.append(Problem(str(path), what, f"Give {BITS_PER_BYTE} of one of: {', '.join(names)}."))
    if problems:
        raise RecipeError(*problems)
    return limits


def check_prompts(recipe: Recipe, host: Donor) -> None:
    """Return if each prompt of `recipe` leaves a model of that host room for an answer.

    Called before training, since a prompt that is too long would otherwise end a run of hours. Raises RecipeError with
    every such prompt at its line.
    """
    if recipe.evaluate is None or not recipe.evaluate.prompts:
        return
    from hybridizer.evaluate.samples import unfit_prompts
    from hybridizer.models.load import load_tokenizer, read_max_tokens

    remote_code = "remote_code" in host.allow
    tokenizer, room = load_tokenizer(host.folder, remote_code), read_max_tokens(host.folder, remote_code)
    if unfit := unfit_prompts(tokenizer, room, recipe.evaluate.prompts):
        places = {index: recipe.locate(("evaluate", "prompts", index)) for index in unfit}
        raise RecipeError(*(replace(problem, where=places[index]) for index, problem in unfit.items()))


def _compare_scores(
    planned: Planned, run: RunFolder, monitor: Monitor
) -> tuple[dict[str, Any], tuple[GateResult, ...]]:
    """The record, and the limits judged by it."""
    recipe = planned.resolved.recipe
    settings = recipe.evaluate or Evaluate()
    code = _remote_code(planned)
    texts = open_sets(recipe, settings, run.model, code, monitor)
    before = evaluate(run.spliced, content_of(run.spliced), texts, settings, monitor, remote_code=code)
    after = evaluate(run.model, content_of(run.model), texts, settings, monitor, remote_code=code)
    pairs = compare_pairs([("before", text_figures(before)), ("after", text_figures(after))], recipe.seed)
    gate = judge(read_gate(recipe), pairs, {(pair.what, pair.metric): True for pair in pairs}, "before")
    return compare_runs(before, after, seed=recipe.seed), gate


def open_sets(recipe: Recipe, request: Evaluate, model: Path, remote_code: bool, monitor: Monitor) -> list[Any]:
    """The held-out documents of every training source, then the general texts without what training sees of them.

    `model` is a folder with the model's tokenizer. Raises InputError for a general text of which nothing is left.
    """
    from hybridizer.evaluate.texts import general_text, heldout_texts, trained_keys

    train = recipe.train_section
    encoder = load_encoder(model, remote_code)
    sources = open_texts(train.data, recipe.folder, encoder, monitor)
    sets = list(heldout_texts(sources, train.heldout_ratio, monitor, request.max_tokens))
    trained = trained_keys(sources, train.heldout_ratio)
    for text in request.bits_per_byte:
        (source,) = open_texts((DataEntry(text.path, field=text.field),), recipe.folder, encoder, monitor)
        sets.append(general_text(text.name, source, trained, request.max_tokens))
    return sets


def _compare_profiles(planned: Planned, run: RunFolder, monitor: Monitor) -> dict[str, Any]:
    from hybridizer.trace.profile import compare_profiles

    plan = planned.plan
    # An identity splice is its donor, of which the plan may have a trace; in another family its layers are others.
    same = plan.identity_of if plan.executor == "copy" else None
    before = next((traced for traced in planned.resolved.traces if traced.donor == same), None)
    if before is None and same is not None:  # of a stored plan
        before = trace(planned.donors[same], _request(planned), monitor)
    before = before or _trace(planned, run.spliced, "before training", monitor)
    after = _trace(planned, run.model, "after training", monitor)
    return compare_profiles(before, after, plan.train_plan.boundary).to_json()


def _trace(planned: Planned, folder: Path, name: str, monitor: Monitor) -> TraceRun:
    """The trace of a model folder, as the donors were traced."""
    allow = ("remote_code",) if _remote_code(planned) else ()
    reference = parse_reference(f"folder:{folder.absolute()}", Path.cwd())
    donor = open_donor(name, reference, Access(fetch=False, fingerprint=True, allow=allow), str(folder), monitor)
    assert isinstance(donor, Donor), "a folder needs no fetching"
    return trace(donor, _request(planned), monitor)


def _request(planned: Planned) -> TraceRequest:
    recipe = planned.resolved.recipe
    return request_from_section(recipe.trace, recipe.seed, recipe.folder)


def _remote_code(planned: Planned) -> bool:
    return "remote_code" in planned.donors[planned.plan.host].allow


def content_of(folder: Path) -> str:
    """A hash of what a model computes with: equal for equal weights, config and tokenizer, whatever is in its card."""
    return content_hash({name: sha for name, sha in read_manifest(folder).files.items() if name != "README.md"})
