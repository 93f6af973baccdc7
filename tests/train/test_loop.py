from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from hybridizer.core.errors import InputError, RunError
from hybridizer.core.progress import SilentMonitor
from hybridizer.data.batches import Source, TrainingData
from hybridizer.models.matmul import UpcastMatmul
from hybridizer.train.folder import read_log
from hybridizer.train.freeze import plan_freeze, tensor_sha256
from support.marks import slow_except
from support.sections import train_section
from support.token_texts import token_file_of
from support.train_models import plain_model, tiny_model
from support.train_runs import SETTINGS, TEXTS, bytes_of, data_in, run, run_model


@pytest.mark.slow
def test_training_lowers_the_loss_moves_the_shallow_side_and_nothing_else(tmp_path):
    before = {name: tensor_sha256(p) for name, p in plain_model()[0].named_parameters()}
    model, result = run(tmp_path)
    after = {name: tensor_sha256(p) for name, p in model.named_parameters()}
    moved = {name for name in before if before[name] != after[name]}
    assert moved == {name for name in before if name.startswith(("embedding", "layers.0", "layers.1"))}
    assert result.frozen_sha256 == {name: after[name] for name in before if name not in moved}
    assert result.last_loss < result.first_loss - 0.5
    assert (result.stopped_by, result.unreached) == ("tokens", ())


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("stop", [1, 5])
def test_stopped_and_resumed_equals_run_through_bit_for_bit(tmp_path, precision, stop):
    settings = replace(SETTINGS, precision=precision)
    straight, _ = run(tmp_path / "a", settings)
    run(tmp_path / "b", replace(settings, max_steps=stop))
    resumed, result = run(tmp_path / "b", settings)
    assert bytes_of(resumed) == bytes_of(straight)
    assert [line["step"] for line in read_log(tmp_path / "b")] == list(range(result.steps))
    assert [x["loss"] for x in read_log(tmp_path / "a")] == [x["loss"] for x in read_log(tmp_path / "b")]


@pytest.mark.slow
def test_gradient_accumulation_and_recomputation_change_rounding_only(tmp_path):
    whole = run(tmp_path / "a")[1]
    for name, change in {"b": {"micro_batch_size": 1}, "c": {"gradient_checkpointing": True}}.items():
        other = run(tmp_path / name, replace(SETTINGS, **change))[1]
        # Dropout draws other numbers for other batches; recomputation draws the same.
        assert other.last_loss == pytest.approx(whole.last_loss, rel=0.1 if name == "b" else 1e-4)


@pytest.mark.slow
def test_bfloat16_trains_with_float32_masters(tmp_path):
    model, result = run(tmp_path, replace(SETTINGS, precision="bfloat16"))
    reference = run(tmp_path / "exact")[1]
    assert result.dtype == "bfloat16"
    trained = model.layers[0].qkv.weight
    assert trained.dtype == torch.float32 and not torch.equal(trained, trained.bfloat16().float())
    assert result.last_loss == pytest.approx(reference.last_loss, rel=0.1)
    assert all(p.dtype == torch.float32 for p in model.parameters())  # the frozen ones came in float32


@pytest.mark.slow
@pytest.mark.parametrize("hardware", [True, False])
def test_products_are_widened_only_where_bfloat16_would_be_emulated(tmp_path, monkeypatch, hardware):
    entered = []
    enter = UpcastMatmul.__enter__
    monkeypatch.setattr(UpcastMatmul, "__enter__", lambda self: entered.append(self) or enter(self))
    monkeypatch.setattr("hybridizer.models.hardware.has_bfloat16", lambda device: hardware)
    run(tmp_path / "exact")
    assert not entered
    run(tmp_path / "low", replace(SETTINGS, precision="bfloat16"))
    assert bool(entered) is not hardware


