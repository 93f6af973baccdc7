import io
import json
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest
from rich.console import Console

from hybridizer.core.errors import RecipeError
from hybridizer.plan.cost import estimate_cost
from hybridizer.plan.memory import BUILD_BYTES
from hybridizer.plan.origin import Copy
from hybridizer.plan.plan import Plan, PlannedTensor
from hybridizer.recipe.models import Lora
from hybridizer.report.cost_tables import cost_table, duration, expectation_lines, readable
from hybridizer.train.timing import expect_time
from support.sections import train_section
from support.tiny import tiny_config


@pytest.fixture(scope="module")
def plan():
    """A plan of a tiny Llama with a head of its own."""
    return plan_of("llama", tie_word_embeddings=False)


def plan_of(model_type, **overrides):
    import torch
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = tiny_config(model_type, **overrides)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    tensors = tuple(
        PlannedTensor(name, "F32", tuple(tensor.shape), Copy("a", name)) for name, tensor in model.named_parameters()
    )
    config = json.loads(json.dumps(model.config.to_dict()))
    return Plan("toy", "a", 0, "copy", None, {}, (), tensors, (), {}, config, {}, 10**9)


SETTINGS = train_section(freeze="deep", seq_len=64, global_batch_size=2, precision="float32")
LAYER = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96 + 2 * 64
TABLE = 256 * 64


def cost_of(plan, device="cpu", boundary=2, mean_document=None, **settings):
    return estimate_cost(plan, replace(SETTINGS, **settings), boundary, device, mean_document=mean_document)


def test_the_arms_stand_beside_what_is_asked(plan):
    cost = cost_of(plan, freeze=(1, 2))
    assert [arm.name for arm in (cost.asked, *cost.arms)] == ["asked", "deep", "shallow", "none"]
    assert [arm.trained_layers for arm in (cost.asked, *cost.arms)] == ["0, 3", "0..1", "2..3", "0..3"]
    deep, shallow, none = cost.arms
    assert deep.trained_parameters == 2 * LAYER + TABLE  # and the embedding
    assert shallow.trained_parameters == 2 * LAYER + 64 + TABLE  # final norm and head
    assert (none.frozen_parameters, none.share_of_full_flops) == (0, 1.0)
    assert all(arm.trained_parameters + arm.frozen_parameters == plan.num_parameters for arm in cost.arms)
    assert deep.share_of_full_flops > shallow.share_of_full_flops
    assert all(arm.peak_bytes == arm.memory.total for arm in cost.arms)


