"""Whole training runs with a teacher: what they log, that they resume, and what they leave alone."""

from dataclasses import replace

import pytest
import torch

from hybridizer.core.errors import InputError, RunError
from hybridizer.models.parts import find_parts
from hybridizer.recipe.models import Lora
from hybridizer.recipe.objective import Align, Distill, Objective
from hybridizer.train import teacher as teachers
from hybridizer.train.folder import read_log
from hybridizer.train.freeze import plan_freeze, plan_lora_
from hybridizer.train.step import OptimizerStep
from hybridizer.train.teacher import Teacher, lower_, share_tensors_
from support.sections import train_section
from support.train_models import plain_model, tiny_model
from support.train_runs import SETTINGS, bytes_of, run_model

DISTILL = Objective(distill=Distill(temperature=2.0, weight=0.6))
ALIGN = Objective(align=Align())
PAIRS = {"distill": (), "align": ((1, 1),)}


def train(folder, objective, seed=0, **options):
    """Train a fresh plain model, its deep side frozen, with another as teacher; model, result and teacher."""
    settings = replace(SETTINGS, objective=objective, **options)
    teacher = Teacher(*plain_model(seed=seed + 1), f"sha256:{seed}", PAIRS[objective.kind])
    model, parts = plain_model()
    plan = plan_freeze(model, parts, train_section(freeze="deep"), boundary=2)
    return model, run_model(folder, model, parts, plan, settings, teacher=teacher), teacher


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_distillation_lowers_the_divergence_and_logs_both_terms(tmp_path, precision):
    _, _, teacher = train(tmp_path, DISTILL, precision=precision)
    lines = read_log(tmp_path)
    for line in lines:
        mixed = 0.6 * 4 * line["loss_divergence"] + 0.4 * line["loss_next_token"]
        assert line["loss"] == pytest.approx(mixed, rel=1e-5)
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.05
    assert not teacher.model.training
    assert bytes_of(teacher.model) == bytes_of(plain_model(seed=1)[0])


@pytest.mark.slow
def test_alignment_brings_the_state_at_the_boundary_to_the_teachers(tmp_path):
    train(tmp_path, ALIGN)
    lines = read_log(tmp_path)
    assert all(line["loss"] == line["loss_alignment"] for line in lines)
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]


@pytest.mark.slow
def test_a_step_of_alignment_at_the_boundary_calls_no_deep_layer_of_either_model(tmp_path, monkeypatch):
    called = []
    gradients = OptimizerStep.compute_gradients

    def counting(step, number):
        parts = {"student": step._job.parts, "teacher": step._job.teacher.parts}
        hooks = [
            layer.register_forward_pre_hook(lambda *_, place=(name, place): called.append(place))
            for name, found in parts.items()
            for place, layer in enumerate(found.layers)
        ]
        found = gradients(step, number)
        for hook in hooks:
            hook.remove()
        return found

    monkeypatch.setattr(OptimizerStep, "compute_gradients", counting)
    train(tmp_path, ALIGN, max_steps=2)
    assert called == 2 * [("teacher", 0), ("teacher", 1), ("student", 0), ("student", 1)]


@pytest.mark.slow
@pytest.mark.parametrize("objective", [DISTILL, ALIGN], ids=["distill", "align"])
def test_stopped_and_resumed_equals_run_through_bit_for_bit(tmp_path, objective):
    straight, _, _ = train(tmp_path / "a", objective, max_steps=4)
    train(tmp_path / "b", objective, max_steps=2)
    resumed, _, _ = train(tmp_path / "b", objective, max_steps=4)
    assert bytes_of(resumed) == bytes_of(straight)
    assert [x["loss"] for x in read_log(tmp_path / "a")] == [x["loss"] for x in read_log(tmp_path / "b")]


@pytest.mark.slow
def test_a_run_is_not_resumed_with_another_teacher(tmp_path):
    train(tmp_path, DISTILL, max_steps=1)
    with pytest.raises(InputError, match="teacher"):
        train(tmp_path, DISTILL, seed=5, max_steps=2)


@pytest.mark.slow
@pytest.mark.parametrize("objective", [DISTILL, ALIGN], ids=["distill", "align"])
def test_low_rank_adapters_train_with_a_teacher(tmp_path, objective):
    model, taught = tiny_model("llama", vocab_size=257).eval(), tiny_model("llama", 1, vocab_size=257).eval()
    teacher = Teacher(taught, find_parts(taught), "sha256:0", PAIRS[objective.kind])
    parts = find_parts(model)
    settings = replace(SETTINGS, objective=objective, lora=Lora(rank=4), max_steps=4)
    plan = plan_lora_(model, parts, plan_freeze(model, parts, train_section(freeze="deep"), 2), settings.lora)
    before = [parameter.detach().clone() for parameter in taught.parameters()]
    result = run_model(tmp_path, model, parts, plan, settings, teacher=teacher)
    assert result.last_loss < result.first_loss
    assert all(torch.equal(a, b) for a, b in zip(before, taught.parameters(), strict=True))


def deep_twins(model):
    """The names of the deep side, as those of a teacher that gave it."""
    return {name: name for name, _ in model.named_parameters() if name.startswith(("layers.2.", "layers.3."))}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("objective", [DISTILL, ALIGN], ids=["distill", "align"])
