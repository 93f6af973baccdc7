"""`plan` and `check` of a recipe that trains: what is shown, what it costs, the hash, and what is refused."""

import json
import re
import subprocess
from typing import get_args

import pytest
from accelerate.utils import LoggerType

from hybridizer.plan.stored import read_stored_plan
from hybridizer.recipe.models import Tracker
from support.lines import hybridize, hybridize_json
from support.train_bench import make_bench, one_donor, recipe_of


@pytest.fixture
def bench(bench):
    """The working folder, with two donors and a text."""
    return make_bench(bench)


def test_the_plan_shows_what_trains_and_what_it_costs(bench):
    recipe = recipe_of(bench)
    shown = hybridize("plan", recipe).stdout
    assert "trained" in shown and "frozen" in shown and "peak memory" in shown
    assert "outside the layers, frozen: final norm, head; trained: embedding" in shown
    assert "Freezing saves" in shown
    plan = hybridize_json("plan", recipe)
    assert plan["train"]["frozen_layers"] == [2, 3] and plan["cost"]["asked"]["trained_layers"] == "0..1"
    assert json.loads((bench / "runs/x/cost.json").read_text()) == plan["cost"]
    again = read_stored_plan(bench / "runs/x/plan.json").plan
    assert again.hash == plan["hash"] != again.spliced.hash


def test_the_price_is_that_of_the_adapters_where_adapters_train(bench):
    adapted, whole = (hybridize_json("plan", recipe_of(bench, train=t))["cost"] for t in ({"lora": {"rank": 4}}, {}))
    assert adapted["asked"]["trained_parameters"] < whole["asked"]["trained_parameters"] / 4
    assert any("adapters of rank 4" in note for note in adapted["notes"])
    assert not any("adapters" in note for note in whole["notes"])


@pytest.mark.slow
def test_a_probe_tells_the_time(bench):
    expected = hybridize_json("plan", recipe_of(bench), "--probe")["expected"]
    assert expected["run_seconds"] == pytest.approx(expected["step_seconds"] * 8)
    assert expected["tokens_per_second"] > 0 and expected["measured_peak_bytes"] > 50e6


@pytest.mark.slow
def test_the_hash_follows_the_text_and_the_settings_and_not_the_place(bench, tmp_path_factory):
    recipe = recipe_of(bench)
    first = hybridize_json("plan", recipe)["hash"]
    assert hybridize_json("plan", bench / "runs/x/recipe.resolved.yaml")["hash"] == first
    for change in ("checkpoint_minutes=1", "max_steps=3", "max_minutes=9", "compile=auto", "compile=false"):
        assert hybridize_json("plan", recipe, "--set", f"train.{change}")["hash"] == first
    assert hybridize_json("plan", recipe, "--set", "train.freeze=2..3")["hash"] == first
    elsewhere = tmp_path_factory.mktemp("else")
    subprocess.run(["cp", "-r", bench / "a", bench / "b", bench / "text.jsonl", recipe, elsewhere], check=True)
    assert hybridize_json("plan", elsewhere / "x.yaml")["hash"] == first
    for change in ("lr=2e-3", "tokens=5k", "freeze=shallow", "head=train"):
        assert hybridize_json("plan", recipe, "--set", f"train.{change}")["hash"] != first
    with (bench / "text.jsonl").open("a") as file:
        file.write('\n{"text": "one more"}')
    assert hybridize_json("plan", recipe)["hash"] != first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.freeze=9", "layers 9 requested of a model with 4 layers (0..3)."),
        ("train.freeze=0..3", "freezes all 4 layers"),
        ("train.data=[{path: no.txt}]", "`no.txt`: no file in"),
        ("train.data=[{path: a/model.safetensors}]", "model.safetensors"),
        ("evaluate.bits_per_byte=[{name: n, path: none.txt}]", "`none.txt`: no file in"),
    ],
)
def test_check_finds_what_cannot_train(bench, change, message):
    if change == "train.freeze=0..3":
        change = ["--set", change, "--set", "train.embedding=freeze"]
    else:
        change = ["--set", change]
    stderr = hybridize("check", recipe_of(bench), *change, code=2).stderr
    assert message in stderr and ("x.yaml:" in stderr or "--set train" in stderr or "--set evaluate" in stderr), stderr


def test_rows_longer_than_the_model_takes_are_found_by_check(bench):
    recipe = one_donor(bench, "gpt2", seq_len=4096)
    assert "x.yaml:11: rows of 4096 tokens; the model takes 512." in hybridize("check", recipe, code=2).stderr


def test_packages_that_are_missing_are_found_by_check_at_their_lines(bench, monkeypatch):
    train = {"trackers": ["tensorboard", "wandb"], "lora": {"rank": 2}, "optimizer": "adamw8bit"}
    recipe = recipe_of(bench, train=train | {"data": [{"path": "text.jsonl"}, {"hub": "org/set"}]})
    monkeypatch.setattr("hybridizer.plan.training.find_spec", lambda name: None)
    found = hybridize("check", recipe, code=2).stderr
    for line, package in ((12, "datasets"), (18, "tensorboard"), (18, "wandb"), (21, "peft"), (23, "bitsandbytes")):
        assert re.search(rf"x\.yaml:{line}: .* needs the package {package}\.\n  pip install {package}\n", found), found
    monkeypatch.setattr("hybridizer.plan.training.find_spec", lambda name: name != "tensorboard" or None)
    hybridize("check", recipe)  # tensorboardX serves as well


def test_a_tracker_that_does_not_exist_is_told_from_its_nearest(bench):
    stderr = hybridize("check", recipe_of(bench, train={"trackers": ["tensorbord"]}), code=2).stderr
    assert "cannot be 'tensorbord'" in stderr and "tensorboard" in stderr
    assert set(get_args(Tracker)) == {kind.value for kind in LoggerType} - {"all"}
