"""`layout.swap`: the layers that get another mixer by rule and by evidence, what the plan says, and what is refused."""

import json

import pytest

from hybridizer.core.errors import PlanError, RecipeError
from hybridizer.core.progress import SilentMonitor
from hybridizer.pipeline.plan import check, plan_from_configs, plan_recipe
from hybridizer.plan.stored import read_stored_plan
from support.lines import bench_in, hybridize, write_recipe
from support.tiny import make_tiny

RIDGE = {"kind": "mamba2", "init": "attention", "fit": "ridge"}
TEXT = {"path": "t.txt", "tokens": 256, "window": 32}


@pytest.fixture
def bench(bench):
    """A tiny llama of four layers, a text, an own cache, and the working folder."""
    return bench_in(bench, "the cat sat on the mat and saw a dog " * 60)


def recipe_of(folder, swap, donor="a", calibration=None, **sections):
    layout = {"swap": {"mixer": {"kind": "mamba2"}, **swap}}
    layout |= {"calibration": calibration} if calibration else {}
    return write_recipe(folder / "x.yaml", donors={"a": donor}, layout=layout, **sections)


def planned(folder, swap, *overrides, **sections):
    return plan_recipe(recipe_of(folder, swap, **sections), overrides, SilentMonitor())


def swapped(plan):
    return [row.layer for row in plan.layers if "mamba2" in row.method]


@pytest.mark.parametrize(
    ("swap", "layers"),
    [
        ({}, [0, 2]),
        ({"place": "shallow"}, [0, 1]),
        ({"place": "deep"}, [2, 3]),
        ({"place": "deep", "count": 3}, [1, 2, 3]),
        ({"place": "random", "seed": 3, "count": 1}, [3]),
    ],
)
def test_a_rule_says_which_layers_are_swapped_and_check_and_plan_agree(bench, swap, layers):
    path = recipe_of(bench, swap)
    made = plan_recipe(path, (), SilentMonitor()).plan
    assert swapped(made) == swapped(check(path, (), SilentMonitor(), deep=False).plan) == layers
    record = made.evidence.swap
    assert record["swapped"] == layers and sorted(record["kept"] + record["swapped"]) == [0, 1, 2, 3]
    assert any(f"{len(layers)} of 4 layers of 'a' get mamba2" in reason for reason in made.evidence.reasons)


def test_a_swap_is_the_slices_that_it_is_short_for(bench):
    made = planned(bench, {"place": "deep", "count": 1}).plan
    slices = [{"donor": "a", "layers": "0..2"}, {"donor": "a", "layers": 3, "mixer": {"kind": "mamba2"}}]
    same = write_recipe(bench / "y.yaml", donors={"a": "a"}, layout={"slices": slices})
    assert made.hash == plan_recipe(same, (), SilentMonitor()).plan.hash
    assert made.hash != planned(bench, {"place": "shallow", "count": 1}).plan.hash


@pytest.mark.parametrize("place", ["uniform", "trace", "kl"])
def test_a_count_of_0_is_the_donor_itself_whatever_the_place(bench, place):
    path = recipe_of(bench, {"count": 0, "place": place, "mixer": RIDGE}, calibration=TEXT)
    made = plan_recipe(path, (), SilentMonitor()).plan
    same = write_recipe(bench / "y.yaml", donors={"a": "a"}, layout={"slices": [{"donor": "a"}]})
    assert made.hash == plan_recipe(same, (), SilentMonitor()).plan.hash
    assert "No layer of 'a' is swapped: `count` is 0." in made.evidence.reasons
    by_configs = plan_from_configs(path, (), SilentMonitor()).plan
    assert not any("spread evenly" in warning for warning in by_configs.evidence.warnings)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["kl", "leave-one-out"])
def test_layers_are_scored_once_and_those_that_lose_least_are_swapped(bench, place, monkeypatch):
    swap = {"place": place, "mixer": RIDGE, "score_tokens": 64}
    made = planned(bench, swap, calibration=TEXT).plan
    record = made.evidence.swap
    key = {"kl": "kl", "leave-one-out": "bits"}[place]
    by_loss = sorted(record["scores"], key=lambda score: score[key])
    assert sorted(score["layer"] for score in by_loss[:2]) == record["swapped"] == swapped(made)
    assert (record["tokens"], record["fit_tokens"], record["window"]) == (64, 256, 32)

    monkeypatch.setattr("hybridizer.mixers.choose.score_swaps", None)  # the second plan has them from the cache
    printed = hybridize("plan", bench / "x.yaml").output
    assert "each layer swapped alone" in printed and "kl dropped" in printed
    stored = json.loads((bench / "runs/x/plan.json").read_text())
    assert stored["hash"] == made.hash and stored["evidence"]["swap"] == json.loads(json.dumps(record))
    assert read_stored_plan(bench / "runs/x/plan.json").plan.evidence.swap is not None