def test_the_estimate_follows_the_settings(plan):
    first = cost_of(plan).asked
    assert cost_of(plan, global_batch_size=4).asked.memory.activations == 2 * first.memory.activations
    halves = cost_of(plan, micro_batch_size=1).asked.memory
    assert (halves.activations, halves.gradients) == (first.memory.activations // 2, 4 * first.trained_parameters)
    on_cuda = [cost_of(plan, "cuda", optimizer=name).asked.memory.optimizer for name in ("adamw", "adamw8bit")]
    assert on_cuda[1] == on_cuda[0] // 4
    low = cost_of(plan, precision="bfloat16").asked.memory
    assert (low.masters, low.activations) == (4 * first.trained_parameters, first.memory.activations // 2)
    assert cost_of(plan, mean_document=16.0).asked.total_token_flops < first.total_token_flops


def test_a_plan_and_its_training_compute_in_the_same_dtype(plan, bfloat16_cpu):
    import torch

    from hybridizer.train.precision import choose_dtype

    for device in ("cpu", "cuda"):
        planned = cost_of(plan, device, precision="auto")
        assert planned.compute_dtype == str(choose_dtype("auto", torch.device(device))).removeprefix("torch.")
    explicit = "bfloat16" if bfloat16_cpu else "float32"
    assert cost_of(plan, precision="auto").asked == cost_of(plan, precision=explicit).asked


def test_products_of_the_loss_are_wide_where_a_cpu_emulates_bfloat16(plan, monkeypatch):
    losses = {}
    for hardware in (True, False):
        monkeypatch.setattr("hybridizer.models.hardware.has_bfloat16", lambda device, hardware=hardware: hardware)
        losses[hardware] = cost_of(plan, precision="bfloat16").asked.memory
    assert losses[True] != losses[False]


@pytest.mark.parametrize(("family", "layers"), [("qwen3_next", "0, 2"), ("mamba2", "0..3"), ("falcon_h1", "0..3")])
def test_layers_that_carry_state_make_the_figures_lower_bounds(family, layers):
    (note,) = cost_of(plan_of(family)).notes
    assert note.startswith(f"Layers {layers} carry state along a row.") and "`--probe` measures time and peak" in note
    assert cost_of(plan_of("gemma3_text")).notes == ()


def test_the_cost_of_adapters_is_their_own(plan):
    cost = cost_of(plan, lora=Lora(4))
    widths = 2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 96)  # of the seven linear modules of a layer
    assert (cost.asked.trained_parameters, cost.asked.frozen_parameters) == (2 * 4 * widths, plan.num_parameters)
    whole = cost_of(plan).asked
    assert cost.asked.memory.optimizer == 8 * 2 * 4 * widths < whole.memory.optimizer
    assert cost.asked.memory.activations > whole.memory.activations, "a network with adapters is not fused"
    assert cost.asked.total_token_flops < whole.total_token_flops
    assert "low-rank adapters of rank 4 train in every arm" in cost.notes[-1]


def test_the_plan_says_what_adamw8bit_saves_on_a_cpu(plan):
    wide = plan_of("llama", vocab_size=49152, num_hidden_layers=2)
    (note,) = cost_of(wide, boundary=1, freeze="none", optimizer="adamw8bit").notes
    assert note.startswith("adamw8bit saves no memory here: on a CPU its update unpacks the state of a tensor into 20")
    deep = plan_of("llama", hidden_size=1024, intermediate_size=2048, num_hidden_layers=8)
    whole, eight = (cost_of(deep, freeze="none", seq_len=4096, optimizer=name) for name in ("adamw", "adamw8bit"))
    assert eight.asked.memory.optimizer == whole.asked.memory.optimizer // 4, "the peak is the forward pass"
    assert not whole.notes and not cost_of(plan, "cuda", optimizer="adamw8bit").notes
    assert eight.notes[-1].startswith("adamw8bit saves ") and "% of the peak here" in eight.notes[-1]


def test_the_plan_says_that_unpacked_rows_may_be_shorter(plan):
    (note,) = cost_of(plan, packed=False).notes
    assert note.startswith("the peak is that of rows of 64 tokens") and not cost_of(plan).notes


def test_a_probe_trains_the_adapters_that_were_asked_for(plan, monkeypatch):
    from hybridizer.train.timing import DryRun

    asked = []
    answer = DryRun(2.0, 10.0, 10**9, "cpu", "float32")
    monkeypatch.setattr("hybridizer.train.timing.dry_run", lambda request: asked.append(request) or answer)
    lora = Lora(4, dropout=0.1)
    found = expect_time(plan, replace(SETTINGS, lora=lora), 2, "cpu", num_steps=50)
    assert asked[0].settings.lora == Lora(4, dropout=0.1)
    assert found.estimated_peak_bytes == cost_of(plan, lora=lora).asked.peak_bytes
    assert found.estimated_peak_bytes > cost_of(plan, lora=Lora(4)).asked.peak_bytes


def test_a_boundary_outside_the_model_is_refused(plan):
    with pytest.raises(RecipeError, match="inside 1..3"):
        cost_of(plan, boundary=4)


def test_the_record_is_json_and_the_table_shows_every_arm(plan):
    record = json.loads(json.dumps(cost_of(plan).to_json()))
    assert record["schema"] == "hybridizer.cost/1"
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(cost_table(record))
    text = console.export_text()
    for words in ("this recipe", "freeze shallow", "layers that train", "peak memory", "0..1", record["sentence"][:40]):
        assert words in text
    assert "of the operations and" in record["sentence"]


def test_estimating_the_cost_of_a_plan_needs_no_torch():
    program = "import sys, hybridizer.plan.cost, hybridizer.report.cost_tables; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.slow
def test_the_time_of_a_run_is_that_of_a_probed_step(plan):
    found = expect_time(plan, SETTINGS, 2, "cpu", num_steps=50)
    assert found.run_seconds == pytest.approx(50 * found.step_seconds)
    in_probe = found.estimated_peak_bytes - BUILD_BYTES["cpu"]
    assert in_probe == pytest.approx(found.measured_peak_bytes, rel=0.15)
    assert "tokens/s, probed on cpu in float32" in str(expectation_lines(vars(found)))


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (67_300_000, "", "67.3 M"),
        (1.12e9, "FLOP", "1.12 GFLOP"),
        (999, "B", "999 B"),
        (123.4e12, "B", "123 TB"),
        (0, "B", "0 B"),
    ],
)
def test_figures_are_readable(value, unit, text):
    assert readable(value, unit) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(45.4, "45 s"), (200, "3 min"), (3600 * 3.5, "3 h 30 min"), (86400 * 3 + 7200, "3 d 2 h")]
)
def test_durations_have_two_units(seconds, text):
    assert duration(seconds) == text
