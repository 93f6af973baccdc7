"""From a recipe with a `train` section to a trained, verified model folder, on tiny checkpoints."""

import gzip
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest
import torch
from accelerate.utils import LoggerType
from safetensors.torch import load_file, save_file

from hybridizer.checkpoint import publish
from hybridizer.checkpoint.hashing import hash_file
from hybridizer.pipeline import build
from hybridizer.plan.stored import read_stored_plan
from hybridizer.recipe.models import Tracker
from hybridizer.train.run import open_runtime
from hybridizer.train.runtime import Runtime
from hybridizer.train.training_record import is_complete
from support.hub import COMMIT, serve_repository
from support.lines import hybridize, hybridize_json, make_donor, make_donors, write_documents, write_recipe
from support.sections import train_section

TRAIN = {
    "data": [{"path": "text.jsonl"}], "tokens": 4000, "seq_len": 64, "lr": 1e-3, "heldout_ratio": 0.2,
    "precision": "float32",  # and not what `auto` finds in the processor at hand; `auto` has a test of its own
}  # fmt: skip
DIAL = {"host": "a", "deep": "a", "shallow": "b", "boundary": 0.5}
SHALLOW = ("model.embed_tokens.", "model.layers.0.", "model.layers.1.")


@pytest.fixture
def bench(bench):
    """Two tiny llamas of four layers, a text of 300 documents, an own cache, and the working folder."""
    make_donors(bench)
    write_documents(bench / "text.jsonl", 300)
    return bench


def recipe_of(bench, name="x", layout=DIAL, donors=("a", "b"), train=None, **sections):
    donors = {donor: donor for donor in donors}
    return write_recipe(bench / f"{name}.yaml", donors=donors, layout=layout, train=TRAIN | (train or {}), **sections)


def trained_names(bench):
    """The tensors of trained.safetensors, which is all that a finished training leaves of its weights."""
    assert [path.name for path in (bench / "runs/x/training").glob("*.safetensors")] == ["trained.safetensors"]
    return set(load_file(bench / "runs/x/training/trained.safetensors"))


def proofs_of(*arguments):
    return {proof["check"]: proof["found"] for proof in hybridize_json(*arguments)["proofs"]}


def test_what_is_frozen_keeps_the_donors_bytes_and_what_trains_moves(bench):
    proofs = proofs_of("build", recipe_of(bench))
    built, a, b = (load_file(bench / path / "model.safetensors") for path in ("runs/x/model", "a", "b"))
    trained = {name for name in built if name.startswith(SHALLOW)}
    for name, tensor in built.items():
        donor = b if name.startswith("model.layers.") and name in trained else a
        assert torch.equal(tensor, donor[name]) == (name not in trained), name
    frozen = len(built) - len(trained)
    assert proofs["frozen"] == f"{frozen} tensors hash as before training, {frozen} of them as in their donors"
    manifest = hybridize_json("inspect", "runs/x")
    assert set(manifest["training"]["trained"]) == trained
    assert {n for n, t in manifest["tensors"].items() if t["method"] == "copy, trained"} == trained
    record = json.loads((bench / "runs/x/training/training.json").read_text())
    assert record["tokens"] >= 4000 and record["last_loss"] < record["first_loss"]
    assert "layers 2..3, final norm, head frozen" in (bench / "runs/x/model/README.md").read_text()
    assert proofs_of("verify", "runs/x").keys() == proofs.keys() | {"plan", "origins"}


@pytest.mark.slow
def test_auto_trains_in_bfloat16_only_where_the_processor_has_it_and_proves_the_same(bench, bfloat16_cpu):
    proofs = proofs_of("build", recipe_of(bench, train={"precision": "auto"}))
    record = json.loads((bench / "runs/x/training/training.json").read_text())
    assert record["dtype"] == ("bfloat16" if bfloat16_cpu else "float32") and record["last_loss"] < record["first_loss"]
    built, a, b = (load_file(bench / path / "model.safetensors") for path in ("runs/x/model", "a", "b"))
    assert {tensor.dtype for tensor in built.values()} == {torch.float32}, "as the donors are stored"
    moved = {name for name in built if not torch.equal(built[name], (b if name.startswith(SHALLOW[1:]) else a)[name])}
    assert moved == {name for name in built if name.startswith(SHALLOW)}
    assert proofs["frozen"].startswith(f"{len(built) - len(moved)} tensors hash as before training")


