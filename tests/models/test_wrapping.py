import re
from pathlib import Path

import pytest
import torch

import hybridizer
from hybridizer.models.objective import CausalLMLoss
from hybridizer.models.parts import find_parts
from hybridizer.models.wrapping import recomputing, replaced_forward, wrapped_forward
from hybridizer.train.freeze import apply_freeze_, plan_freeze
from support.sections import train_section
from support.train_models import tiny_model

IDS = torch.arange(24)[None] + 3


@pytest.mark.parametrize("freeze", ["deep", "shallow"])
def test_recomputed_layers_give_the_same_gradients_with_a_frozen_side(freeze):
    model = tiny_model("llama")
    parts = find_parts(model)
    apply_freeze_(model, plan_freeze(model, parts, train_section(freeze=freeze), boundary=2))
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


def test_a_module_gets_back_the_forward_pass_it_had_even_after_an_error():
    plain, hooked = torch.nn.Identity(), torch.nn.Identity()
    hooked.forward = own = lambda x: x + 1
    with pytest.raises(KeyError), replaced_forward({plain: lambda x: x * 2, hooked: lambda x: x * 3}):
        assert (plain(4), hooked(4)) == (8, 12)
        raise KeyError
    assert "forward" not in vars(plain) and hooked.forward is own


def test_a_module_that_is_listed_twice_is_wrapped_once():
    module = torch.nn.Identity()
    with wrapped_forward([module, module], lambda forward: lambda x: forward(x) + 1):
        assert module(1) == 2
    assert module(1) == 1


def test_one_module_of_the_package_sets_forward():
    package = Path(hybridizer.__file__).parent
    setting = [path.stem for path in package.rglob("*.py") if re.search(r"\.forward = ", path.read_text())]
    assert setting == ["wrapping"]