@pytest.mark.slow
def test_a_checkpoint_of_another_run_is_refused_with_the_difference_named(tmp_path):
    data = data_in(tmp_path / "data")
    run(tmp_path, replace(SETTINGS, max_steps=2), data)
    cases = {
        r"plan is 'sha256:other' now and was 'sha256:plan' there": {"plan_hash": "sha256:other"},
        r"train\.optimizer\.lr is 0\.002 now and was 0\.01": {"settings": replace(SETTINGS, lr=2e-3)},
        r"data\.seed is 1 now and was 0": {"data": data_in(tmp_path / "data", seed=1)},
        r"data\.seq_len is 32 now and was 64": {"data": data_in(tmp_path / "data", seq_len=32)},
        r"freeze\.frozen_layers is \[0, 1\] now and was \[2, 3\] there": {"freeze": "shallow"},
    }
    for message, change in cases.items():
        with pytest.raises(InputError, match=message):
            run(tmp_path, **{"data": data, **change})


@pytest.mark.slow
def test_the_last_two_checkpoints_are_kept(tmp_path):
    _, result = run(tmp_path)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == [f"step-{step:08d}" for step in (result.steps - 1, result.steps)]


def test_stop_conditions_say_which_one_it_was(tmp_path):
    data = data_in(tmp_path / "data")
    assert run(tmp_path / "steps", replace(SETTINGS, max_steps=3), data)[1].stopped_by == "steps"
    ticks = iter(range(10_000))
    result = run(tmp_path / "minutes", replace(SETTINGS, max_minutes=0.5), data, clock=lambda: next(ticks))[1]
    assert result.stopped_by == "minutes" and 0 < result.steps < data.num_steps
    assert run(tmp_path / "minutes", SETTINGS, data)[1].stopped_by == "tokens"  # and can be resumed


def test_every_step_leaves_a_line_with_all_its_figures(tmp_path):
    _, result = run(tmp_path)
    lines = read_log(tmp_path)
    assert len(lines) == result.steps
    assert set(lines[0]) == {
        "step", "loss", "lr", "tokens", "tokens_per_second", "flops_per_second", "share_of_peak",
        "gradient_norm_shallow", "gradient_norm_total", "memory_bytes", "seconds", "seconds_left",
    }  # fmt: skip
    assert lines[-1]["tokens"] == result.tokens
    assert lines[-1]["seconds_left"] == 0
    assert lines[0]["gradient_norm_total"] == pytest.approx(lines[0]["gradient_norm_shallow"])


@pytest.mark.slow
def test_a_line_has_the_loss_of_each_source_where_there_are_several(tmp_path):
    files = [token_file_of(TEXTS[:60], tmp_path, name="a"), token_file_of(TEXTS[60:], tmp_path, name="b")]
    settings = train_section(seq_len=64, global_batch_size=4)
    data = TrainingData([Source(f"{place}.txt", (file,)) for place, file in zip("ab", files, strict=True)], settings)
    run(tmp_path, data=data)
    for step, line in enumerate(read_log(tmp_path)):
        counts = dict(zip(("loss_a.txt", "loss_b.txt"), data.num_source_targets(step), strict=True))
        assert {name for name in line if name.startswith("loss_")} == {name for name, count in counts.items() if count}
        whole = sum(count * line.get(name, 0.0) for name, count in counts.items()) / data.num_targets(step)
        assert line["loss"] == pytest.approx(whole, rel=1e-6)


def broken_after(model, step, value):
    """Spoil the loss of `model` from optimizer step `step` on."""
    calls = iter(range(10_000))

    def spoil(module, inputs, output):
        # One call while training comes from looking at the head, before the first step.
        return output * value if module.training and next(calls) >= step + 1 else output

    model.norm.register_forward_hook(spoil)


