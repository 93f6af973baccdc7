from dataclasses import replace

import pytest
import torch
from torch.nn.attention import flex_attention as flex_module
from train.test_prepare import job_of

from hybridizer.models.objective import CausalLMLoss
from hybridizer.models.parts import find_parts
from hybridizer.train import packed_attention as packed_module
from hybridizer.train import prepare as prepare_module
from hybridizer.train.isolation import documents_leak
from hybridizer.train.packed_attention import FLEX, MIN_FLEX_TOKENS, choose_packed_attention, packed_attention
from hybridizer.train.prepare import prepare
from support.sections import train_section
from support.train_models import tiny_model
from support.train_runs import data_in

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
TOKENS, LONG_ROW = 40, 4096
# Of the code of torch and transformers.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore:The .grad attribute of a Tensor",
    "ignore:flex_attention called without torch.compile",
)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of capability 9.0 with Triton, as far as the choice looks at one."""
    monkeypatch.setattr(packed_module, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


@pytest.fixture
def flex_on_cpu(monkeypatch):
    """flex attention by its own mathematics: neither compiled nor refused for want of a backward kernel on CPUs."""
    from transformers.integrations import flex_attention as wrapped

    plain_compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **_: plain_compile(function, backend="eager"))
    monkeypatch.setattr(flex_module, "_validate_device", lambda *_: None)
    monkeypatch.setattr(wrapped.WrappedFlexAttention, "_is_flex_compiled", False)
    monkeypatch.setattr(wrapped.WrappedFlexAttention, "_instance", None)


def objective_of(model_type, **overrides):
    model = tiny_model(model_type, **overrides)
    return CausalLMLoss(model, find_parts(model.eval()))


def packed_rows():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 200, (2, TOKENS), generator=generator)
    positions = torch.stack(
        [torch.cat([torch.arange(n) for n in lengths]) for lengths in ((TOKENS,), (7, 20, TOKENS - 27))]
    )
    return ids, positions


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma3_text"])
def test_flex_attention_is_chosen_on_cuda_for_families_that_support_it(gpu, model_type):
    assert choose_packed_attention(tiny_model(model_type), CUDA, LONG_ROW) == FLEX


def test_short_rows_keep_the_mask_that_costs_them_little(gpu):
    model = tiny_model("llama")
    assert choose_packed_attention(model, CUDA, MIN_FLEX_TOKENS - 1) is None
    assert choose_packed_attention(model, CUDA, MIN_FLEX_TOKENS) == FLEX


def test_the_dense_mask_stays_where_flex_attention_cannot_run(gpu, monkeypatch):
    model = tiny_model("llama")
    assert choose_packed_attention(model, CPU, LONG_ROW) is None
    assert choose_packed_attention(tiny_model("bloom"), CUDA, LONG_ROW) is None
    assert choose_packed_attention(tiny_model("llama", attention_dropout=0.1), CUDA, LONG_ROW) is None
    assert choose_packed_attention(torch.nn.Linear(2, 2), CUDA, LONG_ROW) is None
    model.set_attn_implementation("eager")
    assert choose_packed_attention(model, CUDA, LONG_ROW) is None
    model.set_attn_implementation("sdpa")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert choose_packed_attention(model, CUDA, LONG_ROW) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert choose_packed_attention(model, CUDA, LONG_ROW) == FLEX
    monkeypatch.setattr(packed_module, "find_spec", lambda name: None)
    assert choose_packed_attention(model, CUDA, LONG_ROW) is None


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_loss_and_gradients_are_those_of_the_dense_mask(flex_on_cpu, model_type):
    objective = objective_of(model_type)
    ids, positions = packed_rows()
    trained = list(objective.requires_grad_().parameters())

    def computed():
        loss = objective(ids, positions, ids)
        return [loss.detach(), *torch.autograd.grad(loss, trained)]

    dense = computed()
    with packed_attention(objective, FLEX, 200, TOKENS) as attention:
        assert attention == objective.model.config._attn_implementation == FLEX
        assert not documents_leak(objective, 200, TOKENS)
        flex = computed()
    assert objective.model.config._attn_implementation == "sdpa"
    assert any(not torch.equal(a, b) for a, b in zip(dense, flex, strict=True)), "flex attention did not run"
    for a, b in zip(dense, flex, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(a.abs().max()))  # sums in another order


@pytest.mark.slow
def test_a_kernel_without_gradients_leaves_the_dense_mask(flex_on_cpu, monkeypatch):
    objective = objective_of("llama").requires_grad_()

    def refuse(*_):
        raise NotImplementedError("FlexAttention does not support backward on CPU.")

    monkeypatch.setattr(flex_module, "_validate_device", refuse)
    with packed_attention(objective, FLEX, 200, TOKENS) as attention:
        assert attention == objective.model.config._attn_implementation == "sdpa"


@pytest.mark.slow
def test_attention_that_lets_documents_through_is_not_taken(flex_on_cpu, monkeypatch):
    from transformers import masking_utils

    objective = objective_of("llama").requires_grad_()
    plain = masking_utils.flex_attention_mask

    def forgetful(**given):
        return plain(**{**given, "mask_function": masking_utils.causal_mask_function})

    monkeypatch.setitem(masking_utils.ALL_MASK_ATTENTION_FUNCTIONS, FLEX, forgetful)
    with packed_attention(objective, FLEX, 200, TOKENS) as attention:
        assert attention == "sdpa"


@pytest.mark.parametrize(("model_type", "packed", "asked"), [
    ("llama", True, True), ("llama", False, False), ("mamba2", True, False),
])  # fmt: skip
def test_packed_rows_without_separate_modules_ask_for_it(tmp_path, monkeypatch, model_type, packed, asked):
    seen = []
    monkeypatch.setattr(
        prepare_module, "choose_packed_attention", lambda model, device, row_tokens: seen.append(device)
    )
    section = train_section(precision="float32", packed=packed)
    job = replace(job_of(tmp_path, model_type, section), data=data_in(tmp_path / "rows", packed=packed))
    with prepare(job, CPU):
        assert seen == ([CPU] if asked else [])
