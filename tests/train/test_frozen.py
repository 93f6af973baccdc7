import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hybridizer.core.errors import InputError, RecipeError
from hybridizer.models.memory import page_out
from hybridizer.models.parts import find_parts
from hybridizer.recipe.load import load_recipe
from hybridizer.recipe.models import Lora
from hybridizer.train.freeze import apply_freeze_, plan_freeze, plan_lora_, tensor_sha256
from hybridizer.train.frozen import LowLinear, kept_low
from hybridizer.train.fused import gated_network
from hybridizer.train.job import TrainJob
from hybridizer.train.low_bits import NF4, encode, in_dtype
from hybridizer.train.prepare import prepare
from hybridizer.train.run import join_processes
from support.lines import write_recipe
from support.sections import train_section
from support.shapes import shape_of
from support.train_models import tiny_model
from support.train_runs import SETTINGS, bytes_of, data_in, run

CPU = torch.device("cpu")
KINDS = ["int8", "fp8", "nf4"]
ERRORS = {"int8": 0.008, "fp8": 0.03, "nf4": 0.1}  # of normal numbers, as a share of their size
SECTION = train_section(precision="float32")


def weight_of(rows, columns):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def job_of(folder, settings, model_type="llama", stored=torch.float32):
    model = tiny_model(model_type, vocab_size=257).to(stored)
    parts = find_parts(model.eval())
    plan = plan_freeze(model, parts, settings, boundary=2)
    if settings.lora:
        plan = plan_lora_(model, parts, plan, settings.lora)
    apply_freeze_(model.train(), plan)
    return TrainJob(model, parts, plan, data_in(folder), settings, "sha256:plan")


def loss_of(job):
    with prepare(job, CPU) as prepared:
        batch = job.data.batches(0)[0]
        if prepared.documents is not None:
            prepared.documents.announce(batch.position_ids, CPU)
        loss, _ = prepared.objective(batch.input_ids, batch.position_ids, batch.targets, batch.sources)
        loss.backward()
        low = {name for name, module in job.model.named_modules() if type(module) is LowLinear}
    return loss.detach(), low


@pytest.mark.parametrize("kind", KINDS)
def test_a_matrix_comes_back_within_the_rounding_of_its_kind(kind):
    weight = weight_of(96, 192)
    weight[3] = 0
    values, scales = encode(weight, kind)
    found = in_dtype(values, scales, torch.float32)
    assert float((found - weight).norm() / weight.norm()) < ERRORS[kind]
    assert not found[3].any()
    assert values.nbytes == weight.numel() // (2 if kind == "nf4" else 1)
    again = encode(found, kind)
    assert torch.equal(again[0].view(torch.uint8), values.view(torch.uint8))
    assert torch.equal(in_dtype(*again, torch.float32), found)


@pytest.mark.parametrize("kind", KINDS)
def test_both_precisions_compute_with_the_same_weight(kind):
    encoded = encode(weight_of(64, 128), kind)
    exact, low = in_dtype(*encoded, torch.float32), in_dtype(*encoded, torch.bfloat16)
    assert float(((low.float() - exact).abs() / exact.abs().clamp_min(1e-9)).max()) < 2**-7


def test_nf4_takes_the_nearest_of_its_numbers_for_each_block():
    weight = weight_of(2, 128)
    values, scales = encode(weight, "nf4")
    units = (weight.view(2, 2, 64) / scales.float()[..., None]).view(2, 128)
    nearest = (units[..., None] - torch.tensor(NF4)).abs().argmin(-1)
    assert torch.equal(values >> 4, nearest[:, ::2].to(torch.uint8))
    assert torch.equal(values & 15, nearest[:, 1::2].to(torch.uint8))


