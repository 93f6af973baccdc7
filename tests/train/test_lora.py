import pytest
import torch

from hybridizer.core.errors import InputError
from hybridizer.models.parts import find_parts
from hybridizer.recipe.models import Lora
from hybridizer.train.freeze import apply_freeze_, check_freeze, plan_freeze, plan_lora_, tensor_sha256
from hybridizer.train.lora import merge_lora_
from support.sections import train_section
from support.train_models import tiny_model
from support.train_runs import run_model

pytest.importorskip("peft")


def adapted(**overrides):
    model = tiny_model("llama", vocab_size=257, **overrides)
    parts = find_parts(model)
    plan = plan_freeze(model, parts, train_section(freeze="deep"), boundary=2)
    return model, parts, plan_lora_(model, parts, plan, Lora(rank=4, alpha=8))


def test_adapters_begin_with_the_numbers_of_their_seed_whatever_was_drawn_before():
    def first(seed):
        torch.rand(3)
        model = tiny_model("llama", vocab_size=257)
        parts = find_parts(model)
        frozen = plan_freeze(model, parts, train_section(freeze="deep"), boundary=2)
        plan_lora_(model, parts, frozen, Lora(rank=2), seed)
        return {name: p.detach().clone() for name, p in model.named_parameters() if ".lora_A." in name}

    one, again, other = first(1), first(1), first(2)
    assert one and all(torch.equal(one[name], again[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)


def test_only_adapters_on_the_trained_layers_train():
    model, _, plan = adapted()
    apply_freeze_(model, plan)
    check_freeze(model, plan)
    assert len(plan.trained) == 2 * 7 * 2  # two layers of seven linear modules, two factors each
    assert all(".lora_A." in name or ".lora_B." in name for name in plan.trained)
    assert set(plan.trained.values()) == {"layer 0", "layer 1"}


def test_layer_one_of_twelve_gets_adapters_and_ten_does_not():
    model = tiny_model("llama", num_hidden_layers=12, hidden_size=16, intermediate_size=16)
    parts = find_parts(model)
    plan = plan_freeze(model, parts, train_section(freeze=tuple(i for i in range(12) if i != 1)), boundary=6)
    assert set(plan_lora_(model, parts, plan, Lora(rank=2)).trained.values()) == {"layer 1"}


@pytest.mark.slow
def test_training_moves_the_merged_weights_of_the_trained_layers_only(tmp_path):
    original = {name: tensor_sha256(p) for name, p in tiny_model("llama", vocab_size=257).named_parameters()}
    model, parts, plan = adapted()
    result = run_model(tmp_path, model, parts, plan)
    ids = torch.arange(30)[None]
    before = model.eval()(input_ids=ids).logits
    merged = merge_lora_(model)
    torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=1e-4, atol=1e-5)
    after = {name: tensor_sha256(p) for name, p in model.named_parameters()}
    assert after.keys() == original.keys()
    assert {name for name in after if after[name] != original[name]} == set(merged)
    assert all(name.startswith(("model.layers.0.", "model.layers.1.")) for name in merged)
    assert result.last_loss < result.first_loss


def test_modules_that_peft_refuses_are_named():
    model = tiny_model("mamba2", vocab_size=257)
    parts = find_parts(model)
    plan = plan_freeze(model, parts, train_section(freeze="deep"), boundary=2)
    with pytest.raises(InputError, match="train.lora: peft refuses these modules: .*out_proj"):
        plan_lora_(model, parts, plan, Lora(rank=4))


def test_without_peft_the_message_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match="pip install peft"):
        adapted()
