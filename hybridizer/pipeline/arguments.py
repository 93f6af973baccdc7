"""What callers of the Python API pass, as the pipeline takes it: recipes, overrides, donors, trace settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from hybridizer.core.errors import DidYouMean, Problem, RecipeError
from hybridizer.core.progress import ConsoleMonitor, Monitor, SilentMonitor

if TYPE_CHECKING:
    from hybridizer.trace.runs import TraceRequest

RecipeLike: TypeAlias = str | Path | Mapping[str, Any]
DonorsLike: TypeAlias = str | Path | Sequence[str | Path]


def read_recipe(recipe: RecipeLike) -> Path | dict[str, Any]:
    """A recipe's path, or its content as plain values. Raises RecipeError for values that YAML cannot hold."""
    if isinstance(recipe, Mapping):
        return read_settings(recipe)
    return Path(recipe)


def read_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Keys and values of a recipe or an evaluation as plain values. Raises RecipeError for what YAML cannot hold."""
    return {str(key): _plain(value, f"`{key}`") for key, value in settings.items()}


def read_overrides(overrides: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Overrides as they are typed after `--set`. Raises RecipeError for values that YAML cannot hold."""
    plain = {key: _plain(value, f"override `{key}`") for key, value in (overrides or {}).items()}
    # Plain text stays as it is typed after --set; JSON quotes the rest in a way that YAML reads.
    return tuple(
        f"{key}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for key, value in plain.items()
    )


def _plain(value: Any, where: str) -> Any:
    """`value` as YAML may hold it: paths become text, tuples lists. Raises RecipeError for anything else."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}.{index}") for index, item in enumerate(value)]
    if isinstance(value, (str, int, float)):
        return value
    what = f"{where} is of type {type(value).__name__}, which a recipe cannot hold."
    raise RecipeError(Problem("the recipe", what, "Give text, a number, a boolean, a path, a list or a mapping."))


def read_donors(donors: DonorsLike) -> tuple[str, ...]:
    """One donor or several, as a recipe names them."""
    return (str(donors),) if isinstance(donors, (str, Path)) else tuple(str(donor) for donor in donors)


def read_trace(settings: Mapping[str, Any], seed: int) -> TraceRequest:
    """A trace by the keys of a recipe's `trace` section. Raises TypeError for other keys, RecipeError for values."""
    from hybridizer.recipe.messages import make_section
    from hybridizer.recipe.models import Trace
    from hybridizer.recipe.sections import keys_of
    from hybridizer.trace.runs import request_from_section

    if unknown := [key for key in settings if key not in keys_of(Trace)]:
        raise TypeError(f"unknown trace setting '{unknown[0]}'. {DidYouMean(unknown[0], keys_of(Trace))}")
    section = make_section(Trace, settings, "trace", lambda key: f"`{key}`")
    return request_from_section(section, seed, Path.cwd())


def choose_monitor(progress: bool) -> Monitor:
    """A monitor that prints, with `progress`, or one that is silent."""
    return ConsoleMonitor() if progress else SilentMonitor()