@pytest.mark.slow
def test_what_was_learned_and_what_was_forgotten_is_in_the_records_and_in_the_summary(bench):
    texts = [f"tale {i} of a dog " + "that dug and dug " * (i % 5 + 1) for i in range(30)]
    documents = (bench / "text.jsonl").read_text().splitlines()
    lines = [json.dumps({"text": text}) for text in texts] + documents
    (bench / "tales.jsonl").write_text("\n".join(lines))
    (bench / "probes.jsonl").write_text("".join(f'{{"prompt": "cat {i} is a", "target": " cat"}}\n' for i in range(12)))
    evaluate = {"bits_per_byte": [{"name": "tales", "path": "tales.jsonl"}], "prompts": ["the cat"], "new_tokens": 4}
    recipe = recipe_of(bench, evaluate=evaluate, trace={"probes": "probes.jsonl"}, train={"tokens": 8000})
    summary = hybridize("build", recipe).stdout
    scores = json.loads((bench / "runs/x/scores.json").read_text())
    domain, general = scores["sets"]
    assert (domain["name"], domain["role"], domain["verdict"]) == ("text.jsonl", "in-domain", "better")
    assert domain["after_ci"][1] < domain["before_ci"][0]
    heldout = domain["documents_available"]
    assert 20 < heldout < 100 and general["documents_available"] == 30 + heldout, (
        "text that trained is not general text"
    )
    assert general["documents_trained"] == 300 - heldout
    assert [sample["source"] for sample in scores["samples"]].count("recipe") == 1
    profile = json.loads((bench / "runs/x/profile.json").read_text())
    assert profile["boundary"] == 2 and profile["sentence"] in " ".join(summary.split())
    for said in ("trained on 8,", "loss ", "bits per byte", "tales", "better", "before", "after"):
        assert said in summary, said
    again = hybridize_json("build", recipe)
    assert again["scores"] == scores and again["profile"] == profile


@pytest.mark.slow
def test_a_frozen_tensor_that_changed_afterwards_fails_verification(bench):
    hybridize("build", recipe_of(bench))
    model = bench / "runs/x/model"
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.3.mlp.up_proj.weight"][0, 0] += 1
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    manifest = json.loads((model / "manifest.json").read_text())
    manifest["files"]["model.safetensors"] = hash_file(model / "model.safetensors")  # a forger who knows of hashes
    (model / "manifest.json").write_text(json.dumps(manifest))
    stderr = hybridize("verify", "runs/x", code=1).stderr
    assert "the frozen tensor 'model.layers.3.mlp.up_proj.weight' changed in training" in stderr


@pytest.mark.slow
def test_a_second_build_trains_nothing_and_a_lost_model_is_exported_again(bench):
    recipe = recipe_of(bench)
    hybridize("build", recipe)
    log = (bench / "runs/x/training/log.jsonl").read_bytes()
    before = hash_file(bench / "runs/x/model/model.safetensors")
    assert "model: unchanged" in hybridize("build", recipe).stderr
    subprocess.run(["rm", "-r", bench / "runs/x/model"], check=True)
    assert "train: unchanged" in hybridize("build", recipe).stderr
    assert hash_file(bench / "runs/x/model/model.safetensors") == before
    assert (bench / "runs/x/training/log.jsonl").read_bytes() == log


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


def test_processes_that_planned_differently_do_not_train(bench, monkeypatch):
    monkeypatch.setattr(build, "join_processes", lambda recipe, runs: open_runtime(recipe, runs / recipe.name))
    monkeypatch.setattr(Runtime, "all_gather", lambda self, text: [text, "sha256:another"])
    stderr = hybridize("build", recipe_of(bench), code=2).stderr
    assert "x: the processes made different plans" in stderr and "sha256:another... by process 1" in stderr
    assert not (bench / "runs/x/training").exists()


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


