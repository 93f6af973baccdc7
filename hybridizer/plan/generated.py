"""Sources of text that donors write: what fixes their content, and where it is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hybridizer.core.cache import cache_folder
from hybridizer.core.errors import InputError, Problem, RecipeError
from hybridizer.core.records import content_hash
from hybridizer.data.sampling import TEXTS, read_prompts
from hybridizer.donors.donor import Donor
from hybridizer.recipe.generate import Generate
from hybridizer.recipe.models import DataEntry, Recipe
from hybridizer.recipe.sections import fill_in

_FORMAT = 1  # of the sampling: another way to draw makes other texts of the same settings


def place_generated(recipe: Recipe, donors: Mapping[str, Donor]) -> Recipe:
    """The recipe with the identity of every text that a donor writes, and the file in the cache where it is or will be.

    Raises RecipeError, at their line, for prompts that cannot be read.
    """
    if recipe.train is None or not any(entry.generate for entry in recipe.train.data):
        return recipe
    data = tuple(_place(recipe, index, entry, donors) for index, entry in enumerate(recipe.train.data))
    return replace(recipe, train=fill_in(recipe.train, data=data))


def _place(recipe: Recipe, index: int, entry: DataEntry, donors: Mapping[str, Donor]) -> DataEntry:
    if entry.generate is None:
        return entry
    try:
        settings = describe_generation(entry.generate, recipe.folder)
    except InputError as error:
        where = recipe.locate(("train", "data", index, "generate", "prompts"))
        raise RecipeError(*(Problem(where, f"`{p.where}`: {p.what}", p.fix) for p in error.problems)) from error
    identity = content_hash([_FORMAT, donors[entry.generate.from_].fingerprint, settings])
    path = generated_folder(identity) / TEXTS
    return fill_in(entry, generate=fill_in(entry.generate, identity=identity), path=str(path))


def generated_folder(identity: str) -> Path:
    """Where the text of that identity is kept."""
    return cache_folder() / "generated" / identity.removeprefix("sha256:")[:32]


def describe_generation(settings: Generate, folder: Path) -> dict[str, Any]:
    """The settings that decide the text besides the donor, the prompts by their hash."""
    prompts = list(read_prompts(settings.prompts, folder))
    values = {key: value for key, value in asdict(settings).items() if key not in ("from_", "identity", "prompts")}
    return {**values, "prompts": content_hash(prompts)}