@pytest.mark.parametrize(
    "value, step, words", [(float("nan"), 4, "not finite"), (1e3, 6, "the loss exploded: 3 steps in a row")]
)
def test_a_loss_gone_wrong_stops_the_run_and_names_the_last_good_state(tmp_path, value, step, words):
    model, parts = plain_model()
    broken_after(model, 4, value)
    with pytest.raises(RunError, match=f"training step {step}: .*{words}") as caught:
        run(tmp_path, model=(model, parts))
    # The loss of step 4's weights was not known when they were written; the state at the stop is kept beside them.
    good = tmp_path / "checkpoints" / "step-00000003"
    bad = [good.with_name(f"step-{number:08d}.bad") for number in sorted({4, step})]
    assert sorted((tmp_path / "checkpoints").iterdir()) == [good, *bad]
    assert "Lower `lr`" in str(caught.value)
    assert f"build again with --accept-changes: it resumes from {good}, the last good state." in str(caught.value)
    if step == 6:
        assert f"rename {bad[-1]} to step-00000006 and set `divergence: warn`" in str(caught.value)


def test_a_first_step_gone_wrong_leaves_nothing_to_resume_from(tmp_path):
    model, parts = plain_model()
    broken_after(model, 1, float("nan"))
    with pytest.raises(RunError, match="build again, from the start: no earlier checkpoint exists"):
        run(tmp_path, model=(model, parts))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001.bad"]


@pytest.mark.slow
def test_a_stop_by_the_guard_loses_no_step_and_can_be_overruled(tmp_path):
    settings = replace(SETTINGS, checkpoint_minutes=60.0)
    model, parts = plain_model()
    broken_after(model, 4, 1e3)
    with pytest.raises(RunError, match="the loss exploded"):
        run(tmp_path, settings, model=(model, parts))
    (kept,) = (tmp_path / "checkpoints").iterdir()
    assert kept.name == "step-00000006.bad"
    kept.rename(kept.with_suffix(""))
    _, result = run(tmp_path, replace(settings, divergence="warn"))
    assert result.stopped_by == "tokens" and [line["step"] for line in read_log(tmp_path)] == list(range(result.steps))


@pytest.mark.slow
@pytest.mark.parametrize("divergence", ["warn", "off"])
def test_a_divergence_is_reported_once_or_not_at_all_where_the_settings_say_so(tmp_path, divergence):
    model, parts = plain_model()
    broken_after(model, 2, 1e3)
    notes, monitor = [], SilentMonitor()
    monitor.note = notes.append
    settings = replace(SETTINGS, divergence=divergence)
    _, result = run(tmp_path, settings, model=(model, parts), monitor=monitor)
    assert result.stopped_by == "tokens"
    reported = [note for note in notes if note.startswith("warning: training step 4: the loss exploded")]
    assert len(reported) == len(notes) == (divergence == "warn")


@pytest.mark.parametrize("lr", [10.0, 100.0])
def test_a_learning_rate_that_is_far_too_high_is_stopped(tmp_path, lr):
    settings = replace(SETTINGS, warmup_ratio=0.0, max_grad_norm=0.0)
    object.__setattr__(settings, "lr", lr)  # a recipe refuses such a rate
    with pytest.raises(RunError, match="the loss exploded|the loss diverged|not finite"):
        run(tmp_path, settings, data_in(tmp_path / "data", tokens=8000), freeze="none")


def test_weights_that_are_not_finite_after_the_last_update_are_named_as_the_trainings(tmp_path, monkeypatch):
    from hybridizer.train.step import OptimizerStep

    update, calls = OptimizerStep.update_, iter(range(3))

    def spoil(self, gradients, proof=None):
        found = update(self, gradients, proof)
        if next(calls) == 2:
            next(iter(self.masters.tensors.values())).data[0] = float("nan")
        return found

    monkeypatch.setattr(OptimizerStep, "update_", spoil)
    settings = replace(SETTINGS, max_steps=3, checkpoint_minutes=60.0)
    with pytest.raises(RunError, match=r"training step 3: training made weights that are NaN or infinite: embedding"):
        run(tmp_path, settings)
    assert not (tmp_path / "masters.safetensors").exists() and not list((tmp_path / "checkpoints").glob("*"))


