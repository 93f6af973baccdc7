"""A recipe written to a file and loaded, and the problems of one that does not load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hybridizer.core.errors import Problem, RecipeError
from hybridizer.recipe.load import load_recipe
from hybridizer.recipe.models import Recipe

Load = Callable[..., Recipe]
Refuse = Callable[..., tuple[Problem, ...]]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """load(text, *overrides, name="recipe.yaml") -> Recipe"""

    def run(text: str | bytes, *overrides: str, name: str = "recipe.yaml") -> Recipe:
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return load_recipe(path, overrides)

    return run


@pytest.fixture
def refuse(load: Load, tmp_path: Path) -> Refuse:
    """As `load`, for what must not load: its problems, with the folder taken out of their words."""

    def run(text: str | bytes, *overrides: str, name: str = "recipe.yaml") -> tuple[Problem, ...]:
        with pytest.raises(RecipeError) as refusal:
            load(text, *overrides, name=name)
        folder = f"{tmp_path}/"
        return tuple(
            Problem(p.where.replace(folder, ""), p.what.replace(folder, ""), p.fix.replace(folder, ""))
            for p in refusal.value.problems
        )

    return run
