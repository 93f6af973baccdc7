"""From a recipe to a verified model folder, on tiny checkpoints."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hybridizer.plan.stored import read_stored_plan
from hybridizer.splice import copy, executors
from support.lines import hybridize, hybridize_json, make_donor, make_donors, write_recipe


@pytest.fixture
def bench(bench):
    """Two tiny llamas, `a` and `b`, of four layers each, an own cache, and the working folder."""
    return make_donors(bench)


def recipe_of(bench, layout, name="x", donors=("a", "b"), **sections):
    return write_recipe(bench / f"{name}.yaml", donors={donor: donor for donor in donors}, layout=layout, **sections)


SLICES = [{"donor": "b", "layers": "2..3"}, {"donor": "a", "layers": [0, 0, 3]}, {"donor": "b", "layers": 0}]


def test_slices_in_any_order_with_repeats_copy_every_tensor_bit_for_bit(bench):
    recipe = recipe_of(bench, {"host": "a", "slices": SLICES})
    hybridize("build", recipe)
    built = load_file(bench / "runs/x/model/model.safetensors")
    donors = {name: load_file(bench / name / "model.safetensors") for name in "ab"}
    expected = [("b", 2), ("b", 3), ("a", 0), ("a", 0), ("a", 3), ("b", 0)]
    for name, tensor in built.items():
        donor, source = "a", name
        if name.startswith("model.layers."):
            layer = int(name.split(".")[2])
            donor = expected[layer][0]
            source = name.replace(f"layers.{layer}.", f"layers.{expected[layer][1]}.")
        assert torch.equal(tensor, donors[donor][source]), name
    assert json.loads((bench / "runs/x/model/config.json").read_text())["num_hidden_layers"] == 6


def test_the_dial_takes_the_deep_side_from_one_donor_and_the_shallow_from_the_other(bench):
    recipe = recipe_of(bench, {"host": "a", "deep": "a", "shallow": "b", "boundary": 0.25})
    plan = hybridize_json("plan", recipe)
    assert [row["sources"][0].partition("@")[0] for row in plan["layers"]] == ["b", "a", "a", "a"]
    plan = hybridize_json("plan", recipe, "--set", "layout.boundary=3")
    assert [row["sources"][0].split(" ")[1] for row in plan["layers"]] == ["0", "1", "2", "3"]


def test_the_plan_accounts_for_every_tensor_and_comes_back_from_its_file(bench):
    recipe = recipe_of(bench, {"host": "a", "slices": SLICES})
    hybridize("plan", recipe)
    plan = read_stored_plan(bench / "runs/x/plan.json").plan
    for donor in "ab":
        names = set(load_file(bench / donor / "model.safetensors"))
        used = {origin.tensor for tensor in plan.tensors for origin in tensor.source.origins if origin.donor == donor}
        assert used | set(plan.unused[donor]) == names and not used & set(plan.unused[donor])
    assert len({tensor.name for tensor in plan.tensors}) == len(plan.tensors)
    reasons = set(plan.unused["a"].values()) | set(plan.unused["b"].values())
    assert reasons == {
        "layer 1 is in no slice",
        "layer 2 is in no slice",
        "outside the layers, where the host 'a' decides",
    }


def test_the_plan_is_shown_with_what_it_leaves_out(bench):
    shown = hybridize("plan", recipe_of(bench, {"host": "a", "slices": SLICES})).stdout
    assert "left out of 'a': layers 1..2 (18 tensors): in no slice" in shown
    assert "left out of 'b': 3 tensors: outside the layers, where the host 'a' decides" in shown
    assert "b@" in shown and "full_attention" in shown


def test_the_same_recipe_and_donors_plan_the_same_hash_wherever_they_lie(bench, tmp_path_factory):
    recipe = recipe_of(bench, {"host": "a", "slices": SLICES})
    first = hybridize_json("plan", recipe)["hash"]
    elsewhere = tmp_path_factory.mktemp("else where")
    subprocess.run(["cp", "-r", bench / "a", bench / "b", recipe, elsewhere], check=True)
    assert hybridize_json("plan", elsewhere / "x.yaml")["hash"] == first
    assert hybridize_json("plan", recipe, "--set", "layout.host=b")["hash"] != first


def test_an_identity_splice_is_proved_against_its_donor(bench):
    recipe = recipe_of(bench, {"host": "a", "deep": "a", "shallow": "a"}, donors=("a",))
    proofs = {proof["check"]: proof["found"] for proof in hybridize_json("build", recipe)["proofs"]}
    assert proofs["identity"] == "logits equal those of 'a' bit for bit"
    assert proofs["files"].endswith("hashed when they were written")
    again = {proof["check"]: proof["found"] for proof in hybridize_json("verify", "runs/x")["proofs"]}
    assert again["files"].endswith("every sha256 agrees with the manifest")
    assert again.pop("origins") == "39 copied tensors equal their donors' byte for byte"
    assert again.pop("plan").startswith("manifest and plan.json agree: sha256:")
    assert {**again, "files": ""} == {**proofs, "files": ""}


def test_sharded_output_loads_the_same_as_a_single_file(bench):
    layout = {"host": "a", "slices": SLICES}
    hybridize("build", recipe_of(bench, layout))
    hybridize("build", recipe_of(bench, layout, name="y", output={"max_shard_bytes": "200KB"}))
    assert len(list((bench / "runs/y/model").glob("model-*.safetensors"))) > 1
    ids = torch.arange(1, 20)[None]
    one, many = (AutoModelForCausalLM.from_pretrained(bench / f"runs/{run}/model") for run in "xy")
    assert torch.equal(one(ids).logits, many(ids).logits)


def test_conversion_rounds_every_weight_and_says_so_in_the_config(bench):
    hybridize("build", recipe_of(bench, {"host": "a", "slices": SLICES}, output={"dtype": "bfloat16"}))
    built = load_file(bench / "runs/x/model/model.safetensors")
    donor = load_file(bench / "b/model.safetensors")
    name = "self_attn.q_proj.weight"
    assert torch.equal(built[f"model.layers.0.{name}"], donor[f"model.layers.2.{name}"].to(torch.bfloat16))
    model = AutoModelForCausalLM.from_pretrained(bench / "runs/x/model", dtype="auto")
    assert model.dtype is torch.bfloat16


def test_a_blended_slice_is_what_mergekit_computes(bench):
    blend = {
        "method": "slerp",
        "base": "a",
        "parameters": {"t": 0.5},
        "sources": [{"donor": "a", "layers": "1..2"}, {"donor": "b", "layers": "2..3"}],
    }
    slices = [{"donor": "a", "layers": 0}, {"blend": blend}, {"donor": "a", "layers": 3}]
    hybridize("build", recipe_of(bench, {"host": "a", "slices": slices}))
    built = load_file(bench / "runs/x/model/model.safetensors")
    a, b = (load_file(bench / name / "model.safetensors") for name in "ab")
    from mergekit.merge_methods import merge_tensors

    for suffix in ("mlp.up_proj.weight", "input_layernorm.weight"):
        pair = [a[f"model.layers.2.{suffix}"], b[f"model.layers.3.{suffix}"]]
        expected = merge_tensors(pair, "slerp", parameters={"t": 0.5}, base_index=0)
        assert torch.equal(built[f"model.layers.2.{suffix}"], expected)


def test_a_second_build_keeps_the_model_and_says_so(bench):
    recipe = recipe_of(bench, {"host": "a", "slices": SLICES})
    hybridize("build", recipe)
    before = (bench / "runs/x/model/model.safetensors").stat()
    result = hybridize("build", recipe)
    assert "model: unchanged" in result.stderr
    after = (bench / "runs/x/model/model.safetensors").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_model_of_another_plan_is_not_replaced_unasked(bench):
    recipe = recipe_of(bench, {"host": "a", "slices": SLICES})
    hybridize("build", recipe)
    result = hybridize("build", recipe, "--set", "layout.host=b", code=1)
    assert "a model of another plan is here" in result.stderr and "--replace" in result.stderr
    hybridize("verify", "runs/x")
    hybridize("build", recipe, "--set", "layout.host=b", "--replace")
    assert hybridize_json("inspect", "runs/x")["host"] == "b"
    assert sorted(path.name for path in (bench / "runs/x").iterdir()) == [
        "donors.json", "manifest.json", "model", "plan.json", "recipe.resolved.yaml",
    ]  # fmt: skip


def test_the_resolved_recipe_builds_the_same_plan_from_anywhere(bench):
    recipe = recipe_of(bench, {"host": "a", "slices": SLICES})
    first = hybridize_json("plan", recipe)["hash"]
    assert hybridize_json("plan", bench / "runs/x/recipe.resolved.yaml")["hash"] == first


def test_a_donor_that_changed_under_a_pinned_recipe_is_refused(bench):
    recipe = recipe_of(bench, {"host": "a", "slices": SLICES})
    hybridize("plan", recipe)
    make_donor(bench / "b", seed=3)
    stderr = hybridize("plan", bench / "runs/x/recipe.resolved.yaml", code=2).stderr
    assert "donor 'b' is pinned to sha256:" in stderr and "recipe.resolved.yaml:" in stderr


def test_a_donor_that_is_rewritten_during_the_copy_is_noticed(bench, monkeypatch):
    recipe = recipe_of(bench, {"host": "a", "slices": SLICES})

    def splice_slowly(*arguments):
        written = copy.splice(*arguments)
        data = bytearray((bench / "b/model.safetensors").read_bytes())
        data[-1] ^= 1
        (bench / "b/model.safetensors").write_bytes(data)
        return written

    monkeypatch.setattr(executors, "EXECUTORS", {"copy": splice_slowly})
    assert "donor 'b' was changed while" in hybridize("build", recipe, code=1).stderr
    assert not (bench / "runs/x/model").exists()


def test_a_model_folder_travels_alone_and_every_file_may_be_read(bench):
    hybridize("build", recipe_of(bench, {"host": "a", "slices": SLICES}))
    moved = bench / "moved model"
    (bench / "runs/x/model").rename(moved)
    assert {oct(path.stat().st_mode & 0o777) for path in moved.rglob("*") if path.is_file()} == {"0o644"}
    hybridize("verify", moved)
    card = (moved / "README.md").read_text()
    assert "| 0..1 | `b`: 2..3 |" in card and "library_name: transformers" in card


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (
            lambda m: (m / "model.safetensors").write_bytes((m / "model.safetensors").read_bytes()[:-1] + b"\x01"),
            "hashes to",
        ),
        (lambda m: (m / "config.json").unlink(), "missing: config.json"),
        (lambda m: (m / "model-00001-of-00002.safetensors").touch(), "not in the manifest"),
        (lambda m: (m / "manifest.json").unlink(), "no manifest.json"),
        (lambda m: (m / "manifest.json").write_text("{}"), "no 'hybridizer.manifest/2' in it"),
    ],
)
def test_verify_finds_a_model_that_was_touched(bench, damage, says):
    hybridize("build", recipe_of(bench, {"host": "a", "slices": SLICES}), "--no-load")
    damage(bench / "runs/x/model")
    assert says in hybridize("verify", "runs/x/model", "--no-load", code=1).stderr


@pytest.mark.slow
def test_a_killed_build_leaves_no_model_and_the_next_one_succeeds(bench):
    recipe = recipe_of(bench, {"host": "a", "slices": [{"donor": "a"}] * 60})
    command = [sys.executable, "-m", "hybridizer", "build", str(recipe), "--no-load"]
    for delay in (0.3, 0.4, 0.5, 0.6, 0.7):
        process = subprocess.Popen(command, cwd=bench, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        model = bench / "runs/x/model"
        if model.exists():
            hybridize("verify", model, "--no-load")
    hybridize("build", recipe, "--no-load")
    hybridize("verify", "runs/x", "--no-load")
    assert not [name for name in os.listdir(bench / "runs/x") if name.endswith(".partial")]


def test_check_and_plan_warn_of_two_layers_that_look_like_a_range(bench):
    recipe = write_recipe(bench / "p.yaml", donors={"a": "a"}, layout={"slices": [{"donor": "a", "layers": [0, 3]}]})
    for command in ("check", "plan"):
        found = hybridize(command, recipe)
        assert "two layers, 0 and 3; write 0..2 for a range" in " ".join((found.stdout + found.stderr).split())


def test_check_reports_every_problem_with_its_line(bench):
    Path("bad.yaml").write_text(
        "donors:\n  a: a\n  b: ./nowhere\nlayout:\n  host: a\n  slices:\n"
        "    - {donor: a, layers: 2..9}\n    - {donor: a, layers: 7}\n"
    )
    result = hybridize("check", "bad.yaml", code=2)
    assert "bad.yaml:3: './nowhere' is not there" in result.stderr
    result = hybridize("check", "bad.yaml", "--set", "donors.b=b", code=2)
    assert "bad.yaml:7: layers 2..9 requested of donor 'a', which has 4 layers (0..3)." in result.stderr
    assert "bad.yaml:8: layers 7 requested of donor 'a', which has 4 layers (0..3)." in result.stderr


def test_init_writes_a_recipe_that_checks_once_its_donors_exist(bench):
    hybridize("init", "mine.yaml")
    assert "this file exists" in hybridize("init", "mine.yaml", code=1).stderr
    settings = ["--set", "donors.instruct.source=a", "--set", "donors.domain.source=b"]
    assert "no problem found; 4 layers" in hybridize("check", "mine.yaml", *settings).stdout


@pytest.mark.parametrize("limit", [[0.0, math.inf], [0.0, {"__float__": "Infinity"}]], ids=["old", "new"])
def test_a_config_with_an_infinity_keeps_its_spelling(bench, limit):
    make_donor(bench / "n", "nemotron_h")
    path = bench / "n/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "time_step_limit": limit}))
    recipe = recipe_of(bench, {"deep": "n", "shallow": "n"}, donors=("n",))
    hybridize("build", recipe, "--no-load")
    built = json.loads((bench / "runs/x/model/config.json").read_text())
    assert built["time_step_limit"] == limit
    assert read_stored_plan(bench / "runs/x/plan.json").plan.config["time_step_limit"] == limit
