"""Teachers of objectives: donors of the recipe, or models of their own, opened as donors are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hybridizer.core.errors import CheckpointError, DonorError, Problem
from hybridizer.core.progress import Monitor
from hybridizer.donors.donor import Donor
from hybridizer.donors.open import Access, NotFetched, open_donor
from hybridizer.donors.reference import parse_reference
from hybridizer.plan.objective import check_teacher
from hybridizer.plan.plan import Plan
from hybridizer.recipe.models import Recipe
from hybridizer.recipe.objective import Objective
from hybridizer.recipe.tree import KeyPath

NAME = "teacher"


def open_teachers(
    recipe: Recipe, donors: Mapping[str, Donor | NotFetched], monitor: Monitor, *, fetch: bool, fingerprint: bool
) -> tuple[Donor | None, ...]:
    """The teacher that each stage of `recipe` names, whose host is known; None for stages that need none.

    None too where one has not been fetched yet, never with `fetch`. A name of a donor is that donor, with what the
    recipe allows for it; for any other model nothing is allowed. Raises DonorError, at the line of the teacher, for one
    that is missing, damaged or refused, and RecipeError where its tokens are not those of the host.
    """
    train, host = recipe.train, donors.get(recipe.layout.host)
    opened: dict[str, Donor | NotFetched] = dict(donors)
    found: list[Donor | None] = []
    for index, stage in enumerate(train.as_stages() if train is not None else ()):
        if stage.objective is None:
            found.append(None)
            continue
        text, where = stage.objective.chosen.teacher or recipe.layout.host, _place(recipe, index, stage.objective)
        if text not in opened:
            opened[text] = _open(recipe, text, where, Access(fetch, fingerprint), monitor)
        teacher = opened[text]
        if isinstance(teacher, NotFetched) or not isinstance(host, Donor):
            found.append(None)
            continue
        check_teacher(stage, where, host, teacher)
        found.append(teacher)
    return tuple(found)


def lacks_teacher(recipe: Recipe, teachers: Sequence[Donor | None]) -> bool:
    """Whether a stage of `recipe` has an objective whose teacher has not been fetched."""
    stages = recipe.train.as_stages() if recipe.train is not None else ()
    return any(stage.objective and teacher is None for stage, teacher in zip(stages, teachers, strict=True))


def _place(recipe: Recipe, index: int, objective: Objective) -> str:
    train = recipe.train
    above: KeyPath = ("train",) if train is None or train.stages is None else ("train", "stages", index)
    return recipe.locate((*above, "objective", objective.kind, "teacher"))


def _open(recipe: Recipe, text: str, where: str, access: Access, monitor: Monitor) -> Donor | NotFetched:
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
    train, donors = resolved.get("train", {}), {entry.name for entry in recipe.donors}
    for section in (train, *train.get("stages", ())):
        for values in section.get("objective", {}).values():
            text = values.get("teacher")
            if text is None or text in donors:
                continue
            reference = parse_reference(text, recipe.folder)
            if reference.path is not None and reference.package is None:
                values["teacher"] = f"folder:{reference.path}"


def check_same_teachers(teachers: Sequence[Donor | None], plan: Plan, where: str) -> None:
    """Return if `teachers`, one for each stage, have the content that `plan` names. Raises DonorError otherwise."""
    stages = plan.train.as_stages() if plan.train is not None else ()
    for teacher, stage in zip(teachers, stages, strict=True):
        planned = next((value["teacher"] for value in stage.settings.get("objective", {}).values()), None)
        if teacher is not None and planned is not None and teacher.fingerprint != planned:
            found = f"planned with {planned}, now {teacher.fingerprint}"
            what = f"the content of the teacher changed after planning: {found}."
            raise DonorError(Problem(where, what, "Restore the teacher, or plan again from the recipe."))