@pytest.mark.slow
def test_a_step_reports_its_figures_in_words(tmp_path):
    statuses, monitor = [], SilentMonitor()

    @contextmanager
    def task(label, total, unit):
        yield lambda count, status="": statuses.append(status)

    monitor.task = task
    run(tmp_path, replace(SETTINGS, max_steps=2), monitor=monitor)
    line = read_log(tmp_path)[1]
    assert statuses[0] == "" and len(statuses) == 3
    rate = f"{line['tokens_per_second']:,.0f} tokens/s"
    memory = f"{line['memory_bytes'] / 1e9:.1f} GB"
    assert statuses[2] == f"loss {line['loss']:.4f}, {rate}, learning rate {line['lr']:.2e}, {memory}"


@pytest.mark.slow
def test_another_learning_rate_goes_on_where_somebody_says_so_and_is_recorded(tmp_path):
    data = data_in(tmp_path / "data")
    slower = replace(SETTINGS, lr=1e-3)
    run(tmp_path, replace(SETTINGS, max_steps=3), data)
    with pytest.raises(InputError, match=r"train.optimizer.lr is 0.001 now and was 0.01 there.\n.*--accept-changes"):
        run(tmp_path, slower, data)
    _, result = run(tmp_path, replace(slower, max_steps=5), data, accept_changes=True)
    changes = ({"step": 3, "setting": "train.optimizer.lr", "before": 0.01, "now": 0.001},)
    assert (result.steps, result.changes) == (5, changes)
    assert (
        max(line["lr"] for line in read_log(tmp_path)[3:]) <= 1e-3 < min(line["lr"] for line in read_log(tmp_path)[:3])
    )
    assert run(tmp_path, replace(slower, max_steps=6), data)[1].changes == changes
    done = replace(slower, lr=1e-4, max_steps=6)
    with pytest.raises(InputError, match="all 6 steps were taken with the settings from before"):
        run(tmp_path, done, data, accept_changes=True)
    with pytest.raises(InputError, match=r"train.seed is 7 now and was 0 there.\n.*delete the checkpoints folder"):
        run(tmp_path, slower, data, seed=7, accept_changes=True)


@pytest.mark.slow
def test_trackers_get_the_curves(tmp_path):
    pytest.importorskip("tensorboardX")
    from hybridizer.train.runtime import Runtime

    run(tmp_path, runtime=Runtime(("tensorboard",), tmp_path, cpu=True))
    assert list(tmp_path.glob("train/**/events.out.tfevents.*"))


def test_an_unknown_tracker_is_refused():
    from hybridizer.train.runtime import Runtime

    with pytest.raises(InputError, match="no tracker abacus here"):
        Runtime(("abacus",), cpu=True)


def plan_of(model_type, stored=torch.float32):
    from hybridizer.models.parts import find_parts

    model = tiny_model(model_type, vocab_size=257).to(stored).eval()
    parts = find_parts(model)
    return model, parts, plan_freeze(model, parts, train_section(freeze="deep"), boundary=2)


@pytest.mark.slow
@pytest.mark.parametrize("packed", [True, False])
def test_layers_that_carry_state_train_on_packed_rows_and_on_others(tmp_path, packed):
    model, parts, plan = plan_of("mamba2")
    notes, monitor = [], SilentMonitor()
    monitor.note = notes.append
    data = data_in(tmp_path / "data", packed=packed, tokens=400)
    result = run_model(tmp_path, model, parts, plan, data=data, monitor=monitor)
    assert result.stopped_by == "tokens" and result.last_loss < result.first_loss
    expected = "modules that would mix the documents of a row and run on each separately: 4"
    assert notes == ([expected] if packed else [])