@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_gradient_are_those_of_the_rounded_weight_and_no_copy_is_kept(kind):
    layer = nn.Linear(64, 32, bias=True).requires_grad_(False)
    layer.weight.data, layer.scales = encode(layer.weight.data, kind)
    layer.__class__ = LowLinear
    rounded = in_dtype(layer.weight, layer.scales, torch.float32)
    ours, theirs = (weight_of(5, 64).requires_grad_() for _ in range(2))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.dtype) or t, lambda t: t):
        output = layer(ours)
    expected = nn.functional.linear(theirs, rounded, layer.bias)
    torch.testing.assert_close(output, expected)
    assert set(kept) == {layer.weight.dtype, torch.bfloat16}
    output.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gated_network_computes_with_weights_in_few_bits(kind):
    weights = [weight_of(48, 32), weight_of(48, 32).flip(0), weight_of(32, 48)]
    encoded = [encode(weight, kind) for weight in weights]
    rounded = [in_dtype(*each, torch.float32) for each in encoded]
    ours, theirs = (weight_of(5, 32).requires_grad_() for _ in range(2))
    output = gated_network(ours, *(values for values, _ in encoded), scales=[scales for _, scales in encoded])
    expected = gated_network(theirs, *rounded)
    torch.testing.assert_close(output, expected)
    output.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_frozen_layers_are_kept_low_while_they_train_and_have_their_bytes_back(tmp_path, kind, stored):
    job = job_of(tmp_path, replace(SECTION, frozen_dtype=kind), stored=stored)
    before = {name: tensor_sha256(p) for name, p in job.model.named_parameters()}
    classes = {name: type(module) for name, module in job.model.named_modules()}
    plain, _ = loss_of(job_of(tmp_path, SECTION, stored=stored))
    loss, low = loss_of(job)
    assert low == {n for n, kind in classes.items() if kind is nn.Linear and n.split(".")[2:3] in (["2"], ["3"])}
    assert 0 < abs(float(loss - plain)) < 0.01 * float(plain)
    assert {name: type(module) for name, module in job.model.named_modules()} == classes
    assert not any("scales" in vars(module) for module in job.model.modules())
    after = {name: tensor_sha256(p) for name, p in job.model.named_parameters()}
    assert all(after[name] == before[name] for name in job.freeze_plan.frozen)


