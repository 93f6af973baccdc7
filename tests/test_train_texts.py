"""The texts of a training: files and hub datasets, pinned, read, tokenised once, and what is left out of them."""

import gzip
import json
import os
import random
import re
import shutil
import subprocess
import sys

import pytest

from hybridizer.pipeline import build
from support.hub import COMMIT, serve_repository
from support.lines import hybridize, hybridize_json
from support.train_bench import TRAIN, make_bench, recipe_of


@pytest.fixture
def bench(bench):
    """The working folder, with two donors and a text."""
    return make_bench(bench)


@pytest.mark.slow
def test_a_hub_dataset_is_asked_for_its_commit_once_and_rebuilt_offline_from_the_resolved_recipe(bench):
    (bench / "set").mkdir()
    shutil.move(bench / "text.jsonl", bench / "set/train.jsonl")
    train = {"data": [{"hub": "org/set", "revision": "main", "max_documents": 200}], "tokens": 1000}
    command = [sys.executable, "-m", "hybridizer"]
    with serve_repository("org/set", bench / "set", "datasets") as (endpoint, asked):
        online = {**os.environ, "HF_HOME": str(bench / "hf"), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0"}
        built = subprocess.run(
            [*command, "build", recipe_of(bench, train=train)], env=online, capture_output=True, text=True
        )
        assert built.returncode == 0, built.stderr
    assert sum(path.endswith("/revision/main") for path in asked) == 1, "a branch may move between two questions"
    plan = json.loads((bench / "runs/x/plan.json").read_text())
    assert plan["train"]["data"][0]["settings"]["content"] == COMMIT
    scores = json.loads((bench / "runs/x/scores.json").read_text())
    assert scores["sets"][0]["documents_available"] < 200, "the documents were read, and not all of the 300"
    offline = {**os.environ, "HF_HOME": str(bench / "hf"), "HF_HUB_OFFLINE": "1"}
    resolved = [*command, "build", "runs/x/recipe.resolved.yaml", "--json"]
    again = subprocess.run(resolved, env=offline, capture_output=True, text=True)
    assert again.returncode == 0 and "model: unchanged" in again.stderr, again.stderr


@pytest.mark.slow
def test_a_hub_that_does_not_know_the_dataset_is_named_at_the_line(bench):
    with serve_repository("org/set", bench, "datasets") as (endpoint, _):
        online = {**os.environ, "HF_HOME": str(bench / "hf"), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0"}
        recipe = recipe_of(bench, train={"data": [{"hub": "org/other"}]})
        command = [sys.executable, "-m", "hybridizer", "plan", recipe]
        result = subprocess.run(command, env=online, capture_output=True, text=True)
    assert result.returncode == 2 and "x.yaml:11: `org/other`: the commit of 'main' is not known" in result.stderr


@pytest.mark.slow
def test_a_text_that_changes_between_plan_and_training_is_refused(bench, monkeypatch):
    def change(*arguments, **options):
        with (bench / "text.jsonl").open("a") as file:
            file.write('\n{"text": "one more"}')
        splice_for_training(*arguments, **options)

    splice_for_training = build._splice_for_training
    monkeypatch.setattr(build, "_splice_for_training", change)
    recipe = recipe_of(bench)
    assert "text.jsonl: its content changed after planning" in hybridize("build", recipe, code=2).stderr
    assert not (bench / "runs/x/training/log.jsonl").exists()
    monkeypatch.undo()
    monkeypatch.chdir(bench)
    hybridize("build", recipe, "--no-load")


def test_a_folder_stands_for_a_hub_dataset_wherever_the_recipe_is_run_from(bench, monkeypatch):
    (bench / "set").mkdir()
    shutil.move(bench / "text.jsonl", bench / "set/train.jsonl")
    recipe = recipe_of(bench, train={"data": [{"hub": "set"}]})
    here = hybridize_json("plan", recipe)["hash"]
    (bench / "elsewhere").mkdir()
    monkeypatch.chdir(bench / "elsewhere")
    assert hybridize_json("plan", recipe)["hash"] == here
    assert hybridize_json("plan", bench / "runs/x/recipe.resolved.yaml")["hash"] == here
    recipe = recipe_of(bench, train={"data": [{"hub": "set", "revision": "v7"}]})
    assert "x.yaml:11: `set` is a folder here, without revisions." in hybridize("plan", recipe, code=2).stderr


@pytest.mark.slow
def test_records_that_cannot_be_read_are_counted_and_placed(bench):
    with (bench / "text.jsonl").open("a") as file:
        file.write('\n{"text": ""}\n{"body": "x"}\nno json')
    result = hybridize("build", recipe_of(bench))
    (use,) = json.loads((bench / "runs/x/training/training.json").read_text())["sources"]
    assert sum(use["left_out"].values()) == 3 and len(use["left_out"]) == 3
    assert any(place.endswith("text.jsonl:301") for places in use["left_out_at"].values() for place in places), use
    assert "; left out 1 " in result.stdout and "left out 1 " in result.stderr


@pytest.mark.parametrize("key", ["train.data", "evaluate.bits_per_byte"])
def test_a_text_that_cannot_be_tokenised_is_found_before_anything_is_spliced(bench, key):
    whole = gzip.compress("\n".join(json.dumps({"text": f"{i} {random.random()}"}) for i in range(5000)).encode())
    (bench / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    entry = "{path: cut.jsonl.gz, name: n}" if key.startswith("evaluate") else "{path: cut.jsonl.gz}"
    stderr = hybridize("build", recipe_of(bench), "--set", f"{key}=[{entry}]", code=2).stderr
    assert "cut.jsonl.gz: cannot be read" in stderr
    assert not (bench / "runs/x/spliced").exists()


@pytest.mark.slow
def test_texts_are_tokenised_once_and_what_was_left_out_is_noted_once_before_training(bench):
    with (bench / "text.jsonl").open("a") as file:
        file.write("\nno json")
    stderr = hybridize("build", recipe_of(bench), "--no-load").stderr
    assert len(list((bench / "cache/tokens").iterdir())) == 1
    assert stderr.count("left out 1 not JSON") == 1 and stderr.index("left out") < stderr.index("splice:")


@pytest.mark.slow
def test_the_plan_shows_steps_and_epochs_and_warns_of_many(bench):
    def shown(*arguments):
        found = hybridize("plan", recipe, *arguments)
        return " ".join((found.stdout + found.stderr).split())

    recipe = recipe_of(bench, train={"tokens": 300_000, "max_steps": 3})
    before = shown()
    assert "3 steps of 512 tokens" in before
    assert re.search(r"text.jsonl: 300,000 tokens, about [0-9.]+ epochs at 4 bytes per token", before), before
    built = hybridize("build", recipe, "--no-load").stderr
    (use,) = json.loads((bench / "runs/x/training/training.json").read_text())["sources"]
    count = int(re.search(r"epochs over the ([0-9,]+) it has", shown())[1].replace(",", ""))
    assert count == pytest.approx(use["tokens"], rel=0.01)  # a token left over where a document is cut does not train
    for text in (shown(), " ".join(built.split())):
        assert f"warning: text.jsonl: {300_000 / count:.1f} epochs over {count:,} tokens; up to 4 are nearly" in text
    assert f"text.jsonl: 300,000 tokens, {300_000 / count:.2f} epochs over the {count:,} it has" in shown()
    few = shown("--set", f"train.tokens={4 * count}")
    assert "4.00 epochs over" in few and "nearly as good" not in few
    assert "at 4 bytes per token" in shown("--set", "train.heldout_ratio=0.3")  # other documents train
    hashes = {hybridize_json("plan", recipe)["hash"] for _ in range(2)}
    assert hashes == {json.loads((bench / "runs/x/model/manifest.json").read_text())["plan_hash"]}


def test_check_finds_texts_without_a_document_and_names_what_is_there(bench):
    (bench / "chat.jsonl").write_text('{"messages": [{"role": "user", "content": "hi"}]}\n')
    data = [{"path": "text.jsonl", "field": "body"}, {"path": "chat.jsonl"}, {"path": "text.jsonl"}]
    found = hybridize("check", recipe_of(bench, train=TRAIN | {"data": data}), code=2).stderr
    assert re.search(r"x\.yaml:11: `text\.jsonl`: no usable document.*\n  Name one of the fields .*: text\.", found), (
        found
    )
    assert re.search(r"x\.yaml:\d+: `chat\.jsonl`: no usable document.*\n  These are chat records", found), found
    assert "2 problems" in found
