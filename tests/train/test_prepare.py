import contextlib
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from hybridizer.core.errors import InputError
from hybridizer.models import hardware as hardware_module
from hybridizer.models.objective import predicted_places
from hybridizer.models.parts import find_parts
from hybridizer.train import prepare as prepare_module
from hybridizer.train.freeze import apply_freeze_, plan_freeze, tensor_sha256
from hybridizer.train.job import TrainJob
from hybridizer.train.prepare import prepare
from support.host_reads import HostReads
from support.sections import train_section
from support.train_models import tiny_model
from support.train_runs import data_in

CPU = torch.device("cpu")
SECTION = train_section(precision="float32")


def job_of(folder, model_type, settings, stored=torch.float32):
    model = tiny_model(model_type, vocab_size=257).to(stored)
    parts = find_parts(model.eval())
    plan = plan_freeze(model, parts, settings, boundary=2)
    apply_freeze_(model.train(), plan)
    return TrainJob(model, parts, plan, data_in(folder), settings, "sha256:plan")


def structure_of(model):
    """Everything about a model but its values: classes, attributes, hooks and modes of its modules."""
    return {
        name: (type(module), set(vars(module)), module.training, hooks_of(module))
        for name, module in model.named_modules()
    }


def hooks_of(module):
    return [len(value) for name, value in vars(module).items() if name.endswith("_hooks")]


def tensors_of(model, names):
    parameters = dict(model.named_parameters())
    return {
        name: (id(parameters[name]), parameters[name].requires_grad, tensor_sha256(parameters[name])) for name in names
    }


CHANGES = [{}, {"gradient_checkpointing": True}, {"compile": True}, {"compile": True, "gradient_checkpointing": True}]


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "mamba2"])
@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_a_prepared_model_is_given_back_as_it_was(tmp_path, monkeypatch, model_type, changes):
    plain_compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: plain_compile(function, backend="eager"))
    job = job_of(tmp_path, model_type, replace(SECTION, **changes))
    model, names = job.model, [*job.freeze_plan.trained, *job.freeze_plan.frozen]
    structure, tensors = structure_of(model), tensors_of(model, names)
    with prepare(job, CPU) as prepared:
        assert structure_of(model) != structure
        assert prepared.dtype == torch.float32
        assert (prepared.documents.num_modules > 0) == (model_type == "mamba2")
    assert structure_of(model) == structure
    assert tensors_of(model, names) == tensors


@pytest.mark.parametrize(("stored", "precision"), [(torch.bfloat16, "float32"), (torch.float32, "bfloat16")])
def test_frozen_tensors_keep_their_bytes_whatever_computes(tmp_path, stored, precision):
    job = job_of(tmp_path, "llama", replace(SECTION, precision=precision), stored)
    structure, frozen = structure_of(job.model), tensors_of(job.model, job.freeze_plan.frozen)
    with prepare(job, CPU) as prepared:
        assert str(prepared.dtype) == f"torch.{precision}"
    assert structure_of(job.model) == structure
    assert tensors_of(job.model, job.freeze_plan.frozen) == frozen


def test_a_model_that_is_refused_is_given_back_too(tmp_path):
    job = job_of(tmp_path, "bloom", SECTION)
    structure = structure_of(job.model)
    with pytest.raises(InputError, match="Set `packed: false`"), prepare(job, CPU):
        raise AssertionError("documents that cannot be isolated were let pass")
    assert structure_of(job.model) == structure


@pytest.mark.parametrize(("precision", "hardware", "compile_layers", "ours"), [
    ("float32", False, False, True), ("bfloat16", True, False, True), ("bfloat16", False, False, False),
    ("float32", False, True, False),
])  # fmt: skip
def test_attention_runs_document_by_document_where_products_are_not_emulated_or_compiled(
    tmp_path, monkeypatch, precision, hardware, compile_layers, ours
):
    monkeypatch.setattr(hardware_module, "has_bfloat16", lambda device: hardware)
    monkeypatch.setattr(torch, "compile", lambda function: function)
    before = functional.scaled_dot_product_attention
    job = job_of(tmp_path, "llama", replace(SECTION, precision=precision, compile=compile_layers))
    with prepare(job, CPU):
        assert (functional.scaled_dot_product_attention is not before) == ours
    assert functional.scaled_dot_product_attention is before


def test_layers_are_not_compiled_on_a_cpu_by_default(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: pytest.fail("a layer was compiled"))
    job = job_of(tmp_path, "llama", SECTION)
    assert job.settings.compile == "auto"
    with prepare(job, CPU):
        assert not any("forward" in vars(layer) for layer in job.parts.layers)


@pytest.mark.parametrize(("setting", "planned", "wrapped"), [
    (False, (), []), (True, (), [0, 1, 2, 3]), (10**9, (1, 3), [1, 3]), ("auto", (), []),
])  # fmt: skip
def test_the_layers_that_were_planned_are_recomputed_and_all_of_them_by_true(tmp_path, setting, planned, wrapped):
    job = job_of(tmp_path, "llama", replace(SECTION, gradient_checkpointing=setting))
    job = replace(job, recomputed_layers=planned)
    with prepare(job, CPU):
        assert [number for number, layer in enumerate(job.parts.layers) if "forward" in vars(layer)] == wrapped


@pytest.mark.parametrize("model_type", ["llama", "mamba2", "gemma2"])
def test_a_micro_batch_reads_no_value_back(tmp_path, monkeypatch, model_type):
    monkeypatch.setattr(
        prepare_module, "document_attention", lambda dtype: contextlib.nullcontext()
    )  # only there on a CPU
    job = job_of(tmp_path, model_type, SECTION)
    batch = job.data.batches(0)[0]
    batch.targets[:, batch.targets.shape[1] // 2 :] = -100  # so that the head runs on some places only
    places = predicted_places(batch.targets)
    assert places is not None
    with prepare(job, CPU) as prepared:
        prepared.documents.announce(batch.position_ids, CPU)
        with HostReads() as reads:
            inputs = (batch.input_ids, batch.position_ids, batch.targets, batch.sources, places)
            prepared.objective(*inputs)[0].backward()
    assert reads.lines == []