@pytest.mark.slow
def test_the_layer_list_decides_and_parts_can_be_named(bench):
    layout = {"host": "a", "slices": [{"donor": "a"}]}
    recipe = recipe_of(bench, layout=layout, donors=("a",), train={"freeze": "0, 2..3", "head": "train"})
    hybridize("build", recipe)
    built, donor = (load_file(bench / path / "model.safetensors") for path in ("runs/x/model", "a"))
    moved = {name for name in built if not torch.equal(built[name], donor[name])}
    assert moved == {name for name in built if name.startswith(("model.layers.1.", "lm_head."))}


@pytest.mark.slow
def test_weights_are_rounded_to_the_asked_precision_once_at_the_end(bench):
    proofs = proofs_of("build", recipe_of(bench, output={"dtype": "bfloat16"}))
    assert proofs["frozen"] == "20 tensors hash as before training, 20 of them as in their donors"
    built = load_file(bench / "runs/x/model/model.safetensors")
    trained = load_file(bench / "runs/x/training/trained.safetensors")
    assert {tensor.dtype for tensor in built.values()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}
    assert all(torch.equal(built[name], tensor.to(torch.bfloat16)) for name, tensor in trained.items())
    assert trained_names(bench) == {name for name in built if name.startswith(SHALLOW)}


@pytest.mark.slow
def test_stacked_experts_are_taken_apart_again(bench):
    make_donor(bench / "moe", "mixtral", seed=3)
    layout = {"host": "moe", "deep": "moe", "shallow": "moe"}
    proofs = proofs_of("build", recipe_of(bench, layout=layout, donors=("moe",)))
    built, donor = (load_file(bench / path / "model.safetensors") for path in ("runs/x/model", "moe"))
    assert built.keys() == donor.keys()
    moved = {name for name in built if not torch.equal(built[name], donor[name])}
    assert moved == {name for name in built if name.startswith(SHALLOW)}
    assert any(".experts.1." in name for name in moved)
    assert trained_names(bench) == moved
    note = "the load-balancing loss of the experts (router_aux_loss_coef: 0.001) is not added to the training loss"
    assert note in hybridize_json("inspect", "runs/x")["training"]["notes"]
    assert proofs["frozen"].startswith(f"{len(built) - len(moved)} tensors hash as before training")


@pytest.mark.slow
def test_adapters_are_merged_into_the_layers_that_train(bench):
    pytest.importorskip("peft")
    hybridize("build", recipe_of(bench, train={"lora": {"rank": 4}, "lr": 1e-2}))
    built, a, b = (load_file(bench / path / "model.safetensors") for path in ("runs/x/model", "a", "b"))
    moved = {n for n in built if not torch.equal(built[n], (b if n.startswith(SHALLOW[1:]) else a)[n])}
    assert moved == {n for n in built if n.startswith(SHALLOW[1:]) and "_proj" in n}
    assert trained_names(bench) == moved


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
def test_nothing_says_that_a_tied_table_trains_where_adapters_do(bench):
    recipe = one_donor(bench, "llama", lora={"rank": 2}, freeze="none")
    make_donor(bench / "m", "llama", seed=3, tie_word_embeddings=True)
    found = hybridize_json("plan", recipe)
    assert found["train"]["frozen_parts"] == ["embedding", "final norm", "head"]
    hybridize("build", recipe, "--no-load")
    record = json.loads((bench / "runs/x/training/training.json").read_text())
    for notes in (found["train"]["notes"], found["cost"]["notes"], record["notes"]):
        assert not any("tied" in note for note in notes), notes


