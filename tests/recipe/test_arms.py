"""The `trial` section: what an arm changes, what all arms share, and mistakes at the arm's own line."""

from __future__ import annotations

import pytest

from hybridizer.core.errors import RecipeError
from hybridizer.recipe.load import arm_settings, load_recipe
from hybridizer.recipe.trial import Trial, choose_primary

RECIPE = """\
donors: {a: x}
layout: {deep: a, shallow: a}
train: {data: [{path: t.txt}], tokens: 2M}
trial:
  arms:
    deep: {train.freeze: deep}
    full: {train: {freeze: none}}
    full+table: {train.freeze: none}
    lora: {train.freeze: none, train.lora: {rank: 4}, train.lr: [1e-3, 2e-3]}
  lr: [1e-4, 2e-4]
"""
DEEP, RATES = "deep: {train.freeze: deep}", "lr: [1e-4, 2e-4]"
FROZEN = ("train.embedding=freeze", "train.head=freeze", "train.final_norm=freeze")


def settings(recipe):
    return {arm.name: arm_settings(recipe, arm) for arm in recipe.trial.arms}


def test_an_arm_is_its_overrides_the_fate_of_the_parts_and_each_of_its_learning_rates(load) -> None:
    found = settings(load(RECIPE))
    assert found["deep"] == [("train.freeze=deep", *FROZEN, f"train.lr={rate}") for rate in ("0.0001", "0.0002")]
    assert found["full"] == [("train.freeze=none", *FROZEN, f"train.lr={rate}") for rate in ("0.0001", "0.0002")]
    assert found["lora"][1] == ("train.freeze=none", "train.lora.rank=4", *FROZEN, "train.lr=0.002")
    table = ("train.embedding=train", "train.head=train", "train.final_norm=freeze")
    assert found["full+table"][0] == ("train.freeze=none", *table, "train.lr=0.0001")


def test_what_recipe_or_arm_names_keeps_its_fate_and_the_other_end_of_a_tied_table_follows(load) -> None:
    named = settings(load(RECIPE, "train.head=train", "trial.arms.lora={}"))
    assert named["deep"][0][1:4] == ("train.embedding=train", "train.head=train", "train.final_norm=freeze")
    own = settings(load(RECIPE, "trial.arms.deep={train.embedding: train, train.final_norm: train}"))
    assert own["deep"][0] == ("train.embedding=train", "train.final_norm=train", "train.head=train", "train.lr=0.0001")
    as_before = settings(load(RECIPE, "trial.parts=recipe"))
    assert as_before["deep"][0] == ("train.freeze=deep", "train.lr=0.0001")


def test_without_learning_rates_the_recipe_s_own_is_the_only_one(load) -> None:
    recipe = load(RECIPE, "trial.lr=[]", "train.lr=7e-5")
    assert settings(recipe)["deep"] == [("train.freeze=deep", *FROZEN, "train.lr=7e-05")]


def test_patterns_of_an_arm_are_one_value_because_their_keys_have_dots(load) -> None:
    scales = {"0..1": 0.5, "*.mlp.*": 0.2}
    for arm in (f"{{train.lr_scale: {scales}}}", f"{{train: {{lr_scale: {scales}}}}}"):
        recipe = load(RECIPE.replace(DEEP, f"deep: {arm}"))
        assert dict(recipe.trial.arms)["deep"] == (("train.lr_scale", scales),)


def test_what_each_stage_gives_itself_is_no_choice_of_an_arm(refuse) -> None:
    stages = "stages: [{tokens: 1M, lr: 1e-4}, {tokens: 1M, lr: 1e-5, freeze: none}]"
    recipe = RECIPE.replace("tokens: 2M", stages).replace("train.lora: {rank: 4}, ", "")
    found = [str(problem) for problem in refuse(recipe)]
    what = "has `train.lr` of its own, and each of its stages gives `lr`, so that it has no effect."
    fix = "Leave `lr` out of a stage, or set train.stages.0.lr."
    for line, arm in ((6, "deep"), (9, "lora")):
        assert f"recipe.yaml:{line}: arm '{arm}' {what}\n  {fix}" in found


def test_an_arm_with_stages_needs_a_recipe_with_stages(refuse) -> None:
    (problem,) = refuse(RECIPE.replace(DEEP, "deep: {train.stages: [{tokens: 1M}, {tokens: 1M, freeze: none}]}"))
    assert problem.what == "arm 'deep' sets `train.stages`, and the recipe has `tokens`, which its stages have."
    assert problem.fix == "Write the recipe with one stage, which is the same training: stages: [{tokens: 2000000}]."


def test_a_trial_survives_being_written_out(load, tmp_path) -> None:
    recipe = load(RECIPE)
    again = load_recipe({**recipe.resolved()})
    assert again.trial == recipe.trial and recipe.trial.seeds == (0, 1, 2)


