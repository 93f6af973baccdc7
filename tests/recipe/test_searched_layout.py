"""`layout: auto`: the short and the long form, what excludes it, and the JSON Schema."""

import pytest

from hybridizer.core.errors import RecipeError
from hybridizer.recipe.load import load_recipe
from hybridizer.recipe.models import DEFAULT_CANDIDATES
from hybridizer.recipe.schema import json_schema

ONE, TWO = {"donors": {"a": "a"}}, {"donors": {"a": "a", "b": "b"}}


def test_auto_is_short_for_the_default_budget():
    short, long = (load_recipe({**ONE, "layout": layout}) for layout in ("auto", {"candidates": DEFAULT_CANDIDATES}))
    assert short == long and short.layout.candidates == DEFAULT_CANDIDATES and short.layout.host == "a"
    assert short.resolved()["layout"] == {"host": "a", "candidates": DEFAULT_CANDIDATES}
    assert load_recipe(short.resolved()) == short


def test_a_budget_may_be_set_and_overridden():
    recipe = load_recipe({**TWO, "layout": {"host": "b", "candidates": 40}})
    assert (recipe.layout.host, recipe.layout.candidates) == ("b", 40)
    assert load_recipe({**ONE, "layout": "auto"}, ("layout.candidates=9",)).layout.candidates == 9
    assert load_recipe({**ONE, "layout": {"candidates": 9}}, ("layout=auto",)).layout.candidates == DEFAULT_CANDIDATES


@pytest.mark.parametrize(
    ("layout", "says"),
    [
        ({"candidates": 9, "deep": "a", "shallow": "a"}, "other keys choose layers too: `deep` at "),
        ({"candidates": 9, "slices": [{"donor": "a"}]}, "other keys choose layers too: `slices` at "),
        ({"candidates": 0}, "candidates"),
        ("automatic", "layout"),
    ],
)
def test_what_makes_no_sense_is_refused(layout, says):
    with pytest.raises(RecipeError) as caught:
        load_recipe({**ONE, "layout": layout})
    assert says in str(caught.value)


def test_several_donors_need_a_host():
    with pytest.raises(RecipeError, match="`layout` has no `host`"):
        load_recipe({**TWO, "layout": "auto"})


def test_editors_know_both_forms():
    assert {"const": "auto"} in json_schema()["properties"]["layout"]["anyOf"]
    assert "candidates" in json_schema()["$defs"]["Layout"]["properties"]