@pytest.mark.slow
def test_a_probe_tells_the_time(bench):
    expected = hybridize_json("plan", recipe_of(bench), "--probe")["expected"]
    assert expected["run_seconds"] == pytest.approx(expected["step_seconds"] * 8)
    assert expected["tokens_per_second"] > 0 and expected["measured_peak_bytes"] > 50e6


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


@pytest.mark.slow
def test_recurrent_layers_train_on_packed_rows(bench):
    make_donor(bench / "m", "mamba2", seed=3)
    layout = {"host": "m", "deep": "m", "shallow": "m"}
    stderr = hybridize("build", recipe_of(bench, layout=layout, donors=("m",))).stderr
    assert "modules that would mix the documents of a row and run on each separately: 4" in stderr
    hybridize("verify", "runs/x")


@pytest.mark.slow
def test_another_training_in_the_same_folder_is_refused_with_the_difference(bench):
    recipe = recipe_of(bench, train={"max_steps": 2})
    hybridize("build", recipe)
    stderr = hybridize("build", recipe, "--set", "train.lr=2e-3", "--replace", code=2).stderr
    assert "train.optimizer.lr is 0.002 now and was 0.001 there" in stderr
    hybridize("verify", "runs/x")
    stderr = hybridize("build", recipe, "--set", "train.freeze=shallow", "--replace", code=2).stderr
    assert "freeze.frozen_layers is [0, 1] now and was [2, 3] there" in stderr, "what differs, not its hash"
    hybridize("build", recipe, "--set", "train.max_steps=4")
    record = json.loads((bench / "runs/x/training/training.json").read_text())
    assert (record["steps"], record["stopped_by"]) == (4, "steps")


@pytest.mark.slow
def test_a_run_that_exploded_goes_on_with_a_lower_rate_from_its_last_good_state(bench):
    settings = {"schedule": "constant", "warmup_ratio": 0, "max_grad_norm": 0, "checkpoint_minutes": 0}
    recipe = recipe_of(bench, train=settings)
    hybridize("build", recipe, "--no-load", "--set", "train.max_steps=2")
    stderr = hybridize(
        "build", recipe, "--no-load", "--replace", "--accept-changes", "--set", "train.weight_decay=1e60", code=1
    ).stderr
    assert "training step 3: " in stderr and "it resumes from runs/x/training/checkpoints/step-00000002" in stderr, (
        stderr
    )
    stderr = hybridize("build", recipe, "--no-load", "--replace", "--set", "train.lr=2e-3", code=2).stderr
    assert "or pass --accept-changes to resume with it" in stderr
    found = hybridize("build", recipe, "--replace", "--accept-changes", "--set", "train.lr=2e-3")
    record = json.loads((bench / "runs/x/training/training.json").read_text())
    (change,) = record["changes"]
    assert (change["step"], change["setting"], change["now"]) == (2, "train.optimizer.lr", 2e-3)
    assert f"from step 2 on, train.optimizer.lr was 0.002 instead of {change['before']}" in found.stdout
    hybridize("verify", "runs/x")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_a_build_saves_the_training_and_the_next_build_ends_with_the_same_bytes(bench, number, code):
    recipe = recipe_of(bench, train={"tokens": 40_000, "checkpoint_minutes": 60})
    hybridize("build", recipe, "--no-load", "--runs", "straight")
    command = [sys.executable, "-m", "hybridizer", "build", str(recipe), "--no-load"]
    log = bench / "runs/x/training/log.jsonl"
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (log.exists() and log.read_text()):
            pass
        process.send_signal(number)
        error = process.stderr.read()
    assert process.returncode == code, error
    assert f"stopped by {number.name}; the state is saved in " in error and "Re-run the same command" in error
    assert len(list((bench / "runs/x/training/checkpoints").iterdir())) == 1
    hybridize("build", recipe, "--no-load")
    built, straight = (bench / runs / "x/model/model.safetensors" for runs in ("runs", "straight"))
    assert hash_file(built) == hash_file(straight)
    assert (bench / "runs/x/training.svg").read_text().startswith("<?xml")


