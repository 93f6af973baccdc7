"""Stages and factors of the learning rate in a plan: hashes of prefixes, costs by stage, errors at their lines."""

import json
from pathlib import Path

import pytest

from hybridizer.core.errors import RecipeError
from hybridizer.core.progress import SilentMonitor
from hybridizer.pipeline.plan import estimate_training_cost, plan_recipe
from hybridizer.plan.plan import read_plan
from support.lines import hybridize, make_donors, write_recipe

FIRST, SECOND = {"tokens": 1000, "freeze": "deep", "name": "first"}, {"tokens": 500, "freeze": "shallow", "lr": 1e-5}
TRAIN = {"data": [{"path": "text.jsonl"}], "seq_len": 64, "global_batch_size": 2, "lr": 1e-4, "precision": "bfloat16"}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """Two tiny llamas of four layers and a text."""
    folder = tmp_path_factory.mktemp("plans")
    make_donors(folder)
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(50)))
    return folder


@pytest.fixture
def plan(workshop, monkeypatch):
    """plan(train keys) -> the planned recipe, whose output is bfloat16."""
    monkeypatch.setenv("HYBRIDIZER_CACHE", str(workshop / "cache"))
    monkeypatch.chdir(workshop)

    def run(**train):
        layout = {"host": "a", "deep": "a", "shallow": "b", "boundary": 2}
        sections = {"donors": {"a": "a", "b": "b"}, "layout": layout, "output": {"dtype": "bfloat16"}}
        recipe = write_recipe(Path("x.yaml"), **sections, train={**TRAIN, **train})
        return plan_recipe(recipe, (), SilentMonitor())

    return run


def test_the_hash_of_a_prefix_is_that_of_the_plan_that_ends_there(plan):
    one, two = plan(stages=[FIRST]).plan, plan(stages=[FIRST, SECOND]).plan
    assert two.up_to(1).hash == one.hash and two.up_to(2).hash == two.hash and two.up_to(0).hash == one.spliced.hash
    other = plan(stages=[{**FIRST, "name": "renamed"}, {**SECOND, "lr": 2e-5}]).plan
    assert other.hash != two.hash and other.up_to(1).hash == one.hash


def test_a_plan_of_stages_is_read_back_as_it_was_written(plan):
    made = plan(stages=[FIRST, {**SECOND, "lr_scale": {"*.mlp.*": 0.5, "deep": 0.1}}]).plan
    assert read_plan(json.loads(json.dumps(made.to_json())), "plan.json") == made


def test_the_order_of_factors_is_in_the_hash(plan):
    forward, backward = ({"*.mlp.*": 0.5, "*.up_proj.*": 0.1}, {"*.up_proj.*": 0.1, "*.mlp.*": 0.5})
    hashes = {plan(tokens=1000, lr_scale=scale).plan.hash for scale in (forward, backward)}
    assert len(hashes) == 2


def test_every_stage_has_a_row_and_the_table_is_that_of_the_largest(plan):
    stages = [FIRST, SECOND, {"tokens": 256, "freeze": "none", "global_batch_size": 4}]
    planned = plan(stages=stages)
    cost = estimate_training_cost(planned, "cpu")
    assert [(row.name, row.tokens, row.steps) for row in cost.stages] == [
        ("first", 1000, 8), ("stage 2", 500, 4), ("stage 3", 256, 1),
    ]  # fmt: skip
    assert [row.trained_layers for row in cost.stages] == ["0..1", "2..3", "0..3"]
    assert cost.stages[1].trained_parts == ("final norm", "head") and cost.stages[1].lr == 1e-5
    assert cost.asked.peak_bytes == max(row.peak_bytes for row in cost.stages)
    assert planned.plan.train.frozen_layers == () and planned.plan.train.frozen_parts == ()
    shown = hybridize("plan", "x.yaml").stdout
    assert "stages of the training" in shown and "13 steps in all stages" in shown


def test_layers_that_trained_before_count_in_float32(plan):
    alone = estimate_training_cost(plan(stages=[SECOND]), "cpu").stages[0].peak_bytes
    after = estimate_training_cost(plan(stages=[FIRST, SECOND]), "cpu").stages[1].peak_bytes
    assert after - alone == 2 * 61_696  # two bytes more per parameter of layers 0 and 1


def test_the_plan_shows_rates_by_layer_and_keys_without_effect(plan):
    (rates, idle) = plan(tokens=1000, lr_scale={"deep": 0.5, "*.mlp.*": 0.1}).plan.train.notes[-2:]
    assert rates.startswith("peak learning rates: layers 0..1: 1e-05 and 0.0001")
    assert idle == "lr_scale has no effect for `deep`: nothing there trains"


@pytest.mark.parametrize(
    ("train", "line", "words"),
    [
        ({"stages": [FIRST, {"tokens": 9, "freeze": [9]}]}, "freeze:", "layers 9 requested"),
        ({"tokens": 9, "lr_scale": {"*.mpl.*": 1.0}}, "*.mpl.*", "Did you mean 'mlp'"),
        ({"tokens": 9, "lr_scale": {"0..4": 1.0}}, "0..4", "layers 4 of a model with 4 layers"),
        ({"tokens": 9, "lr": 0.05, "lr_scale": {"shallow": 3.0}}, "lr_scale:", "a learning rate of 0.15"),
        ({"stages": [FIRST, {"tokens": 9, "lr_scale": {"x*": 1.0}}]}, "x*", "no tensor has a name like it"),
    ],
)
def test_a_mistake_is_reported_at_its_line(plan, train, line, words):
    with pytest.raises(RecipeError) as caught:
        plan(**train)
    (problem,) = caught.value.problems
    number = int(problem.where.rpartition(":")[2])
    assert line in Path("x.yaml").read_text().splitlines()[number - 1]
    assert words in f"{problem.what} {problem.fix}"


def test_a_stage_that_trains_nothing_is_refused(plan):
    frozen = {"freeze": "0..3", "embedding": "freeze", "final_norm": "freeze", "head": "freeze"}
    with pytest.raises(RecipeError, match="nothing is left to train"):
        plan(stages=[FIRST, {"tokens": 9, **frozen}])


def test_frozen_layers_in_few_bits_are_in_the_plan_only_where_they_are_asked_for(plan):
    plain, asked = plan(tokens=1000, freeze="deep"), plan(tokens=1000, freeze="deep", frozen_dtype="int8")
    assert "frozen_dtype" not in plain.plan.train.settings
    assert asked.plan.train.settings["frozen_dtype"] == "int8"
    costs = [estimate_training_cost(each, "cpu") for each in (plain, asked)]
    linears, rows = 2 * 30_720, 2 * 448
    assert costs[0].asked.memory.weights - costs[1].asked.memory.weights == linears - 2 * rows
    assert "frozen_dtype int8 saves no memory here" in costs[1].notes[-1]  # of a model as small as this
    assert "frozen_dtype has no effect" in str(plan(tokens=1000, freeze="none", frozen_dtype="fp8").plan.train.notes)


def test_layers_that_trained_before_are_held_on_a_cpu_beside_their_copy_in_few_bits(plan):
    low = {**SECOND, "frozen_dtype": "int8"}
    alone = estimate_training_cost(plan(stages=[low]), "cpu").stages[0].peak_bytes
    after = estimate_training_cost(plan(stages=[FIRST, low]), "cpu").stages[1].peak_bytes
    assert after - alone == 4 * 61_696
