"""Stages and factors on the learning rate in a recipe: what is filled in, and every mistake at its line."""

import pytest
from pydantic import ValidationError

from hybridizer.core.errors import RecipeError
from hybridizer.recipe.load import read_recipe_values
from hybridizer.recipe.models import DataEntry, Stage, Train
from hybridizer.recipe.sections import keys_of
from hybridizer.recipe.train import WHOLE_TRAINING

HEAD = """\
donors: {a: x, b: y}
layout: {host: a, deep: a, shallow: b}
train:
  data: [{path: text.txt}]
"""


@pytest.fixture
def load_train(load):
    return lambda text: load(HEAD + "".join(f"  {line}\n" for line in text.splitlines())).train


def test_a_stage_has_the_keys_of_train_where_it_gives_none(load_train):
    train = load_train("lr: 1e-4\nfreeze: none\nstages:\n  - {tokens: 1k}\n  - {tokens: 2k, freeze: deep, lr: 2e-4}")
    first, second = train.as_stages()
    assert (first.tokens, first.lr, first.freeze) == (1000, 1e-4, "none")
    assert (second.tokens, second.lr, second.freeze) == (2000, 2e-4, "deep")
    assert first.stages is None and first.data == train.data
    assert train.tokens == 3000 and train.stage_names == ("stage 1", "stage 2")


def test_a_section_without_stages_is_its_only_stage(load_train):
    train = load_train("tokens: 1k")
    assert train.as_stages() == (train,) and train.stage_names == ()


def test_a_section_made_in_python_needs_tokens_or_stages():
    data = (DataEntry(path="x"),)
    with pytest.raises(ValidationError, match="neither tokens nor stages"):
        Train(data=data)
    assert Train(data=data, stages=(Stage(tokens=3), Stage(tokens=4))).tokens == 7


def test_every_key_of_train_is_a_stages_own_or_the_whole_trainings():
    assert set(keys_of(Train)) - {"stages"} == (set(keys_of(Stage)) - {"name"}) | set(WHOLE_TRAINING)


def test_a_resolved_recipe_of_stages_loads_as_the_same_recipe(load, tmp_path):
    stages = (
        "  stages:\n    - {tokens: 1k, name: warm, freeze: 0..1}\n    - {tokens: 2k, lr_scale: {'*.b': 2, deep: 0.5}}"
    )
    recipe = load(HEAD + stages)
    again = read_recipe_values(recipe.resolved(), tmp_path / "recipe.yaml")
    assert again.train == recipe.train and again.resolved() == recipe.resolved()
    assert again.train.as_stages()[1].lr_scale == (("*.b", 2.0), ("deep", 0.5))  # in the order written


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("lr: 1e-4", 3, "`train` has no `tokens`"),
        ("tokens: 1k\nstages: [{tokens: 1k}]", 5, "`tokens` is given beside `stages`"),
        ("stages:\n  - {lr: 1e-4}", 6, "has no `tokens`"),
        ("stages: []", 5, "stages"),
        ("stages:\n  - tokens: 1k\n    lrr: 1", 7, "Did you mean 'lr'?"),
        ("stages:\n  - tokens: 1k\n    seq_len: 64", 7, "All stages have the same: give it once, as train.seq_len."),
        ("lora: {rank: 4}\nstages: [{tokens: 1k}]", 5, "`lora` trains adapters"),
        ("tokens: 1k\nlr_scale: {deep: 0}", 6, "Use `freeze`"),
        ("tokens: 1k\nlr_scale: {deep: -1}", 6, "the factor of `deep` is the number -1"),
        ("tokens: 1k\nlr_scale: {deep: x}", 6, "the factor of `deep` is 'x'"),
        ("tokens: 1k\nlr_scale: {5..2: 1}", 6, "run backwards"),
        ("tokens: 1k\nlr_scale: {layer_decay: 1.5}", 6, "`layer_decay` is the number 1.5"),
        ("tokens: 1k\nlr_scale: 0.1", 6, "takes a section of factors"),
    ],
)
def test_a_mistake_is_reported_at_its_line(load_train, text, line, words):
    with pytest.raises(RecipeError) as caught:
        load_train(text)
    (problem,) = caught.value.problems
    assert problem.where.endswith(f":{line}"), problem
    assert words in f"{problem.what} {problem.fix}"


def test_a_side_without_a_boundary_is_found_in_the_stage_that_names_it(load):
    slices = HEAD.replace("deep: a, shallow: b", "slices: [{donor: a}]")
    with pytest.raises(RecipeError) as caught:
        load(slices + "  stages:\n    - {tokens: 1k, freeze: none}\n    - {tokens: 1k, freeze: deep}")
    (problem,) = caught.value.problems
    assert problem.where.endswith(":7") and "`freeze` is deep" in problem.what
