import pytest
import torch

from hybridizer.models.objective import CausalLMLoss
from hybridizer.models.parts import find_parts
from hybridizer.models.wrapping import recomputing
from hybridizer.plan.freeze import FreezeSettings
from hybridizer.train.freeze import apply_freeze_, plan_freeze
from support.train_models import tiny_model

IDS = torch.arange(24)[None] + 3


@pytest.mark.parametrize("freeze", ["deep", "shallow"])
def test_recomputed_layers_give_the_same_gradients_with_a_frozen_side(freeze):
    model = tiny_model("llama")
    parts = find_parts(model)
    apply_freeze_(model, plan_freeze(model, parts, FreezeSettings(freeze), boundary=2))
    objective = CausalLMLoss(model, parts)
    named = [p for p in model.parameters() if p.requires_grad]
    plain = torch.autograd.grad(objective(IDS, torch.arange(24)[None], IDS), named)
    kept = []
    with recomputing(parts.layers):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
            loss = objective(IDS, torch.arange(24)[None], IDS)
        again = torch.autograd.grad(loss, named)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    wide = model.config.intermediate_size
    assert not any(wide in shape for shape in kept), "a layer kept more than its input"
    assert not any("forward" in vars(layer) for layer in parts.layers)
