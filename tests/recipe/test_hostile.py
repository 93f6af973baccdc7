"""Whatever a recipe file holds, it loads or is refused with places, words and ways out, and never with a library's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridizer.core.errors import RecipeError
from hybridizer.recipe.dump import to_yaml
from hybridizer.recipe.load import load_recipe

KEYS = st.sampled_from(
    ["name", "layout", "output", "host", "deep", "boundary", "slices", "donor", "layers", "blend"]
) | (
    st.sampled_from(["method", "base", "parameters", "sources", "source", "allow", "dtype", "a", "b", "[key]", "layer"])
)
LEAVES = (
    st.sampled_from(["a", "b", "0..3", "3..0", "keep", "5GB", "pickle", "", "x/y", "no"])
    | st.integers(-2, 40)
    | st.floats(-2, 2)
    | st.booleans()
)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4))
SOURCES = st.lists(
    VALUES | st.fixed_dictionaries({"donor": LEAVES, "layers": VALUES}, optional={"x": LEAVES}), max_size=3
)
BLENDS = VALUES | st.fixed_dictionaries({"method": LEAVES, "sources": SOURCES}, optional={"base": LEAVES})
SLICES = st.lists(VALUES | st.fixed_dictionaries({}, optional={"donor": LEAVES, "layers": VALUES, "blend": BLENDS}))
LAYOUTS = VALUES | st.fixed_dictionaries(
    {"slices": SLICES}, optional={"host": LEAVES, "deep": LEAVES, "boundary": VALUES}
)
RECIPES = st.fixed_dictionaries(
    {"donors": VALUES | st.just({"a": "x", "b": "y"}), "layout": LAYOUTS},
    optional={"name": VALUES, "seed": VALUES, "output": VALUES, "layer": LEAVES},
)
YAML_SIGNS = st.text(":-[]{}#&*!|>'\"%@`,?.~<=_0123456789 \n\tabdeno\\xU\r\x85\u2028\ufeff\x00é")
LIBRARY_WORDS = re.compile(r"pydantic|[Ii]nput should|validation|yaml\.[a-z]|expected <|Model\b|PosixPath")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile") / "recipe.yaml"


def check_load(file: Path, content: bytes, *overrides: str) -> None:
    file.write_bytes(content)
    try:
        recipe = load_recipe(file, overrides)
    except RecipeError as error:
        for problem in error.problems:
            assert problem.where.startswith((f"{file}:", str(file), "--set "))
            assert problem.what.endswith(".") and not problem.what.endswith("..")
            assert problem.fix.endswith((".", "?"))
            assert str(problem).isprintable() or "\n" in str(problem)
            assert not LIBRARY_WORDS.search(str(problem).replace(str(file), ""))
    else:
        file.write_text(to_yaml(recipe.resolved()))
        assert load_recipe(file) == recipe


@pytest.mark.slow
@given(RECIPES)
def test_any_values_under_the_keys_of_a_recipe(file: Path, values: dict[str, Any]) -> None:
    check_load(file, to_yaml(values).encode())


@given(YAML_SIGNS)
def test_any_text(file: Path, text: str) -> None:
    check_load(file, text.encode())


@given(st.binary())
def test_any_bytes(file: Path, content: bytes) -> None:
    check_load(file, content)


@given(YAML_SIGNS, YAML_SIGNS)
def test_any_text_after_a_good_start(file: Path, before: str, after: str) -> None:
    text = f"donors: {{a: x}}\nlayout:\n  {before}\n  deep: a\n  shallow: a\n{after}"
    check_load(file, text.encode())


@pytest.mark.slow
@given(
    st.lists(
        YAML_SIGNS
        | st.builds("{}={}".format, st.sampled_from(["seed", "a.b", "donors.a", "layout.slices.0"]), YAML_SIGNS)
    )
)
def test_any_overrides(file: Path, overrides: list[str]) -> None:
    check_load(file, b"donors: {a: x}\nlayout: {slices: [{donor: a}]}\n", *overrides)


@pytest.mark.slow
@pytest.mark.parametrize(
    "content",
    [
        b"[" * 900_000,
        b"{a: " * 200_000,
        b"- " * 400_000,
        b"? " * 400_000,
        b"a: [" + b"1," * 20_000 + b"]",
        b"a: &a [x, x]\nb: [" + b"*a," * 8_000 + b"]",
        b"!" * 100_000,
        b'"' + b"\\x41" * 20_000,
        b"layout: {slices: [" + b"{donor: a, layers: 0..9999}," * 1_000 + b"]}",
    ],
    ids=lambda content: content[:12].decode(),
)
def test_large_and_hostile_files_are_refused_in_bounded_memory(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(RecipeError) as refusal:
        load_recipe(file)
    assert len(str(refusal.value)) < 10_000