@pytest.mark.slow
@pytest.mark.parametrize("model_type", slow_except(["mamba", "jamba"], "mamba"))
@pytest.mark.parametrize(
    ("stored", "precision"), [(torch.bfloat16, "float32"), (torch.float32, "bfloat16"), (torch.bfloat16, "bfloat16")]
)
def test_code_that_takes_a_weight_without_calling_its_module_computes_in_every_precision(
    tmp_path, model_type, stored, precision
):
    model, parts, plan = plan_of(model_type, stored)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if name in plan.frozen}
    result = run_model(tmp_path, model, parts, plan, replace(SETTINGS, precision=precision, max_steps=3))
    assert result.dtype == precision and result.last_loss < result.first_loss
    parameters = dict(model.named_parameters())
    assert all(torch.equal(parameters[name], before) for name, before in frozen.items())
    assert all(parameters[name].dtype == stored for name in frozen)


@pytest.mark.slow
def test_two_threads_give_the_same_bits_every_time(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = set()
        for number in range(4):
            model, parts, plan = plan_of("gpt_oss")
            folder = tmp_path / str(number)
            run_model(folder, model, parts, plan, replace(SETTINGS, max_steps=4), data_in(folder / "data", seq_len=256))
            found.add(bytes_of(model))
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1 and not torch.are_deterministic_algorithms_enabled()


def test_a_model_that_does_not_run_in_a_precision_is_refused(tmp_path):
    model, parts, plan = plan_of("minimax")
    with pytest.raises(InputError, match="train.precision: this model's own code does not run in bfloat16"):
        run_model(tmp_path, model, parts, plan, replace(SETTINGS, precision="bfloat16"))


def test_packed_rows_are_refused_where_documents_cannot_be_kept_apart(tmp_path):
    model, parts, plan = plan_of("bloom")
    with pytest.raises(InputError, match="Set `packed: false`"):
        run_model(tmp_path, model, parts, plan)


class LeaksLate(torch.nn.Module):
    """Passes on what it is given, and from the 33rd token on what came 32 tokens before."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, hidden):
        normed = self.norm(hidden)
        return normed + torch.nn.functional.pad(normed, (0, 0, 32, 0))[:, : normed.shape[1]]


@pytest.mark.slow
def test_what_leaks_over_whole_rows_only_is_found_as_well(tmp_path):
    model, parts = plain_model(dropout=0.0)
    model.layers[1].norm = LeaksLate(model.layers[1].norm)
    notes, monitor = [], SilentMonitor()
    monitor.note = notes.append
    run(tmp_path, replace(SETTINGS, max_steps=1), model=(model, parts), monitor=monitor)
    assert notes == ["modules that would mix the documents of a row and run on each separately: 1"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # both are torch's own, on the way to its compiler
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_layers_train_alike_and_stay_proven(tmp_path, monkeypatch, recompute):
    graphs = []
    plain_compile = torch.compile

    def trace_only(graph, inputs):  # tracing is ours to test, making C++ of it takes minutes
        graphs.append({size for value in inputs if isinstance(value, torch.Tensor) for size in value.shape})
        return graph

    monkeypatch.setattr(torch, "compile", lambda function: plain_compile(function, backend=trace_only))
    torch.compiler.reset()
    settings = replace(SETTINGS, max_steps=3, gradient_checkpointing=recompute)
    model, result = run(tmp_path / "compiled", replace(settings, compile=True), dropout=0.0)
    plain, expected = run(tmp_path / "plain", settings, dropout=0.0)
    assert result.last_loss == pytest.approx(expected.last_loss, rel=1e-5)
    assert result.frozen_sha256 == expected.frozen_sha256 and result.unreached == ()
    assert set(dict(model.named_parameters())) == set(dict(plain.named_parameters()))
    assert 0 < len(graphs) <= 4 and all(64 in sizes for sizes in graphs), "compiled for more than the training's rows"
    assert not any("forward" in vars(layer) for layer in model.layers)
