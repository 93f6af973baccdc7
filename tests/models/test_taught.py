"""Objectives with a teacher on whole models, against the same loss of the models' own logits and hidden states."""

import pytest
import torch
from torch.nn import functional

from hybridizer.core.errors import InputError
from hybridizer.models.distill import Divergence
from hybridizer.models.loss import IGNORED
from hybridizer.models.objective import CausalLMLoss, Student, predicted_places
from hybridizer.models.parts import find_parts
from hybridizer.models.taught import AlignLoss, DistillLoss, state_errors
from support.train_models import tiny_model

CHUNK = 4 * 256 * 8
FAMILIES = {"llama": {}, "gemma2": {}, "granite": {"logits_scaling": 2.0}}


def pair(model_type="llama", **overrides):
    student, teacher = (tiny_model(model_type, seed, **overrides).eval() for seed in (0, 1))
    return student.requires_grad_(True), teacher.requires_grad_(False)


def batch():
    ids = torch.randint(3, 200, (2, 24), generator=torch.Generator().manual_seed(1))
    targets = torch.cat([ids[:, 1:], torch.full((2, 1), IGNORED)], dim=1)
    targets[1, 10:] = IGNORED  # padding
    return ids, torch.arange(24).expand(2, -1), targets, (torch.arange(48) % 3).view(2, 24)


def behind(teacher):
    return CausalLMLoss(teacher, find_parts(teacher), CHUNK)


def distill(student, teacher, divergence):
    return DistillLoss(Student(student, find_parts(student), 3, CHUNK), behind(teacher), divergence)


def align(student, teacher, pairs, kind="mse", weight=1.0):
    return AlignLoss(Student(student, find_parts(student), 3, CHUNK), behind(teacher), pairs, kind, weight)


def check_gradients(found, expected, model):
    named = list(model.parameters())
    grads = (torch.autograd.grad(loss, named, allow_unused=True) for loss in (found, expected))
    for parameter, our, their in zip(named, *grads, strict=True):
        # float32 sums in another order; a part that is not reached has no gradient, or zeros
        ours, theirs = (torch.zeros_like(parameter) if grad is None else grad for grad in (our, their))
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("divergence", [Divergence(), Divergence("reverse", 2.0, 0.4)], ids=str)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_distillation_is_that_of_the_models_own_full_logits(model_type, divergence, padded):
    student, teacher = pair(model_type, **FAMILIES[model_type])
    ids, positions, targets, sources = batch()
    places = predicted_places(targets) if padded else None
    loss, sums = distill(student, teacher, divergence)(ids, positions, targets, sources, places)
    ours, theirs = (
        model(input_ids=ids, position_ids=positions, use_cache=False).logits.flatten(0, 1)
        for model in (student, teacher)
    )
    flat, heat, weight = targets.flatten(), divergence.temperature, divergence.weight
    logs = [functional.log_softmax(logits / heat, -1) for logits in (ours, theirs)]
    logs = logs if divergence.direction == "forward" else logs[::-1]
    kl = functional.kl_div(*logs, log_target=True, reduction="none").sum(-1)[flat != IGNORED].sum()
    next_token = functional.cross_entropy(ours, flat, ignore_index=IGNORED, reduction="none")
    expected = weight * heat**2 * kl + (1 - weight) * next_token.sum()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    by_source = [next_token[sources.flatten() == source].sum() for source in range(3)]
    torch.testing.assert_close(sums, torch.stack([*by_source, next_token.sum(), kl]).detach(), rtol=1e-5, atol=1e-4)
    check_gradients(loss, expected, student)


@pytest.mark.parametrize("weight", [1.0, 0.3])
@pytest.mark.parametrize("kind", ["mse", "cosine"])
def test_alignment_is_that_of_the_models_own_hidden_states(kind, weight):
    student, teacher = pair()
    ids, positions, targets, sources = batch()
    loss, sums = align(student, teacher, [(0, 1), (1, 1)], kind, weight)(ids, positions, targets, sources)
    outputs = [
        model(input_ids=ids, position_ids=positions, use_cache=False, output_hidden_states=True)
        for model in (student, teacher)
    ]
    counted = (targets != IGNORED).flatten()
    error = 0
    for ours, theirs in [(0, 1), (1, 1)]:
        a = outputs[0].hidden_states[ours + 1].flatten(0, 1)[counted]
        b = outputs[1].hidden_states[theirs + 1].flatten(0, 1)[counted]
        if kind == "mse":
            error = error + (((a - b) ** 2).mean(-1) / (b**2).mean(-1)).sum() / 2
        else:
            error = error + (1 - (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))).sum() / 2
    next_token = functional.cross_entropy(
        outputs[0].logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    expected = weight * error + (1 - weight) * next_token
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    terms = [error] if weight == 1 else [next_token, error]
    torch.testing.assert_close(sums[3:], torch.stack(terms).detach(), rtol=1e-5, atol=0)
    assert sums[:3].sum().item() == pytest.approx(terms[0].item(), rel=1e-5)
    check_gradients(loss, expected, student)


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_alignment_calls_no_layer_behind_its_last_state_and_the_teacher_none_behind_its_own(weight):
    student, teacher = pair()
    loss = align(student, teacher, [(1, 2)], weight=weight)
    called = {"student": [], "teacher": []}
    for name, model in (("student", student), ("teacher", teacher)):
        for number, layer in enumerate(model.model.layers):
            layer.register_forward_hook(lambda *_, name=name, number=number: called[name].append(number))
    loss(*batch())[0].backward()
    assert called["teacher"] == [0, 1, 2]
    assert called["student"] == ([0, 1] if weight == 1 else [0, 1, 2, 3])


def test_the_teacher_is_no_part_of_the_loss_as_a_module():
    student, teacher = pair()
    loss = distill(student, teacher, Divergence())
    before = [parameter.clone() for parameter in teacher.parameters()]
    loss.train()
    loss(*batch())[0].backward()
    assert not teacher.training and {id(p) for p in loss.parameters()} == {id(p) for p in student.parameters()}
    assert all(p.grad is None and torch.equal(p, b) for p, b in zip(teacher.parameters(), before, strict=True))


def test_teachers_of_another_shape_are_refused():
    student, _ = pair()
    with pytest.raises(InputError, match="gives 300 logits per token, the student 256"):
        distill(student, tiny_model("llama", 1, vocab_size=300).eval(), Divergence())
    with pytest.raises(InputError, match="the student's states are"):
        state_errors(torch.ones(3, 4), torch.ones(3, 5), "mse")