@pytest.mark.slow
def test_fewer_steps_than_were_taken_are_refused(bench):
    recipe = recipe_of(bench, train={"max_steps": 4})
    hybridize("build", recipe, "--no-load")
    stderr = hybridize("build", recipe, "--set", "train.max_steps=2", "--no-load", code=2).stderr
    assert "its newest checkpoint is at step 4, and `max_steps` is 2" in stderr
    hybridize("verify", "runs/x")


@pytest.mark.slow
def test_a_run_that_max_steps_ended_resumes_when_they_are_raised(bench):
    recipe = recipe_of(bench)
    hybridize("build", recipe, "--no-load")
    expected = hash_file(bench / "runs/x/model/model.safetensors")
    subprocess.run(["rm", "-r", bench / "runs"], check=True)
    hybridize("build", recipe, "--no-load", "--set", "train.max_steps=2")
    short = hash_file(bench / "runs/x/model/model.safetensors")
    again = hybridize("build", recipe, "--no-load", "--set", "train.max_steps=2")
    assert "model: unchanged" in again.stderr and hash_file(bench / "runs/x/model/model.safetensors") == short
    longer = hybridize("build", recipe, "--no-load", "--set", "train.max_steps=4")
    assert "its training stopped at step 2 by max_steps, which has changed" in longer.stderr
    hybridize("build", recipe, "--no-load")
    assert hash_file(bench / "runs/x/model/model.safetensors") == expected != short
    lines = (bench / "runs/x/training/log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(len(lines))) and len(lines) > 4
    hybridize("verify", "runs/x")


@pytest.mark.parametrize(
    ("record", "limits", "complete"),
    [
        ({"stopped_by": "tokens"}, {}, True),
        ({"stopped_by": "tokens"}, {"max_steps": 99, "max_minutes": 0.1}, True),
        ({"stopped_by": "steps"}, {"max_steps": 10}, True),
        ({"stopped_by": "steps"}, {"max_steps": 11}, False),
        ({"stopped_by": "steps"}, {}, False),
        ({"stopped_by": "steps"}, {"max_steps": 9}, False),  # the training refuses it
        ({"stopped_by": "minutes"}, {"max_minutes": 2}, True),
        ({"stopped_by": "minutes"}, {"max_minutes": 1}, True),
        ({"stopped_by": "minutes"}, {"max_minutes": 3}, False),
        ({"stopped_by": "minutes"}, {}, False),
        ({"stopped_by": "minutes"}, {"max_steps": 10}, True),
    ],
)
def test_a_training_is_complete_where_its_limits_let_it_go_no_further(record, limits, complete):
    assert is_complete({"steps": 10, "seconds": 121.0, **record}, train_section(**limits)) is complete


@pytest.mark.slow
def test_another_splice_does_not_take_the_place_of_what_was_trained_from(bench):
    recipe = recipe_of(bench)
    hybridize("build", recipe)
    before = (bench / "runs/x/scores.json").read_text()
    stderr = hybridize("build", recipe, "--set", "layout.boundary=1", "--replace", code=2).stderr
    assert "a training of another spliced model has checkpoints here" in stderr
    subprocess.run(["rm", "-r", bench / "runs/x/spliced"], check=True)
    hybridize("build", recipe)
    assert (bench / "runs/x/scores.json").read_text() == before


@pytest.mark.slow
def test_a_record_of_other_tensors_is_not_believed(bench):
    recipe = recipe_of(bench)
    hybridize("build", recipe, "--no-load")
    expected = hash_file(bench / "runs/x/model/model.safetensors")
    subprocess.run(["rm", "-r", bench / "runs/x/model"], check=True)
    path = bench / "runs/x/training/trained.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path)
    assert "train: unchanged" not in hybridize("build", recipe, "--no-load").stderr
    assert hash_file(bench / "runs/x/model/model.safetensors") == expected


def one_donor(bench, model_type, evaluate=None, **train):
    make_donor(bench / "m", model_type, seed=3)
    layout = {"host": "m", "deep": "m", "shallow": "m"}
    return recipe_of(bench, layout=layout, donors=("m",), train=train, evaluate=evaluate or {})


def rewrite(folder, change):
    tensors = change(load_file(folder / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.slow
def test_a_tied_head_that_is_stored_twice_trains_twice(bench):
    recipe = one_donor(bench, "gpt2", freeze="shallow", head="train")
    rewrite(bench / "m", lambda t: {**t, "lm_head.weight": t["transformer.wte.weight"].clone()})
    hybridize("build", recipe, "--no-load")
    built, donor = (load_file(bench / path / "model.safetensors") for path in ("runs/x/model", "m"))
    assert torch.equal(built["lm_head.weight"], built["transformer.wte.weight"])
    assert not torch.equal(built["lm_head.weight"], donor["lm_head.weight"])


@pytest.mark.slow
def test_names_without_the_models_prefix_come_back_as_they_were(bench):
    recipe = one_donor(bench, "gpt2")
    rewrite(bench / "m", lambda t: {name.removeprefix("transformer."): tensor for name, tensor in t.items()})
    hybridize("build", recipe, "--no-load")
    built, donor = (load_file(bench / path / "model.safetensors") for path in ("runs/x/model", "m"))
    moved = {name for name in built if not torch.equal(built[name], donor[name])}
    assert moved and all(name.startswith(("h.0.", "h.1.")) for name in moved)


@pytest.mark.slow
def test_weights_stored_in_another_precision_than_the_config_says_are_still_proved(bench):
    recipe = one_donor(bench, "llama")
    rewrite(bench / "m", lambda t: {name: tensor.bfloat16() for name, tensor in t.items()})
    assert proofs_of("build", recipe)["frozen"].endswith("20 of them as in their donors")


@pytest.mark.parametrize(
    ("train", "evaluate", "message"),
    [
        ({"lora": {"rank": 2}}, {}, "have no linear modules"),
        ({}, {"prompts": ["a", "the cat " * 300]}, "x.yaml:18: 2400 tokens; the model needs"),
        ({}, {"prompts": ["the cat " * 300]}, "tokens; the model needs at least one, and takes 512 with its answer."),
    ],
)
def test_what_a_model_cannot_do_is_said_before_the_first_step(bench, train, evaluate, message):
    recipe = one_donor(bench, "gpt2", evaluate, **train)
    assert message in hybridize("build", recipe, "--no-load", code=2).stderr
    assert not list((bench / "runs/x").glob("training/log.jsonl"))


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


@pytest.mark.slow
def test_two_builds_at_once_do_not_share_a_training(bench):
    recipe = recipe_of(bench, train={"tokens": 40_000})
    first = start(bench, recipe, "--no-load")
    while first.poll() is None and not (bench / "runs/x/training/log.jsonl").exists():
        time.sleep(0.01)
    assert "another run is writing this folder now" in hybridize("build", recipe, "--no-load", code=1).stderr
    assert first.communicate() and first.returncode == 0


@pytest.mark.slow
def test_a_damaged_record_of_a_training_is_refused(bench):
    recipe = recipe_of(bench)
    hybridize("build", recipe)
    subprocess.run(["rm", "-r", bench / "runs/x/model"], check=True)
    path = bench / "runs/x/training/training.json"
    record = json.loads(path.read_text())
    del record["steps"]
    path.write_text(json.dumps(record))
    assert "training.json: `steps`: Field required" in hybridize("build", recipe, code=2).stderr


def start(bench, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "hybridizer", "build", *map(str, arguments)], cwd=bench, **options,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_a_full_disk_stops_the_training_and_loses_nothing(bench):
    recipe = recipe_of(bench)
    limit = 700_000  # bytes per file: room for the spliced model, none for a checkpoint

    def shrink():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process = start(bench, recipe, "--no-load", preexec_fn=shrink)
    stderr = process.communicate()[1]
    assert process.returncode == 1 and "File too large" in stderr and "Free some space" in stderr, stderr
    assert not list((bench / "runs/x").rglob("*.partial")) and not (bench / "runs/x/model").exists()
    hybridize("build", recipe, "--no-load")


def test_a_disk_too_small_for_the_checkpoints_is_found_before_the_first_step(bench, monkeypatch):
    monkeypatch.setattr(publish.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 2_000_000))
    stderr = hybridize("build", recipe_of(bench), code=1).stderr
    assert "the output needs 37" in stderr and not (bench / "runs/x/training").exists(), stderr


@pytest.mark.slow
def test_a_build_that_is_killed_anywhere_ends_with_the_same_bytes(bench):
    train = {"tokens": 12_000, "checkpoint_minutes": 0.0}
    hybridize("build", recipe_of(bench, "whole", train=train), "--no-load")
    recipe = recipe_of(bench, "killed", train=train)
    generator, log = random.Random(int(os.environ.get("PYTEST_SEED", "7"))), bench / "runs/killed/training/log.jsonl"
    for _ in range(3):
        process = start(bench, recipe, "--no-load")
        steps = generator.randrange(1, 8) + (len(log.read_text().splitlines()) if log.exists() else 0)
        while process.poll() is None and (not log.exists() or len(log.read_text().splitlines()) < steps):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (bench / "runs/killed/model/manifest.json").exists() or process.returncode == 0
    stdout, stderr = start(bench, recipe, "--no-load").communicate()
    assert "is complete and verified" in stdout, stderr
    whole, killed = (load_file(bench / f"runs/{name}/model/model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sharding", "family"), [({}, "llama"), (FSDP2, "llama"), (FSDP2, "bamba")], ids=["ddp", "fsdp2", "fsdp2-hybrid"]
)
def test_two_processes_build_the_model_of_one(bench, sharding, family):
    make_donor(bench / "m", family, seed=3)
    model = {"layout": {"host": "m", "deep": "m", "shallow": "m"}, "donors": ("m",)}
    hybridize("build", recipe_of(bench, "one", **model), "--no-load")
    recipe = recipe_of(bench, "two", **model)
    # accelerate's launcher goes through torch's on GPUs, and through mpirun on CPUs.
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", **sharding,
    }  # fmt: skip
    command = [sys.executable, *launch, "-m", "hybridizer", "build", str(recipe), "--no-load"]
    done = subprocess.run(command, cwd=bench, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("is complete and verified") == 1, "only one process prints"
    assert done.stderr.count("modules that would mix the documents of a row") == (family == "bamba")
    one, two = (load_file(bench / f"runs/{name}/model/model.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=2e-4)  # Adam magnifies rounding of tiny gradients
    assert json.loads((bench / "runs/two/training/training.json").read_text())["num_processes"] == 2


def test_rows_that_the_processes_cannot_share_are_refused(bench, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    stderr = hybridize("build", recipe_of(bench), code=2).stderr
    assert "8 rows in a step cannot be shared evenly by 3 processes" in stderr and "x.yaml:" in stderr


def test_several_processes_without_training_are_refused(bench, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    recipe = write_recipe(Path("s.yaml"), donors={"a": "a"}, layout={"host": "a", "slices": [{"donor": "a"}]})
    assert "2 processes were started, and this recipe has no `train`" in hybridize("build", recipe, code=2).stderr


def test_check_finds_texts_without_a_document_and_names_what_is_there(bench):
    (bench / "chat.jsonl").write_text('{"messages": [{"role": "user", "content": "hi"}]}\n')
    data = [{"path": "text.jsonl", "field": "body"}, {"path": "chat.jsonl"}, {"path": "text.jsonl"}]
    found = hybridize("check", recipe_of(bench, train=TRAIN | {"data": data}), code=2).stderr
    assert re.search(r"x\.yaml:11: `text\.jsonl`: no usable document.*\n  Name one of the fields .*: text\.", found), (
        found
    )
    assert re.search(r"x\.yaml:\d+: `chat\.jsonl`: no usable document.*\n  These are chat records", found), found
    assert "2 problems" in found
