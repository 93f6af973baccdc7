"""The teacher of an objective: a donor of the recipe, or a model of its own, opened as donors are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hybridizer.core.errors import CheckpointError, DonorError, Problem
from hybridizer.core.progress import Monitor
from hybridizer.donors.donor import Donor
from hybridizer.donors.open import Access, NotFetched, open_donor
from hybridizer.donors.reference import parse_reference
from hybridizer.plan.objective import check_teacher
from hybridizer.recipe.models import Recipe

NAME = "teacher"


def open_teacher(
    recipe: Recipe, donors: Mapping[str, Donor | NotFetched], monitor: Monitor, *, fetch: bool, fingerprint: bool
) -> Donor | None:
    """The teacher that the objective of `recipe` names, whose host is known; None where it needs none.

    None too where it has not been fetched yet, never with `fetch`. A name of a donor is that donor, with what the
    recipe allows for it; for any other model nothing is allowed. Raises DonorError, at the line of the teacher, for one
    that is missing, damaged or refused, and RecipeError where its tokens are not those of the host.
    """
    objective = None if recipe.train is None else recipe.train.objective
    if objective is None:
        return None
    text = objective.chosen.teacher or recipe.layout.host
    teacher = donors.get(text) or _open(recipe, text, Access(fetch, fingerprint), monitor)
    host = donors[recipe.layout.host]
    if isinstance(teacher, NotFetched) or isinstance(host, NotFetched):
        return None
    check_teacher(recipe, host, teacher)
    return teacher


def _open(recipe: Recipe, text: str, access: Access, monitor: Monitor) -> Donor | NotFetched:
    assert recipe.train is not None and recipe.train.objective is not None, "called for an objective"
    where = recipe.locate(("train", "objective", recipe.train.objective.kind, "teacher"))
    try:
        return open_donor(NAME, parse_reference(text, recipe.folder, where), access, where, monitor)
    except (DonorError, CheckpointError) as error:
        known = f"Donors here: {', '.join(entry.name for entry in recipe.donors)}."
        places = (p.where if p.where != where else "" for p in error.problems)
        named = zip(error.problems, places, strict=True)
        problems = [
            Problem(where, f"teacher '{text}': {f'{place}: ' if place else ''}{p.what}", f"{p.fix} {known}")
            for p, place in named
        ]
        raise DonorError(*problems) from None


def whole_paths(resolved: dict[str, Any], recipe: Recipe) -> None:
    """In the plain values of `recipe`: a teacher that is a folder or a file gets its whole path."""
    objective = None if recipe.train is None else recipe.train.objective
    text = None if objective is None else objective.chosen.teacher
    if objective is None or text is None or text in {entry.name for entry in recipe.donors}:
        return
    reference = parse_reference(text, recipe.folder)
    if reference.path is not None and reference.package is None:
        resolved["train"]["objective"][objective.kind]["teacher"] = f"folder:{reference.path}"


def same_teacher(teacher: Donor | None, settings: Mapping[str, Any], where: str) -> None:
    """Return if `teacher` has the content that the `settings` of a TrainPlan name. Raises DonorError otherwise."""
    planned = next((value["teacher"] for value in settings.get("objective", {}).values()), None)
    if teacher is not None and planned is not None and teacher.fingerprint != planned:
        what = f"the content of the teacher changed after planning: planned with {planned}, now {teacher.fingerprint}."
        raise DonorError(Problem(where, what, "Restore the teacher, or plan again from the recipe."))
