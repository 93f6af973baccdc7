"""A native hybrid through the whole line: planned, built, trained on packed rows, traced, evaluated, verified."""

import json

import pytest

from support.lines import hybridize, hybridize_json, working_in, write_recipe
from support.workshop import make_workshop

TRAIN = {"data": [{"path": "text.jsonl"}], "tokens": 2000, "seq_len": 64, "lr": 1e-3, "heldout_ratio": 0.2}
SLICES = [{"donor": "a", "layers": 0}, {"donor": "a", "layers": 1, "mixer": {"kind": "mamba2"}}]
SLICES += [{"fresh": "mamba2", "zero_output": True}, {"donor": "a", "layers": "2..3"}]


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """The folder of a run whose new mixers and layer trained, everything else frozen."""
    folder = tmp_path_factory.mktemp("line")
    with working_in(folder):
        make_workshop(folder)
        write_recipe(
            folder / "x.yaml",
            donors={"a": "donors/instruct"},
            layout={"slices": SLICES},
            train={**TRAIN, "freeze": [0, 3, 4], "precision": "float32"},
            trace={"probes": "probes.jsonl", "num_resamples": 20},
            evaluate={"max_tokens": 400, "context": 64, "new_tokens": 4},
        )
        planned = hybridize("plan", "x.yaml").stdout
        built = hybridize("build", "x.yaml").stdout
        yield folder, planned, built


@pytest.mark.slow
def test_the_plan_prints_what_runs_the_model_before_it_is_built(line):
    folder, planned, _ = line
    assert "granitemoehybrid is chosen: it holds layers of llama beside mamba2." in planned
    for served in ("transformers: yes (5.23", "vLLM: yes (", "llama.cpp: with (`hybridize convert`"):
        assert f"served by {served}" in planned
    assert "left out of 'a': 4 tensors: replaced by mamba2" in planned
    assert "- vLLM: yes. GraniteMoeHybridForCausalLM" in (folder / "runs/x/model/README.md").read_text()


@pytest.mark.slow
def test_it_trains_with_documents_apart_and_keeps_what_is_frozen(line):
    folder, _, built = line
    assert "rows filled to" in built and "bits per byte" in built and "12 prompts before and after training" in built
    training = json.loads((folder / "runs/x/training/training.json").read_text())
    assert training["packing"] > 0.8 and training["last_loss"] < training["first_loss"]
    manifest = json.loads((folder / "runs/x/model/manifest.json").read_text())["training"]
    frozen = [name for name in manifest["frozen_sha256"] if ".layers." in name]
    assert {name.split(".")[2] for name in frozen} == {"0", "3", "4"}
    assert manifest["frozen_as_in_donors"] == len(manifest["frozen_sha256"])
    assert {name.split(".")[2] for name in manifest["trained"]} == {"1", "2"}


@pytest.mark.slow
@pytest.mark.usefixtures("line")
def test_verify_and_inspect_know_every_tensor():
    proofs = {proof["check"]: proof["found"] for proof in hybridize_json("verify", "runs/x")["proofs"]}
    assert proofs["made again"].startswith("3 tensors that are not copies")
    spliced = {proof["check"]: proof["found"] for proof in hybridize_json("verify", "runs/x/spliced")["proofs"]}
    assert spliced["made again"].startswith("24 tensors that are not copies")
    shown = hybridize("inspect", "runs/x", "--tensors").stdout
    assert "join of a:model.layers.0.mlp.gate_proj.weight + a:model.layers.0.mlp.up_proj.weight" in shown
    assert "model.layers.2.mamba.out_proj.weight  F32 [64, 128]  fresh (zero, seed 0), trained" in shown
    assert "fresh (granitemoehybrid, seed 0), trained" in shown


@pytest.mark.slow
def test_a_model_with_new_layers_alone_is_traced_itself_before_training(bench):
    make_workshop(bench)
    new = {"fresh": "mamba2", "zero_output": True}
    slices = [{"donor": "a", "layers": "0..1"}, new, {"donor": "a", "layers": "2..3"}]
    write_recipe(
        bench / "x.yaml",
        donors={"a": "donors/instruct"},
        layout={"slices": slices},
        train={**TRAIN, "max_steps": 1, "freeze": [0, 1, 3, 4], "precision": "float32"},
        trace={"probes": "probes.jsonl", "num_resamples": 20},
        evaluate={"max_tokens": 100, "context": 64, "new_tokens": 1},
    )
    built = hybridize("build", "x.yaml").stdout
    assert "12 prompts before and after training" in built and " 4  " in built.partition("layer    dJS")[2]
