"""From a recipe with a `train` section to a trained, verified model folder, on tiny checkpoints."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from hybridizer.checkpoint.hashing import hash_file
from support.lines import hybridize, hybridize_json, make_donor
from support.train_bench import SHALLOW, make_bench, one_donor, proofs_of, recipe_of, trained_names


@pytest.fixture
def bench(bench):
    """The working folder, with two donors and a text."""
    return make_bench(bench)


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
def test_recurrent_layers_train_on_packed_rows(bench):
    make_donor(bench / "m", "mamba2", seed=3)
    layout = {"host": "m", "deep": "m", "shallow": "m"}
    stderr = hybridize("build", recipe_of(bench, layout=layout, donors=("m",))).stderr
    assert "modules that would mix the documents of a row and run on each separately: 4" in stderr
    hybridize("verify", "runs/x")


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
