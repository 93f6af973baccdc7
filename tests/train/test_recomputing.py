import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from plan.test_cost import plan_of
from safetensors.torch import load_file

from hybridizer.models.parts import find_parts
from hybridizer.plan.cost import estimate_cost, recomputed_layers
from hybridizer.train import prepare as prepare_module
from hybridizer.train.folder import read_log
from hybridizer.train.freeze import plan_freeze
from hybridizer.train.timing import expect_time
from support.lines import hybridize, hybridize_json, make_donor, write_recipe
from support.sections import train_section
from support.shapes import shape_of
from support.train_models import tiny_model
from support.train_runs import SETTINGS, bytes_of, run_model

TRAIN = {
    "data": [{"path": "text.jsonl"}], "tokens": 2000, "max_steps": 3, "seq_len": 64, "global_batch_size": 4,
    "lr": 3e-3, "heldout_ratio": 0.1, "precision": "float32", "freeze": "deep",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("freeze", ["deep", "shallow"])
def test_losses_and_weights_are_the_same_bits_whatever_is_recomputed(tmp_path, freeze, precision):
    found = {}
    for layers in ((), (0,), (1, 3), (0, 1, 2, 3)):
        model = tiny_model("llama", vocab_size=257)
        parts = find_parts(model.eval())
        plan = plan_freeze(model, parts, train_section(freeze=freeze), boundary=2)
        folder = tmp_path / ("layers" + "".join(map(str, layers)))
        settings = replace(SETTINGS, precision=precision, max_steps=4)
        run_model(folder, model, parts, plan, settings, recomputed_layers=layers)
        found[layers] = [line["loss"] for line in read_log(folder)], bytes_of(model)
    assert all(other == found[()] for other in found.values())
    assert len(found[()][0]) == 4


def test_a_run_recomputes_the_layers_of_the_plan():
    model = tiny_model("llama")
    parts = find_parts(model.eval())
    shape = shape_of(parts, attention_width=64)
    section = train_section(freeze="deep", precision="float32", seq_len=512, global_batch_size=512)
    choice = plan_freeze(model, parts, section, boundary=2).choice
    plan = plan_of("llama")
    peak = estimate_cost(plan, section, 2, "cpu").asked.peak_bytes
    for budget in (peak, int(0.8 * peak), int(0.6 * peak)):
        limited = replace(section, gradient_checkpointing=budget)
        planned = estimate_cost(plan, limited, 2, "cpu")
        assert planned.asked.recomputed_layers == recomputed_layers(shape, limited, choice, "cpu")
        assert planned.asked.peak_bytes <= budget
        assert f"{len(planned.asked.recomputed_layers)} of 4 layers are recomputed" in planned.notes[-1]


@pytest.mark.slow
def test_the_measured_peak_falls_with_the_budget():
    plan = plan_of("llama", hidden_size=256, intermediate_size=1024, num_hidden_layers=12, tie_word_embeddings=True)
    section = train_section(freeze="deep", precision="float32", seq_len=512, global_batch_size=4)
    whole = expect_time(plan, section, 6, "cpu", num_steps=1)
    peaks, counts = [whole.measured_peak_bytes], [0]
    for share in (0.93, 0.85):
        limited = replace(section, gradient_checkpointing=int(share * whole.estimated_peak_bytes))
        counts.append(len(estimate_cost(plan, limited, 6, "cpu").asked.recomputed_layers))
        peaks.append(expect_time(plan, limited, 6, "cpu", num_steps=1).measured_peak_bytes)
        assert peaks[-1] <= 1.15 * limited.gradient_checkpointing  # as the estimate
    assert counts == sorted(set(counts)) and counts[-1] < 12
    assert peaks == sorted(peaks, reverse=True)


@pytest.mark.slow
def test_a_build_recomputes_what_its_plan_says_and_trains_the_same_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_donor(Path("a"))
    Path("text.jsonl").write_text("\n".join(json.dumps({"text": f"document {i} " + "the cat " * i}) for i in range(40)))
    seen, plain = [], prepare_module.recomputing
    monkeypatch.setattr(prepare_module, "recomputing", lambda layers: seen.append(len(layers)) or plain(layers))
    models = []
    for name, setting in {"whole": False, "tight": "1B"}.items():
        train = {**TRAIN, "gradient_checkpointing": setting}
        layout = {"host": "a", "deep": "a", "shallow": "a", "boundary": 0.5}
        recipe = write_recipe(Path(f"{name}.yaml"), donors={"a": "a"}, layout=layout, train=train)
        cost = hybridize_json("plan", recipe)["cost"]
        assert bool(cost["asked"]["recomputed_layers"]) == bool(setting)
        assert any("cannot be reached" in note for note in cost["notes"]) == bool(setting)
        hybridize("build", recipe)
        models.append(load_file(Path("runs") / name / "model" / "model.safetensors"))
    assert seen == [len(cost["asked"]["recomputed_layers"])]
    assert models[0].keys() == models[1].keys()
    assert all(torch.equal(tensor, models[1][key]) for key, tensor in models[0].items())
