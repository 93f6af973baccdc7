import pytest
import torch
from torch import nn
from torch.nn import functional

from hybridizer.train import fused as module
from hybridizer.train.fused import GELU, SILU, TANH_GELU, fused, gated_network, rms_norm
from support.train_models import tiny_model

ROWS, WIDTH, WIDE = 300, 40, 56


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(module, "PIECE", 7 * WIDTH)  # so that there are many, and a last one that is shorter


def gradients(output, *inputs):
    slope = torch.linspace(-1, 1, output.numel()).view(output.shape).to(output.dtype)
    return torch.autograd.grad(output, inputs, slope)


@pytest.mark.parametrize("shape", [(ROWS, WIDTH), (3, 100, WIDTH)])
def test_rms_norm_and_its_gradients_are_those_of_its_formula(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32).requires_grad_()
    weight = torch.linspace(0.5, 2, WIDTH).requires_grad_()
    ours = rms_norm(x, weight, 1e-5)
    theirs = weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    for our, their in zip(gradients(ours, x, weight), gradients(theirs, x, weight), strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-4)


def test_a_norm_around_one_and_its_gradients_are_those_of_its_formula():
    x = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.linspace(-0.5, 1, WIDTH).requires_grad_()
    ours = rms_norm(x, weight, 1e-5, around_one=True)
    theirs = (1 + weight) * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    for our, their in zip(gradients(ours, x, weight), gradients(theirs, x, weight), strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", [SILU, GELU, TANH_GELU], ids=["silu", "gelu", "tanh gelu"])
def test_a_gated_network_and_its_gradients_are_those_of_its_formula(activation):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 100, WIDTH, generator=generator).requires_grad_()
    gate, up, down = (
        torch.randn(s, generator=generator).requires_grad_() for s in [(WIDE, WIDTH)] * 2 + [(WIDTH, WIDE)]
    )
    ours = gated_network(x, gate, up, down, activation)
    theirs = functional.linear(activation.apply(x @ gate.T) * (x @ up.T), down)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    inputs = (x, gate, up, down)
    for our, their in zip(gradients(ours, *inputs), gradients(theirs, *inputs), strict=True):
        # float32 sums of 300 terms of size up to 1000
        torch.testing.assert_close(our, their, rtol=1e-4, atol=2e-2)


def test_frozen_weights_get_no_gradient_and_may_be_of_low_precision():
    x = torch.randn(5, WIDTH, requires_grad=True)
    gate, up, down = (torch.randn(s).bfloat16() for s in [(WIDE, WIDTH)] * 2 + [(WIDTH, WIDE)])
    (low,) = gradients(gated_network(x, gate, up, down), x)
    (exact,) = gradients(gated_network(x, gate.float(), up.float(), down.float()), x)
    assert torch.equal(low, exact)


@pytest.mark.parametrize(("model_type", "norms"), [("llama", 9), ("qwen3", 17), ("mistral", 9), ("gemma3_text", 25)])
def test_a_model_computes_the_same_with_its_norms_and_networks_replaced(model_type, norms):
    model = tiny_model(model_type)
    ids = torch.arange(40)[None] + 3
    loss = model(input_ids=ids, labels=ids).loss
    theirs = torch.autograd.grad(loss, list(model.parameters()))
    with fused(model) as counts:
        inside = model(input_ids=ids, labels=ids).loss
        ours = torch.autograd.grad(inside, list(model.parameters()))
    assert counts == (norms, 4)
    torch.testing.assert_close(inside, loss, rtol=1e-6, atol=0)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-3, atol=1e-5)
    assert not any("forward" in vars(part) for part in model.modules())


@pytest.mark.parametrize(("function", "expected"), [("silu", SILU), ("gelu", GELU), ("gelu_pytorch_tanh", TANH_GELU)])
def test_the_activation_of_a_low_precision_model_is_not_mistaken(function, expected):
    model = tiny_model("llama", hidden_act=function).bfloat16()
    with fused(model) as counts:
        assert counts[1] == 4
        assert all(layer.mlp.forward.args[1] is expected for layer in model.model.layers)
    with fused(tiny_model("llama", hidden_act="relu").bfloat16()) as counts:
        assert counts[1] == 0


@pytest.mark.parametrize("model_type", ["cohere", "gpt2", "mamba2", "gemma2"])
def test_what_computes_something_else_is_left_alone(model_type):
    model = tiny_model(model_type)
    ids = torch.arange(20)[None] + 3
    expected = model.eval()(input_ids=ids).logits
    with fused(model):
        torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=1e-5, atol=1e-5)


class HalfNorm(nn.Module):
    """Looks like an RMS norm and is none."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))
        self.eps = 1e-5

    def forward(self, x):
        return 0.5 * rms_norm(x, self.weight, self.eps)


def test_a_look_alike_is_found_out_by_what_it_computes():
    with fused(nn.Sequential(HalfNorm())) as counts:
        assert counts == (0, 0)


def test_a_gated_network_keeps_three_activations():
    kept = []
    x = torch.randn(ROWS, WIDTH, requires_grad=True)
    weights = [torch.randn(s, requires_grad=True) for s in [(WIDE, WIDTH)] * 2 + [(WIDTH, WIDE)]]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        gated_network(x, *weights)
    assert sorted(shape for shape in kept if shape[0] == ROWS) == [(ROWS, WIDTH), (ROWS, WIDE), (ROWS, WIDE)]


class HeadNorm(torch.nn.RMSNorm):
    """Looks like any norm, and wants its input by heads."""

    def forward(self, x):
        _rows, _tokens, _heads, width = x.shape
        return super().forward(x) if width else x


def test_a_norm_that_wants_another_shape_is_left_alone():
    model = torch.nn.Sequential(HeadNorm(8, eps=1e-6))
    with fused(model) as counts:
        assert counts == (0, 0)
