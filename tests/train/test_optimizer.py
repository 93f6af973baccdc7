from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from hybridizer.core.errors import InputError
from hybridizer.core.progress import SilentMonitor
from hybridizer.train.freeze import apply_freeze_, plan_freeze
from hybridizer.train.job import Earlier, RunContext, TrainJob
from hybridizer.train.loop import train
from hybridizer.train.optimizer import Masters, make_optimizer, set_rate_
from hybridizer.train.runtime import Runtime
from support.sections import train_section
from support.train_models import PlainLM, plain_model
from support.train_runs import FIGURES, SETTINGS, bytes_of, data_in, run


def masters_of(dtype=torch.float32, freeze="deep"):
    model, parts = plain_model()
    plan = plan_freeze(model, parts, train_section(freeze=freeze), boundary=2)
    apply_freeze_(model.to(dtype), plan)
    return model, plan, Masters(model, plan)


def test_the_optimizer_holds_the_trained_tensors_and_decays_matrices_only():
    model, plan, masters = masters_of()
    optimizer = make_optimizer(masters.tensors, train_section(weight_decay=0.3))
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(dict(model.named_parameters())[name]) for name in plan.trained)
    for group in optimizer.param_groups:
        assert {p.ndim >= 2 for p in group["params"]} == {group["weight_decay"] == 0.3}


def test_factors_scale_the_rate_of_their_tensors_at_every_step():
    model, plan, masters = masters_of(freeze="none")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    factors = {name: 0.25 if name.startswith("layers.3") else 1.0 for name in plan.trained}
    optimizer = make_optimizer(masters.tensors, train_section(weight_decay=0.3), factors)
    set_rate_(optimizer, 0.5)
    held = {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}
    assert held.keys() == set(plan.trained)
    for name, group in held.items():
        assert group["lr"] == 0.5 * factors[name]
        assert (group["weight_decay"] == 0.3) == (masters.tensors[name].ndim >= 2)


@pytest.mark.slow
def test_a_step_of_a_scaled_tensor_is_that_of_its_rate_with_its_decay(tmp_path):
    def after(lr, **settings):
        section = replace(SETTINGS, lr=lr, schedule="constant", max_steps=1, max_grad_norm=0.0, **settings)
        model, _ = run(tmp_path / f"{lr}{len(settings)}", section, freeze="none", dropout=0.0)
        return dict(model.named_parameters())

    scaled, whole, low = after(1e-2, lr_scale=(("layers.1.*", 0.1),)), after(1e-2), after(1e-3)
    for name in scaled:
        assert torch.equal(scaled[name], (low if name.startswith("layers.1.") else whole)[name])


def test_a_pattern_without_a_tensor_in_the_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="Did you mean 'layers'"):
        run(tmp_path, replace(SETTINGS, lr_scale=(("layer.*", 0.1),)))


@pytest.mark.slow
def test_dropout_of_a_later_stage_draws_other_numbers(tmp_path):
    def losses(steps):
        model, parts = plain_model(dropout=0.5)
        plan = plan_freeze(model, parts, train_section(), boundary=2)
        data = data_in(tmp_path / "data")
        job = TrainJob(model, parts, plan, data, replace(SETTINGS, max_steps=1), "x", earlier=Earlier(steps))
        return train(job, RunContext(tmp_path / str(steps), Runtime(cpu=True), SilentMonitor(), FIGURES)).first_loss

    assert losses(0) != losses(1)


def test_low_precision_gradients_add_up_in_float32():
    model, _, masters = masters_of(torch.bfloat16)
    weight = model.embedding.weight
    for value in (1.0, 2.0**-9):  # the sum needs 10 bits, bfloat16 has 8
        weight.grad = torch.full_like(weight, value)
        masters.collect_gradients_()
    assert weight.grad is None
    assert (masters.tensors["embedding.weight"].grad == 1 + 2.0**-9).all()


def test_updates_too_small_for_bfloat16_add_up_in_the_masters():
    model, _, masters = masters_of(torch.bfloat16)
    start = model.embedding.weight.clone()
    for _ in range(200):
        masters.tensors["embedding.weight"].data.mul_(1 + 2.0**-13)
        masters.publish_()
    assert (model.embedding.weight != start).float().mean() > 0.9


def test_gradient_norms_are_reported_by_side_and_together():
    model, _, masters = masters_of(freeze="none")
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    norms = masters.gradient_norms()
    count = sum(p.numel() for p in model.parameters())
    assert norms["total"] == pytest.approx(count**0.5)
    assert norms["shallow"] ** 2 + norms["deep"] ** 2 == pytest.approx(count)
    deep = sum(p.numel() for part in (*model.layers[2:], model.norm, model.head) for p in part.parameters())
    assert norms["deep"] ** 2 == pytest.approx(deep)


def test_eight_bit_without_its_package_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(InputError, match="pip install bitsandbytes"):
        make_optimizer(masters_of()[2].tensors, train_section(optimizer="adamw8bit"))


def test_eight_bit_state_survives_a_checkpoint(tmp_path):
    pytest.importorskip("bitsandbytes")
    settings = replace(SETTINGS, optimizer="adamw8bit", lr=1e-2)
    straight, result = run(tmp_path / "a", settings, model=wide_model())
    run(tmp_path / "b", replace(settings, max_steps=4), model=wide_model())
    state = load_file(tmp_path / "b" / "checkpoints" / "step-00000004" / "tensors.safetensors")
    assert state["state1.embedding.weight"].dtype == torch.uint8
    assert int(state["step.embedding.weight"]) == 4
    resumed, _ = run(tmp_path / "b", settings, model=wide_model())
    assert bytes_of(resumed) == bytes_of(straight)
    assert result.last_loss < result.first_loss - 0.5


def wide_model():
    """A plain model with matrices above the 4096 elements from which bitsandbytes keeps 8 bits."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = PlainLM(width=32)
    parts = SimpleNamespace(
        embedding=model.embedding, layers=model.layers, final_norm=model.norm, head=model.head, tuple_sizes=(0,) * 4
    )
    return model, parts


def test_eight_bit_refuses_tensors_spread_over_processes(monkeypatch):
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr("hybridizer.train.optimizer.is_sharded", lambda tensor: True)
    with pytest.raises(InputError, match="FSDP spreads over processes"):
        make_optimizer(masters_of()[2].tensors, train_section(optimizer="adamw8bit"))