def test_frozen_tensors_that_are_the_teachers_are_in_memory_once_and_give_the_same_bits(tmp_path, objective, precision):
    found = []
    for shares in (False, True):
        teacher = Teacher(*plain_model(seed=1), "sha256:1", PAIRS[objective.kind])
        model, parts = plain_model()
        twins = deep_twins(model)
        ours, theirs = (dict(one.named_parameters()) for one in (model, teacher.model))
        assert twins and twins.keys() < ours.keys()
        for name in twins:
            ours[name].data = theirs[name].data.clone()
        count = share_tensors_(teacher.model, model, twins if shares else {})
        assert count == (sum(ours[name].numel() for name in twins) if shares else 0)
        plan = plan_freeze(model, parts, train_section(freeze="deep"), boundary=2)
        settings = replace(SETTINGS, objective=objective, precision=precision, max_steps=3)
        run_model(tmp_path / str(shares), model, parts, plan, settings, teacher=teacher)
        theirs = dict(teacher.model.named_parameters())
        shared = {name for name in twins if theirs[name].data_ptr() == ours[name].data_ptr()}
        assert shared == (twins.keys() if shares else set())
        assert bytes_of(teacher.model) == bytes_of(plain_model(seed=1)[0])
        found.append((bytes_of(model), [line["loss"] for line in read_log(tmp_path / str(shares))]))
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_teacher_held_in_the_precision_that_computes_gives_the_same_bits_and_leaves_shared_tensors(tmp_path):
    found, shared = [], "model.layers.2.mlp.up_proj.weight"
    for lowers in (False, True):
        taught, model = (tiny_model("llama", seed, vocab_size=257).eval() for seed in (1, 0))  # no biases, see `lower_`
        model.get_parameter(shared).data = taught.get_parameter(shared).data.clone()
        share_tensors_(taught, model, {shared: shared})
        teacher = Teacher(taught, find_parts(taught), "sha256:1", ())
        if lowers:
            lower_(taught, torch.bfloat16, model)
            lower_(taught, torch.float32, model)
            stored = {name for name, parameter in taught.named_parameters() if parameter.dtype != torch.bfloat16}
            assert stored == {shared}
        plan = plan_freeze(model, find_parts(model), train_section(freeze="deep"), boundary=2)
        settings = replace(SETTINGS, objective=DISTILL, precision="bfloat16", max_steps=2)
        run_model(tmp_path / str(lowers), model, find_parts(model), plan, settings, teacher=teacher)
        found.append((bytes_of(model), [line["loss"] for line in read_log(tmp_path / str(lowers))]))
    assert found[0] == found[1]


def test_a_shared_tensor_that_something_changes_breaks_the_freeze_proof(tmp_path, monkeypatch):
    teacher, (model, parts) = Teacher(*plain_model(seed=1), "sha256:1", ()), plain_model()
    name = "layers.2.mlp.0.weight"
    assert share_tensors_(teacher.model, model, {name: name}) == teacher.model.get_parameter(name).numel()
    update = OptimizerStep.update_

    def careless(step, *arguments):
        teacher.model.get_parameter(name).data.add_(1)
        return update(step, *arguments)

    monkeypatch.setattr(OptimizerStep, "update_", careless)
    plan = plan_freeze(model, parts, train_section(freeze="deep"), boundary=2)
    settings = replace(SETTINGS, objective=DISTILL, max_steps=2)
    with pytest.raises(RunError, match=f"frozen tensors changed: {name}"):
        run_model(tmp_path, model, parts, plan, settings, teacher=teacher)


def test_pages_of_tensors_that_a_teacher_no_longer_holds_are_given_back(monkeypatch):
    left = []
    monkeypatch.setattr(teachers, "page_out", left.extend)
    model, taught = plain_model()[0], plain_model(seed=1)[0]
    name = "layers.2.mlp.0.weight"
    own = taught.get_parameter(name).data
    share_tensors_(taught, model, {name: name})
    assert [tensor.data_ptr() for tensor in left] == [own.data_ptr()]


@pytest.mark.slow
def test_the_heap_is_trimmed_in_alignment_too_which_ends_at_the_boundary(tmp_path, monkeypatch):
    trims = []
    monkeypatch.setattr("hybridizer.models.memory._malloc_trim", lambda: trims.append)
    train(tmp_path, ALIGN, max_steps=1)
    assert trims


def test_tensors_of_another_dtype_or_shape_and_unknown_ones_are_not_shared():
    model, teacher = plain_model()[0], plain_model(seed=1)[0]
    low, wide, same = "layers.2.qkv.weight", "layers.2.mlp.0.weight", "layers.2.mlp.0.bias"
    teacher.get_parameter(low).data = teacher.get_parameter(low).data.bfloat16()
    twins = {low: low, "layers.2.norm.weight": wide, "nowhere": same, "layers.3.qkv.weight": "nowhere"}
    assert share_tensors_(teacher, model, twins) == 0
    assert share_tensors_(teacher, model, {**twins, "layers.3.mlp.0.bias": same}) == 32
    assert teacher.get_parameter(same) is model.get_parameter("layers.3.mlp.0.bias")