def test_recomputing_changes_no_bit(tmp_path):
    section = replace(SECTION, frozen_dtype="nf4")
    grads = []
    for recompute in (False, True):
        job = job_of(tmp_path, replace(section, gradient_checkpointing=recompute))
        loss_of(job)
        grads.append([p.grad for p in job.model.parameters() if p.grad is not None])
    assert grads[0] and all(torch.equal(*pair) for pair in zip(*grads, strict=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, on the way to its compiler
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_training_computes_the_same(tmp_path, kind):
    plain, _ = loss_of(job_of(tmp_path, replace(SECTION, frozen_dtype=kind)))
    compiled, low = loss_of(job_of(tmp_path, replace(SECTION, frozen_dtype=kind, compile=True)))
    assert low
    torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=1e-6)


def test_below_adapters_the_matrices_of_all_layers_are_kept_low(tmp_path):
    job = job_of(tmp_path, replace(SECTION, frozen_dtype="int8", lora=Lora(rank=2)))
    _, low = loss_of(job)
    assert {name.split(".")[2] for name in low} == {"0", "1", "2", "3"}
    assert any(name.endswith("base_layer") for name in low)


def test_code_that_uses_a_weight_without_its_module_is_refused():
    model = tiny_model("llama", vocab_size=257).eval()
    parts = find_parts(model)
    plan = plan_freeze(model, parts, SECTION, boundary=2)
    apply_freeze_(model, plan)
    attention = parts.layers[3].self_attn
    attention.o_proj.forward = None  # not called
    before = tensor_sha256(attention.q_proj.weight)

    def forward(hidden_states, **_):
        return hidden_states @ attention.q_proj.weight[:, : hidden_states.shape[-1]].T.float(), None

    attention.forward = forward
    with (
        pytest.raises(InputError, match=r"train\.frozen_dtype: in int8 the logits differ"),
        kept_low(model, parts, plan, "int8", 257),
    ):
        pass
    assert tensor_sha256(attention.q_proj.weight) == before
    assert not any(type(module) is LowLinear for module in model.modules())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen3_moe", "mamba2"])
def test_the_plan_counts_the_bytes_of_what_is_kept_low(model_type, kind):
    model = tiny_model(model_type, vocab_size=257).eval()
    parts = find_parts(model)
    plan = plan_freeze(model, parts, SECTION, boundary=2)
    apply_freeze_(model, plan)
    planned = sum(shape_of(parts, 64).layers[number].low_bytes(kind) for number in plan.choice.frozen_layers)
    with kept_low(model, parts, plan, kind, 257):
        low = [module for module in model.modules() if type(module) is LowLinear]
        assert sum(module.weight.nbytes + module.scales.nbytes for module in low) == planned
    assert bool(planned) == (model_type != "gpt2")  # whose layers hold no linear modules


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_bytes_of_one_that_was_not(tmp_path):
    settings = replace(SETTINGS, frozen_dtype="nf4", max_steps=4)
    whole, _ = run(tmp_path / "whole", settings)
    run(tmp_path / "parts", replace(settings, max_steps=2))
    resumed, _ = run(tmp_path / "parts", settings)
    plain, _ = run(tmp_path / "plain", replace(settings, frozen_dtype="keep"))
    assert bytes_of(resumed) == bytes_of(whole) != bytes_of(plain)
    with pytest.raises(InputError, match="frozen_dtype"):
        run(tmp_path / "parts", replace(settings, frozen_dtype="int8"))


def test_a_sharded_model_with_frozen_layers_in_few_bits_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("hybridizer.train.run.open_runtime", lambda recipe, folder: SimpleNamespace(is_fsdp=True))
    train = {"data": [{"path": "x.txt"}], "stages": [{"tokens": 100}, {"tokens": 100, "frozen_dtype": "int8"}]}
    layout = {"host": "a", "deep": "a", "shallow": "a", "boundary": 2}
    recipe = write_recipe(tmp_path / "x.yaml", donors={"a": "a"}, layout=layout, train=train)
    with pytest.raises(RecipeError, match="not kept in 8 or 4 bits in a model that FSDP2 shards"):
        join_processes(load_recipe(recipe, ()), tmp_path)


@pytest.mark.parametrize(
    ("kind", "device", "refused"), [("fp8", "cpu", True), ("int8", "cpu", False), ("fp8", "cuda", False)]
)
def test_fp8_is_refused_where_processes_on_cpus_would_send_it(tmp_path, monkeypatch, kind, device, refused):
    monkeypatch.setenv("WORLD_SIZE", "2")
    runtime = SimpleNamespace(is_fsdp=False, num_ranks=2, device=SimpleNamespace(type=device))
    monkeypatch.setattr("hybridizer.train.run.open_runtime", lambda recipe, folder: runtime)
    train = {"data": [{"path": "x.txt"}], "tokens": 100, "frozen_dtype": kind}
    layout = {"host": "a", "deep": "a", "shallow": "a", "boundary": 2}
    recipe = load_recipe(write_recipe(tmp_path / "x.yaml", donors={"a": "a"}, layout=layout, train=train), ())
    if refused:
        with pytest.raises(RecipeError, match="fp8 cannot be sent between the 2 processes"):
            join_processes(recipe, tmp_path)
    else:
        assert join_processes(recipe, tmp_path) is runtime


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pages are those of Linux")
def test_pages_of_a_file_leave_memory_and_what_is_in_no_file_stays(tmp_path):
    own = torch.randn(2**20)
    save_file({"a": torch.randn(2**20)}, tmp_path / "x.safetensors")
    mapped = load_file(tmp_path / "x.safetensors")["a"]
    sums = [float(tensor.sum()) for tensor in (own, mapped)]
    status = Path("/proc/self/status")
    before = int(re.search(r"RssFile:\s+(\d+)", status.read_text())[1])
    page_out([own, mapped])
    assert before - int(re.search(r"RssFile:\s+(\d+)", status.read_text())[1]) > 3500  # kB
    assert [float(tensor.sum()) for tensor in (own, mapped)] == sums
