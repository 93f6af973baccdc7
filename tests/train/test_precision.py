import copy

import pytest
import torch
from torch import nn

from hybridizer.models.objective import CausalLMLoss
from hybridizer.models.parts import find_parts
from hybridizer.plan.freeze import FreezeSettings
from hybridizer.train.freeze import apply_freeze_, plan_freeze, tensor_sha256
from hybridizer.train.precision import MixedLinear, WorkingPrecision, choose_dtype
from support.train_models import tiny_model

IDS = torch.arange(24)[None] + 3
BATCH = (IDS, torch.arange(24)[None], IDS)


def prepared(model, dtype):
    parts = find_parts(model.eval())
    plan = plan_freeze(model, parts, FreezeSettings("deep"), boundary=2)
    apply_freeze_(model, plan)
    return parts, plan, WorkingPrecision(model, plan, dtype)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma3_text", "mamba2"])
@pytest.mark.parametrize("stored, computed", [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_frozen_tensors_get_their_own_bytes_back(model_type, stored, computed):
    model = tiny_model(model_type).to(getattr(torch, stored))
    before = {name: tensor_sha256(p) for name, p in model.named_parameters()}
    parts, plan, working = prepared(model, getattr(torch, computed))
    CausalLMLoss(model, parts)(*BATCH).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    working.restore_()
    after = {name: tensor_sha256(p) for name, p in model.named_parameters()}
    assert all(after[name] == before[name] for name in plan.frozen)
    assert not any(type(module) is MixedLinear for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


def test_float32_over_a_bfloat16_checkpoint_is_what_a_float32_copy_gives():
    low = tiny_model("llama").to(torch.bfloat16)
    exact = copy.deepcopy(low).float()
    parts, plan, _ = prepared(low, torch.float32)
    frozen = dict(low.named_parameters())["model.layers.3.mlp.up_proj.weight"]
    assert frozen.dtype == torch.bfloat16  # kept low while it computes
    exact_parts = find_parts(exact)
    apply_freeze_(exact, plan)
    ours, theirs = CausalLMLoss(low, parts)(*BATCH), CausalLMLoss(exact, exact_parts)(*BATCH)
    assert torch.equal(ours, theirs)
    ours.backward()
    theirs.backward()
    for (name, p), q in zip(low.named_parameters(), exact.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=1e-8)


def test_a_mixed_layer_keeps_no_cast_copy_of_its_weight():
    layer = nn.Linear(8, 6, bias=True, dtype=torch.bfloat16).requires_grad_(False)
    layer.__class__ = MixedLinear
    kept = []
    x = torch.randn(3, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.dtype) or t, lambda t: t):
        output = layer(x)
    assert kept == [torch.bfloat16]
    torch.testing.assert_close(output, nn.functional.linear(x, layer.weight.float(), layer.bias.float()))


def test_auto_takes_bfloat16_only_where_the_device_has_it(bfloat16_cpu):
    cpu = torch.device("cpu")
    assert choose_dtype("auto", cpu) == (torch.bfloat16 if bfloat16_cpu else torch.float32)
    assert choose_dtype("bfloat16", cpu) == torch.bfloat16
    assert choose_dtype("float32", cpu) == torch.float32