def test_none_in_place_of_the_section_or_after_set_is_a_recipe_without_a_trial(load) -> None:
    assert load(RECIPE, "trial=none").trial is None
    assert load(RECIPE.partition("trial:")[0] + "trial: none\n").trial is None
    assert (
        load("donors: {a: x}\nlayout: {deep: a, shallow: a}\ntrain: {data: [{path: t}], tokens: 1k}\ntrial: {}\n").trial
        == Trial()
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (DEEP, "deep: {train.freeze: depe}",
         "recipe.yaml:6: arm 'deep': train.freeze=depe: `train.freeze` must be deep, shallow, none, originals or a "
         "list of layers; got 'depe'.\n  Did you mean 'deep'?"),
        (DEEP, "deep: {train.tokens: 3M}",
         "recipe.yaml:6: arm 'deep' sets `train.tokens`, and all arms of a trial share `train.tokens`.\n  Set it in "
         "the recipe itself."),
        (DEEP, "deep: {train.lr: 7}",
         "recipe.yaml:6: arm 'deep': must be learning rates above 0 and at most 0.1; got the number 7.\n  Write a "
         "list such as [1e-4, 2e-4]."),
        (DEEP, "deep: {train.lr: []}",
         "recipe.yaml:6: arm 'deep': `train.lr` lists no learning rate.\n  Give one or more, such as [1e-4, 2e-4]."),
        (DEEP, "deep: 3",
         "recipe.yaml:6: `deep` takes a section of names, found the number 3.\n  Write `name: value` lines, "
         "indented below it."),
        (DEEP, "a/b: {}",
         "recipe.yaml:6: the name 'a/b' cannot be a folder's name.\n  Take letters, digits, - and _, at most 100 of "
         "them, beginning with a letter or a digit."),
        ("    full: {", "    deep: {",
         "recipe.yaml:7: `deep` is given twice, first at recipe.yaml:6.\n  Keep one of the two."),
        ("lora: {train.freeze", "lora: {train.head: train, train.freeze",
         "recipe.yaml:9: arm 'lora': train.head=train: `head` is set to train, and with `lora` only adapters on "
         "layers train.\n  Delete `head`, or delete `lora`."),
        (RATES, "lr: [5]",
         "recipe.yaml:10: `trial.lr` must be learning rates above 0 and at most 0.1; got the number 5.\n  Write a "
         "list such as [1e-4, 2e-4]."),
        (RATES, "seeds: [0, 0]",
         "recipe.yaml:10: `trial.seeds` must be different numbers, each of its own run; got 0 twice.\n  Give each "
         "number once."),
        (RATES, "seeds: [-1]",
         "recipe.yaml:10: `trial.seeds` must be a list of whole numbers from 0 to 4294967295; got the number -1.\n  "
         "Write it as [0, 1]."),
        (RATES, "primary: nws",
         "recipe.yaml:10: `primary` is 'nws', which this trial does not measure.\n  Known here: in-domain, t.txt."),
        (RATES, "primary: in-domain accuracy",
         "recipe.yaml:10: `primary` asks for accuracy of 'in-domain', which has bits_per_byte.\n  Name one of them."),
        (RATES, "evaluate: {recall: [1]}",
         "recipe.yaml:10: `trial.evaluate.recall` must be a list of numbers of pairs from 2 to 2000; got the number "
         "1.\n  Write it as [2, 3]."),
        (RATES, "evaluate: {items: [{name: t.txt, path: x}]}",
         "recipe.yaml:4: 't.txt' is the name of two texts or tasks that the trial measures.\n  Give each a name of "
         "its own."),
        ("tokens: 2M", "tokens: 2M, max_minutes: 3",
         "recipe.yaml:3: `max_minutes` ends a training by the clock, and the arms of a trial have the same number "
         "of tokens.\n  Delete it, or give `max_steps`."),
        ("tokens: 2M}\n", "tokens: 2M}\nevaluate: {every: 5, keep: best}\n",
         "recipe.yaml:4: `keep: best` looks at held-out text that the trial reports.\n  Delete the line: curves are "
         "measured without it."),
        ("train: {data: [{path: t.txt}], tokens: 2M}\n", "",
         "recipe.yaml:3: `trial` compares trainings, and there is no `train`.\n  Add `train`, or delete `trial`."),
    ],
)  # fmt: skip
def test_mistakes_in_a_trial(refuse, old: str, new: str, message: str) -> None:
    assert old in RECIPE
    assert message in [str(problem) for problem in refuse(RECIPE.replace(old, new, 1))]


def test_a_primary_outcome_is_a_name_with_its_main_metric_or_the_one_that_is_named() -> None:
    outcomes = [("t.txt", ("bits_per_byte",)), ("exam-en", ("accuracy", "answer_bits"))]
    assert choose_primary("in-domain", outcomes) == ("t.txt", "bits_per_byte")
    assert choose_primary("exam-en", outcomes) == ("exam-en", "accuracy")
    assert choose_primary("exam-en answer_bits", outcomes) == ("exam-en", "answer_bits")
    with pytest.raises(RecipeError, match="which has accuracy, answer_bits"):
        choose_primary("exam-en bits_per_byte", outcomes)
