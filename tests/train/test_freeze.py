from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hybridizer.core.errors import RecipeError, RunError
from hybridizer.train.freeze import FreezeProof, apply_freeze_, check_freeze, plan_freeze, tensor_sha256
from support.sections import train_section
from support.train_models import llama_parts, tiny_model


@pytest.fixture
def model():
    return tiny_model(tie_word_embeddings=False)


def freeze(model, layers="deep", **parts):
    plan = plan_freeze(model, llama_parts(model), train_section(freeze=layers, **parts), boundary=2)
    apply_freeze_(model, plan)
    return plan


def take_step(model, lr=1e-3, tokens=None):
    """One AdamW step on what trains; the names that a gradient reached."""
    tokens = torch.arange(32)[None] if tokens is None else tokens
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    model(input_ids=tokens, labels=tokens).loss.backward()
    reached = {name for name, p in named.items() if p.grad is not None and p.grad.any()}
    torch.optim.AdamW(named.values(), lr=lr).step()
    return reached


class Proof:
    """A proof bound to a model whose parameters are their own masters."""

    def __init__(self, model, plan):
        self._parameters, self._plan = dict(model.named_parameters()), plan
        self._proof = FreezeProof(plan, self._parameters)
        self._proof.begin(self._masters(), self._parameters)

    def _masters(self):
        return {name: self._parameters[name] for name in self._plan.trained}

    def check_first_step(self, reached):
        return self._proof.check_first_step(self._masters(), self._parameters, reached)

    def check_end(self):
        self._proof.check_end(self._parameters)


def test_freezing_deep_splits_every_tensor_by_its_module(model):
    plan = freeze(model)
    assert set(plan.trained) | set(plan.frozen) == {name for name, _ in model.named_parameters()}
    assert set(plan.trained.values()) == {"embedding", "layer 0", "layer 1"}
    assert set(plan.frozen.values()) == {"layer 2", "layer 3", "final norm", "head"}
    assert [n for n, p in model.named_parameters() if p.requires_grad] == list(plan.trained)
    assert plan.side("model.layers.1.mlp.up_proj.weight") == "shallow"
    assert plan.side("lm_head.weight") == "deep"


def test_layer_one_does_not_match_layer_ten():
    model = tiny_model(num_hidden_layers=12, hidden_size=16, intermediate_size=16)
    plan = freeze(model, (1,))
    assert set(plan.frozen.values()) == {"layer 1"}


def test_tied_embeddings_are_one_tensor_frozen_with_the_deep_side():
    model = tiny_model(tie_word_embeddings=True)
    plan = freeze(model)
    assert "model.embed_tokens.weight" in plan.frozen
    assert "lm_head.weight" not in {**plan.trained, **plan.frozen}
    assert "one tied tensor" in plan.notes[0]
    assert "model.embed_tokens.weight" in freeze(model, embedding="train").trained


def test_a_tensor_shared_by_a_frozen_and_a_trained_layer_is_frozen_and_listed(model):
    model.model.layers[3].mlp = model.model.layers[0].mlp
    plan = freeze(model)
    assert plan.frozen["model.layers.0.mlp.up_proj.weight"] == "layer 3"
    assert any("shared by layer 0, layer 3" in note for note in plan.notes)


def test_tensors_outside_every_part_are_listed():
    model = tiny_model("gpt2")
    body = model.transformer
    parts = SimpleNamespace(embedding=body.wte, layers=body.h, final_norm=body.ln_f, head=model.lm_head)
    plan = plan_freeze(model, parts, train_section(freeze="deep", embedding="train"), boundary=2)
    assert "transformer.wpe.weight" in plan.frozen
    assert "frozen, because in no part: transformer.wpe.weight" in plan.notes


def test_a_named_part_that_the_model_lacks_is_refused(model):
    parts = llama_parts(model)
    parts.final_norm = None
    with pytest.raises(RecipeError, match="has no such tensor"):
        plan_freeze(model, parts, train_section(final_norm="train"), boundary=2)


def test_after_one_step_every_trained_tensor_moved_and_no_frozen_one(model):
    plan = freeze(model)
    before = {name: tensor_sha256(p) for name, p in model.named_parameters()}
    proof = Proof(model, plan)
    assert proof.check_first_step(take_step(model)) == ()
    after = {name: tensor_sha256(p) for name, p in model.named_parameters()}
    assert {name for name in before if before[name] != after[name]} == set(plan.trained)
    proof.check_end()


def test_reregistering_a_frozen_tensor_makes_it_trainable_and_is_caught(model):
    plan = freeze(model)
    mlp = model.model.layers[3].mlp
    mlp.up_proj.weight = nn.Parameter(mlp.up_proj.weight.data)  # what a careless wrapper does
    with pytest.raises(RunError, match=r"trainable again: model\.layers\.3\.mlp\.up_proj\.weight"):
        check_freeze(model, plan)


def test_a_reregistered_tensor_that_trains_is_caught_by_its_bytes(model):
    plan = freeze(model)
    proof = Proof(model, plan)
    model.model.layers[3].mlp.up_proj.weight.requires_grad_(True)
    with pytest.raises(RunError, match=r"frozen tensors changed: model\.layers\.3\.mlp\.up_proj\.weight"):
        proof.check_first_step(take_step(model))


def test_one_changed_bit_in_a_frozen_tensor_fails_the_end_check(model):
    plan = freeze(model)
    proof = Proof(model, plan)
    proof.check_end()
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight.view(torch.int32)[5, 7] ^= 1
    with pytest.raises(RunError, match=r"end of training: frozen tensors changed: .*layers\.2\.mlp\.down_proj\.weight"):
        proof.check_end()


def test_a_step_too_small_to_move_a_weight_is_an_error(model):
    plan = freeze(model)
    proof = Proof(model, plan)
    with pytest.raises(RunError, match="had a gradient and did not change"):
        proof.check_first_step(take_step(model, lr=1e-30))


def test_a_layer_that_no_gradient_reaches_is_an_error(model):
    plan = freeze(model)
    proof = Proof(model, plan)
    model.model.layers[0].register_forward_hook(lambda module, inputs, output: output.detach())
    with pytest.raises(RunError, match="no gradient reached embedding, layer 0"):
        proof.check_first_step(take_step(model))


def test_a_tensor_without_a_gradient_in_a_live_layer_is_reported(model):
    plan = freeze(model)
    proof = Proof(model, plan)
    model.model.layers[1].mlp.up_proj.weight.register_hook(torch.zeros_like)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    tokens = torch.arange(32)[None]
    model(input_ids=tokens, labels=tokens).loss.backward()
    reached = {name for name, p in named.items() if p.grad is not None and p.grad.any()}
    torch.optim.SGD(named.values(), lr=1.0).step()
    assert proof.check_first_step(reached) == ("model.layers.1.mlp.up_proj.weight",)


def test_a_plan_for_another_model_is_refused(model):
    plan = freeze(model)
    with pytest.raises(RunError, match=r"missing: lm_head\.weight"):
        check_freeze(tiny_model(tie_word_embeddings=True), plan)


def test_bytes_of_a_bfloat16_tensor_hash_in_their_own_precision():
    import hashlib

    tensor = torch.tensor([1.0, -2.0], dtype=torch.bfloat16)
    assert tensor_sha256(tensor) == "sha256:" + hashlib.sha256(b"\x80\x3f\x00\xc0").hexdigest()
