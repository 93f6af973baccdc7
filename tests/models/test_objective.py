import dataclasses

import pytest
import torch
from torch.nn import functional

from hybridizer.core.errors import InputError
from hybridizer.models.loss import IGNORED
from hybridizer.models.objective import CausalLMLoss, LossBySource, Student
from hybridizer.models.parts import find_parts, run_model
from support.train_models import tiny_model

CAPPED = {"gemma2": {}, "granite": {"logits_scaling": 2.0}, "cohere2": {}, "falcon_h1": {"lm_head_multiplier": 0.5}}


def objective_of(model_type, **overrides):
    model = tiny_model(model_type, **overrides).eval()
    return CausalLMLoss(model, find_parts(model), chunk_bytes=4 * 256 * 8)


def batch(rows=2, tokens=24):
    ids = torch.randint(3, 200, (rows, tokens), generator=torch.Generator().manual_seed(1))
    targets = torch.cat([ids[:, 1:], torch.full((rows, 1), IGNORED)], dim=1)
    return ids, torch.arange(tokens).expand(rows, -1), targets


@pytest.mark.parametrize("model_type", ["llama", "gpt2", *sorted(CAPPED), "mamba2", "qwen3_next"])
def test_the_loss_and_its_gradients_are_the_models_own(model_type):
    objective = objective_of(model_type, **CAPPED.get(model_type, {}))
    ids, positions, targets = batch()
    model = objective.model.requires_grad_(True)
    loss = objective(ids, positions, targets)
    logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    expected = functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    named = [p for p in model.parameters() if p.requires_grad]
    ours = torch.autograd.grad(loss, named, allow_unused=True)
    theirs = torch.autograd.grad(expected, named, allow_unused=True)
    for our, their in zip(ours, theirs, strict=True):
        if their is not None:
            # float32 sums of some thousand terms in another order
            torch.testing.assert_close(our, their, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_the_sums_of_sources_are_the_losses_of_their_tokens_alone(model_type, padded):
    objective = objective_of(model_type)
    ids, positions, targets = batch()
    if padded:
        targets[:, 12:] = IGNORED
    sources = (torch.arange(ids.numel()) % 3).view(ids.shape)
    by_source = LossBySource(Student(objective.model, find_parts(objective.model), 4, 4 * 256 * 8))
    total, sums = by_source(ids, positions, targets, sources)
    assert torch.equal(total, objective(ids, positions, targets))
    assert not sums.requires_grad and sums[3] == 0
    alone = [objective(ids, positions, targets.where(sources == source, IGNORED)).detach() for source in range(3)]
    torch.testing.assert_close(sums[:3], torch.stack(alone), rtol=1e-5, atol=0)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", *sorted(CAPPED), "mamba2", "rwkv", "bloom"])
def test_the_losses_of_single_tokens_are_the_models_own(model_type):
    objective = objective_of(model_type, **CAPPED.get(model_type, {}))
    ids, _, _ = batch()
    found = objective.token_losses(ids)
    logits = run_model(objective.model, ids)[:, :-1].float()
    expected = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view_as(found)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not found.requires_grad


def test_only_families_whose_logits_are_more_than_their_head_take_the_slow_path():
    assert objective_of("llama").bare_head
    for model_type, overrides in CAPPED.items():
        assert not objective_of(model_type, **overrides).bare_head, model_type


def test_the_full_logits_never_exist():
    objective = objective_of("gemma2")
    seen = []
    objective._parts.head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[:-1].numel()))
    objective(*batch())
    assert max(seen) <= 8


def test_padding_is_left_out_without_changing_the_loss():
    objective = objective_of("llama")
    ids, positions, targets = batch()
    alone = objective(ids[:1], positions[:1], targets[:1])
    targets = targets.clone()
    targets[1] = IGNORED
    torch.testing.assert_close(objective(ids, positions, targets), alone, rtol=1e-6, atol=0)


def test_a_model_without_a_head_that_has_weights_is_refused():
    model = tiny_model("llama").eval()
    for head in (None, torch.nn.Identity()):
        with pytest.raises(InputError, match="not a module with weights of its own"):
            CausalLMLoss(model, dataclasses.replace(find_parts(model), head=head))
