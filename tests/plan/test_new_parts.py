"""Recipes with new parts: what `freeze: originals` trains, fits on text that is not there yet, stages, and arms."""

import pytest

from hybridizer.core.errors import RecipeError
from hybridizer.core.progress import SilentMonitor
from hybridizer.pipeline.plan import check, plan_from_configs, plan_recipe
from hybridizer.recipe.load import load_recipe
from support.lines import bench_in, write_recipe
from support.tiny import make_tiny, tiny_tokenizer

SLICES = [
    {"donor": "a", "layers": "0..2"},
    {"donor": "a", "layers": 3, "mixer": {"kind": "mamba2"}},
    {"fresh": "mamba2"},
]
TRAIN = {"data": [{"path": "t.txt"}], "tokens": 640, "seq_len": 32}


@pytest.fixture
def bench(bench):
    """A tiny llama of four layers, a text, an own cache, and the working folder."""
    return bench_in(bench)


def recipe_of(folder, slices=SLICES, **sections):
    return write_recipe(folder / "x.yaml", donors={"a": "a"}, layout={"slices": slices}, **sections)


def test_originals_freezes_what_donors_give_and_trains_swapped_and_new_layers(bench):
    train = plan_recipe(recipe_of(bench, train={**TRAIN, "freeze": "originals"}), (), SilentMonitor()).plan.train
    assert (train.frozen_layers, train.frozen_parts) == ((0, 1, 2), ("embedding", "final norm", "head"))


def test_a_fit_on_text_that_a_donor_is_to_write_is_planned_by_what_the_text_is_made_from(bench):
    (bench / "p.txt").write_text("the cat\nthe mat\n")
    swap = [SLICES[0], {"donor": "a", "layers": 3, "mixer": {"kind": "mamba2", "fit": "ridge"}}]
    generate = {"from": "a", "prompts": "p.txt", "tokens": "1k"}
    train = {**TRAIN, "data": [{"generate": generate}], "freeze": "none"}
    path = recipe_of(bench, swap, train=train)
    assert plan_from_configs(path, (), SilentMonitor()).plan.layers[3].method == "mamba2 for attention"
    made = plan_recipe(path, (), SilentMonitor()).plan
    other = plan_recipe(path, ("train.data.0.generate.tokens=2k",), SilentMonitor()).plan
    texts = [{t.source.text for t in plan.tensors if hasattr(t.source, "text")} for plan in (made, other)]
    assert all(len(found) == 1 for found in texts) and texts[0] != texts[1]


def trial_of(folder, arms, **train):
    return write_recipe(
        folder / "x.yaml",
        donors={"a": "a"},
        layout={"host": "a", "deep": "a", "shallow": "a"},
        train={**TRAIN, **train},
        trial={"arms": arms, "seeds": [0], "parts": "recipe"},
    )


def test_an_arm_changes_the_objective_of_the_recipe_for_the_other_one(bench):
    arms = {"distilled": {}, "aligned": {"train.objective": {"align": {"at": "last"}}}}
    path = trial_of(
        bench, arms, objective={"distill": {"temperature": 2.0}}, freeze="none", final_norm="freeze", head="freeze"
    )
    assert check(path, (), SilentMonitor(), deep=False).plan is not None
    made = load_recipe(path, ("trial=none", "train.objective.align.at=last"))
    assert made.train.objective.kind == "align" and made.train.objective.distill is None
    back = load_recipe(path, ("trial=none", "train.objective.align.at=last", "train.objective.align={}"))
    assert back.train.objective.align.at == "boundary"


def test_both_objectives_at_once_are_still_refused(bench):
    both = {"both": {"train.objective": {"align": {"at": "last"}, "distill": {"weight": 0.5}}}}
    with pytest.raises(RecipeError, match="arm 'both': .*has both `distill` and `align`"):
        load_recipe(trial_of(bench, both))


def test_check_plans_each_arm_and_names_the_arm_at_fault(bench):
    arms = {"good": {"train.freeze": "none"}, "beyond": {"train.freeze": [9]}, "wide": {"layout.boundary": 7}}
    with pytest.raises(RecipeError) as caught:
        check(trial_of(bench, arms), (), SilentMonitor(), deep=False)
    problems = [str(problem.what) for problem in caught.value.problems]
    assert [what.split(":")[0] for what in problems] == ["arm 'beyond'", "arm 'wide'"]
    assert "layers 9 requested of a model with 4 layers" in problems[0]
    assert "boundary 7 leaves one side of donor 'a' empty" in problems[1]


def stages_of(path, *overrides):
    made = plan_recipe(path, overrides, SilentMonitor())
    said = [reason for reason in made.plan.evidence.reasons if "Training is" in reason]
    return made, [next(iter(stage.settings.get("objective") or {"next": 0})) for stage in made.plan.train.stages], said


def test_swapped_and_new_layers_are_aligned_then_distilled_then_trained_on_the_next_token(bench):
    path = recipe_of(bench, train={**TRAIN, "tokens": 5120, "global_batch_size": 2, "freeze": "none"})
    made, kinds, said = stages_of(path)
    assert kinds == ["align", "distill", "next"] and len(said) == 1 and "the teacher is 'a'" in said[0]
    train = made.resolved.recipe.train
    assert [stage.tokens for stage in train.stages] == [1024, 3072, 1024] and train.tokens == 5120
    assert [stage.frozen_layers for stage in made.plan.train.stages] == [(0, 1, 2), (), ()]
    assert made.plan.train.stages[0].settings["objective"]["align"]["pairs"] == [[3, 3], [4, 3]]
    assert check(path, (), SilentMonitor(), deep=False).plan.train.stages != ()


@pytest.mark.parametrize("override", ["train.objective=next-token", "train.objective=distill", "train.lora={rank: 2}"])
def test_an_objective_of_the_recipe_replaces_the_default_stages(bench, override):
    path = recipe_of(bench, train={**TRAIN, "tokens": 5120, "global_batch_size": 2, "freeze": "none"})
    _, kinds, said = stages_of(path, override)
    assert kinds == [] and len(said) == ("lora" in override)


def test_a_training_without_new_layers_or_of_few_steps_has_no_stages_of_its_own(bench):
    train = {**TRAIN, "tokens": 5120, "global_batch_size": 2, "freeze": "none"}
    assert stages_of(recipe_of(bench, [{"donor": "a"}], train=train))[1:] == ([], [])
    _, kinds, said = stages_of(recipe_of(bench, train={**train, "tokens": 576}))
    assert kinds == [] and "576 tokens are fewer than ten steps of 64" in said[0]


def train_olmo(bench, family, *slices):
    """A recipe that trains all of a model with `slices` behind the layers of a donor of that family."""
    make_tiny(family, bench / "olmo")
    tiny_tokenizer(bench / "olmo")
    layout = {"slices": [{"donor": "a"}, *slices]}
    return write_recipe(bench / "x.yaml", donors={"a": "olmo"}, layout=layout, train={**TRAIN, "freeze": "none"})


def test_a_family_that_cannot_be_trained_is_refused_before_anything_is_spliced(bench):
    path = train_olmo(bench, "olmo2", {"fresh": "gated_delta_net"})
    with pytest.raises(RecipeError, match="the model is of the family olmo_hybrid and cannot be trained here"):
        check(path, (), SilentMonitor(), deep=False)


def test_a_model_of_donors_of_that_family_trains_with_the_names_that_transformers_saves(bench):
    path = train_olmo(bench, "olmo_hybrid")
    assert check(path, (), SilentMonitor(), deep=False).plan.train is not None
