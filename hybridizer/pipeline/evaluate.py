"""What training did to a model: bits per byte and samples before and after, and what became of its deep profile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridizer.core.progress import Monitor
from hybridizer.core.records import content_hash, write_json
from hybridizer.donors.donor import Donor
from hybridizer.donors.open import Access, open_donor
from hybridizer.donors.reference import parse_reference
from hybridizer.evaluate.run import compare_runs, evaluate
from hybridizer.pipeline.plan import Planned
from hybridizer.plan.manifest import read_manifest
from hybridizer.recipe.models import DataEntry, Evaluate, Recipe
from hybridizer.trace.cache import TraceRun
from hybridizer.trace.donor import request_from_section, trace
from hybridizer.train.run import open_texts


@dataclass(frozen=True)
class BeforeAfter:
    """The records of schema "hybridizer.scores/1" and, where the recipe traced its donors, "hybridizer.profile/1"."""

    scores: Mapping[str, Any]
    profile: Mapping[str, Any] | None


def evaluate_run(planned: Planned, folder: Path, monitor: Monitor) -> BeforeAfter:
    """Compare the model in `folder`/model with the one in `folder`/spliced that it was trained from.

    Writes scores.json and profile.json. Both sides are scored and traced once for each content and kept in the cache.
    """
    scores = _compare_scores(planned, folder, monitor)
    write_json(folder / "scores.json", scores)
    profile = _compare_profiles(planned, folder, monitor) if planned.resolved.traces else None
    if profile is not None:
        write_json(folder / "profile.json", profile)
    return BeforeAfter(scores, profile)


def _compare_scores(planned: Planned, folder: Path, monitor: Monitor) -> dict[str, Any]:
    from hybridizer.evaluate.scores import ScoreSettings

    recipe = planned.resolved.recipe
    asked = recipe.evaluate or Evaluate()
    settings = ScoreSettings(asked.context, asked.prompts, asked.new_tokens)
    code = _remote_code(planned)
    texts = _open_sets(recipe, asked, folder / "model", code, monitor)
    before = evaluate(folder / "spliced", _content(folder / "spliced"), texts, settings, monitor, remote_code=code)
    after = evaluate(folder / "model", _content(folder / "model"), texts, settings, monitor, remote_code=code)
    return compare_runs(before, after, seed=recipe.seed)


def _open_sets(recipe: Recipe, asked: Evaluate, model: Path, remote_code: bool, monitor: Monitor) -> list[Any]:
    """The held-out documents of every training source, then the general texts without what training sees of them."""
    from hybridizer.data.tokenizer import load_encoder
    from hybridizer.evaluate.texts import general_text, heldout_texts, trained_keys

    train = recipe.train
    assert train is not None, "called for recipes that train"
    encoder = load_encoder(model, remote_code)
    sources = open_texts(train.data, recipe.folder, encoder, monitor)
    sets = list(heldout_texts(sources, train.heldout_ratio, monitor, asked.max_tokens))
    trained = trained_keys(sources, train.heldout_ratio)
    for text in asked.bits_per_byte:
        (source,) = open_texts((DataEntry(text.path, field=text.field),), recipe.folder, encoder, monitor)
        sets.append(general_text(text.name, source, trained, asked.max_tokens))
    return sets


def _compare_profiles(planned: Planned, folder: Path, monitor: Monitor) -> dict[str, Any]:
    from hybridizer.trace.profile import compare_profiles

    plan = planned.plan
    assert plan.train is not None, "called for plans that train"
    # A splice that gave a donor back is that donor, which the plan may rest on a trace of.
    before = next((traced for traced in planned.resolved.traces if traced.donor == plan.identity_of), None)
    before = before or _trace(planned, folder / "spliced", "before training", monitor)
    after = _trace(planned, folder / "model", "after training", monitor)
    return compare_profiles(before, after, plan.train.boundary).to_json()


def _trace(planned: Planned, folder: Path, name: str, monitor: Monitor) -> TraceRun:
    """The trace of a model folder, as the donors were traced."""
    recipe = planned.resolved.recipe
    allow = ("remote_code",) if _remote_code(planned) else ()
    reference = parse_reference(f"folder:{folder.absolute()}", Path.cwd())
    donor = open_donor(name, reference, Access(fetch=False, fingerprint=True, allow=allow), str(folder), monitor)
    assert isinstance(donor, Donor), "a folder needs no fetching"
    return trace(donor, request_from_section(recipe.trace, recipe.seed, recipe.folder), monitor)


def _remote_code(planned: Planned) -> bool:
    return "remote_code" in planned.donors[planned.plan.host].allow


def _content(folder: Path) -> str:
    """A hash of what a model computes with: equal for equal weights, config and tokenizer, whatever its card says."""
    return content_hash({name: sha for name, sha in read_manifest(folder).files.items() if name != "README.md"})