@pytest.mark.slow
def test_text_that_a_donor_writes_is_written_before_layers_are_scored_on_it(bench):
    generate = {"from": "a", "prompts": ["the cat "], "tokens": 400, "max_new_tokens": 80}
    train = {"data": [{"generate": generate}], "tokens": 300, "freeze": "none", "seq_len": 32}
    swap = {"place": "kl", "mixer": RIDGE, "score_tokens": 256}
    record = planned(bench, swap, train=train).plan.evidence.swap
    assert len(record["scores"]) == 4 and list((bench / "cache/generated").glob("*/texts.jsonl"))


@pytest.mark.slow
def test_a_trace_keeps_the_layers_that_a_disturbance_moves_most(bench):
    made = planned(bench, {"place": "trace", "count": 1}, trace={"perturb": "layer", "probes": "antonyms-en"}).plan
    record = made.evidence.swap
    assert record["figure"] == "js" and len(record["evidence"]) == 4
    assert record["swapped"] == [min(range(4), key=lambda layer: record["evidence"][layer])]


@pytest.mark.parametrize(
    ("swap", "sections", "says"),
    [
        ({"count": 4}, {}, "4 layers to be swapped of donor 'a', which has 4: one keeps its attention."),
        ({"count": 1.5}, {}, "`layout.swap.count` must be a share between"),
        ({"count": -1}, {}, "must be a number of layers from 0 to"),
        ({"donor": "b"}, {}, "names 'b', which is not a donor here"),
        ({"place": "kl"}, {}, "`place` is kl, which scores fitted mixers, and the mixer is not fitted."),
        ({"place": "kl", "mixer": RIDGE}, {}, "`fit: ridge` needs a text"),
        ({"place": "trace", "mixer": {"kind": "mamba2", "parallel": True}}, {}, "a parallel mixer leaves it there"),
        ({"zero_output": True, "mixer": RIDGE}, {}, "`swap` has `zero_output`, and the fit gives"),
    ],
)
def test_what_cannot_be_swapped_is_refused_by_check(bench, swap, sections, says):
    with pytest.raises((RecipeError, PlanError)) as caught:
        check(recipe_of(bench, swap, **sections), (), SilentMonitor(), deep=False)
    assert says in str(caught.value)


def test_a_swap_beside_another_way_to_give_the_layers_is_refused(bench):
    path = write_recipe(
        bench / "x.yaml",
        donors={"a": "a"},
        layout={"swap": {"mixer": {"kind": "mamba2"}}, "slices": [{"donor": "a"}]},
    )
    with pytest.raises(RecipeError, match="Keep one way: delete `slices`, or delete `swap`"):
        check(path, (), SilentMonitor(), deep=False)


@pytest.mark.slow
def test_a_text_too_short_for_scores_is_refused_at_the_place(bench):
    (bench / "t.txt").write_text("the cat sat on the mat " * 4)
    with pytest.raises(RecipeError, match=r"x\.yaml:\d+.*"):
        planned(bench, {"place": "kl", "mixer": RIDGE, "score_tokens": 64}, calibration={**TEXT, "window": 16})


@pytest.mark.parametrize(
    ("family", "says"),
    [
        ("granitemoehybrid", "layer 0 of donor 'a' has no attention of its own that a mamba2 could take the place of"),
        ("bamba", "it has linear_attention ('bamba'). Layers without attention of its own: 0, 2."),
        ("zamba2", "it has linear_attention ('zamba2'). Layers without attention of its own: 0..3."),
    ],
)
def test_a_donor_without_attention_in_a_layer_is_refused_with_its_layers(bench, family, says):
    folder = make_tiny(family, bench / family)
    with pytest.raises(PlanError) as caught:
        check(
            recipe_of(bench, {"place": "shallow"}, {"source": str(folder), "allow": ["no_tokenizer"]}),
            (),
            SilentMonitor(),
            deep=False,
        )
    assert says in str(caught.value)


def test_an_arm_of_a_trial_changes_the_place_in_one_line(bench):
    arms = {"shallow": {"layout.swap.place": "shallow"}, "deep": {"layout": {"swap": {"place": "deep"}}}}
    train = {"data": [{"path": "t.txt"}], "tokens": 640, "seq_len": 32, "freeze": "none"}
    path = recipe_of(bench, {}, train=train, trial={"arms": arms, "seeds": [0], "parts": "recipe"})
    assert check(path, (), SilentMonitor(), deep=False).plan is not None
    for place, layers in (("shallow", [0, 1]), ("deep", [2, 3])):
        assert swapped(plan_recipe(path, ("trial=none", f"layout.swap.place={place}"), SilentMonitor()).plan) == layers
