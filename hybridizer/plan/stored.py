"""plan.json: a plan and the recipe it was made from, with every choice made, to be built later unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridizer.core.errors import CheckpointError, Problem, RecipeError
from hybridizer.core.records import content_hash, read_json, write_json
from hybridizer.plan.plan import Plan, read_plan
from hybridizer.recipe.load import read_recipe_values
from hybridizer.recipe.models import Recipe

FILE_NAME = "plan.json"
_MAX_START_BYTES = 4096  # the schema is the first key; so a file of gigabytes is not read whole


@dataclass(frozen=True)
class StoredPlan:
    """The plan that is stored in `path`, and its recipe: donors pinned, boundary a number, texts by whole paths."""

    path: Path
    plan: Plan
    recipe: Recipe


def write_stored_plan(path: Path, plan: Plan, recipe: Mapping[str, Any]) -> None:
    """Write the plan with the values of its resolved recipe. `file_hash` covers all else, notes included."""
    value = {**plan.to_json(), "recipe": recipe}
    write_json(path, {**value, "file_hash": content_hash(value)})


def is_stored_plan(path: Path) -> bool:
    """Whether `path` is to be read as a stored plan, damaged or not, and not as a recipe.

    By its name, so that a plan.json that was cut short is reported as such, or by its content, which starts with a
    schema. A recipe written as JSON has none.
    """
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            start = file.read(_MAX_START_BYTES).lstrip()
    except OSError:
        return False
    return path.name == FILE_NAME or (start.startswith(b"{") and b'"schema"' in start)


def read_stored_plan(path: Path) -> StoredPlan:
    """The plan in `path`. Raises CheckpointError when it was edited, is damaged, or is of another schema."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise CheckpointError(Problem(str(path), "this is not a plan.", "Give the plan.json of a run."))
    recipe, file_hash = value.pop("recipe", None), value.pop("file_hash", None)
    plan = read_plan(value, str(path))
    if not isinstance(recipe, dict) or file_hash != _hash(value, recipe):
        what = "its recipe, or a note in it, is not what was stored."
        raise CheckpointError(Problem(str(path), what, "The file was edited or damaged; plan again."))
    try:
        return StoredPlan(path, plan, read_recipe_values(recipe, path))
    except RecipeError as error:
        fix = "The plan was made by another version; plan again with this one."
        raise CheckpointError(*(Problem(str(path), f"its recipe: {p.what}", fix) for p in error.problems)) from None


def _hash(value: Mapping[str, Any], recipe: Mapping[str, Any]) -> str | None:
    try:
        return content_hash({**value, "recipe": recipe})
    except ValueError:  # NaN, which was not written here
        return None
