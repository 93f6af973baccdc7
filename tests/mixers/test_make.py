"""New mixers: what an attention maps to, and that the target's own layer takes the tensors."""

import pytest
import torch

from hybridizer.core.errors import PlanError
from hybridizer.families.mixer_shapes import AttentionShape, delta_net_shape, mamba2_shape, short_conv_shape
from hybridizer.mixers.derive import SKIP
from hybridizer.mixers.make import make_mixer_tensors, make_module

ATTENTION = AttentionShape(hidden_size=32, num_heads=4, num_kv_heads=2, head_dim=8)
GENERATOR = torch.Generator().manual_seed(5)
WEIGHTS = {
    f"self_attn.{name}.weight": torch.randn(rows, columns, generator=GENERATOR)
    for name, rows, columns in (("q_proj", 32, 32), ("k_proj", 16, 32), ("v_proj", 16, 32), ("o_proj", 32, 32))
}
SHAPES = {
    "plain": mamba2_shape(ATTENTION),
    "expand 2": mamba2_shape(ATTENTION, expand=2),
    "state 16": mamba2_shape(ATTENTION, state_size=16),
    "one group": mamba2_shape(ATTENTION, num_groups=1),
    "a group per head": mamba2_shape(ATTENTION, num_groups=4),
    "biases": mamba2_shape(ATTENTION, has_bias=True),
    "delta net": delta_net_shape(ATTENTION, expand=2),
    "short convolution": short_conv_shape(ATTENTION),
}
KINDS = {"delta net": "gated_delta_net", "short convolution": "short_conv"}


def make(shape, init="attention", seed=0):
    kind = next((KINDS[name] for name in KINDS if SHAPES[name] is shape), "mamba2")
    return make_mixer_tensors(kind, init, shape, seed, WEIGHTS, ATTENTION)


def rows(tensors, shape):
    """The gate, x, B, C and step rows of in_proj."""
    state = shape.num_groups * shape.state_size
    sizes = [shape.inner_size, shape.inner_size, state, state, shape.num_heads]
    return tensors["mamba.in_proj.weight"].split(sizes)


def of(name):
    return WEIGHTS[f"self_attn.{name}.weight"]


@pytest.mark.parametrize("init", ["attention", "fresh"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_targets_layer_takes_the_tensors_and_their_shapes_are_known_without_torch(shape, init):
    tensors = make(shape, init)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == shape.tensor_shapes()
    out = make_module(shape, tensors)(torch.randn(2, 9, 32, generator=GENERATOR))
    assert out.shape == (2, 9, 32) and out.isfinite().all()


def test_query_key_value_and_output_become_c_b_x_and_out_proj():
    shape = SHAPES["a group per head"]
    tensors = make(shape)
    _, x, b, c, dt = rows(tensors, shape)
    assert torch.equal(c, of("q_proj")) and torch.equal(tensors["mamba.out_proj.weight"], of("o_proj"))
    pairs = torch.tensor([0, 0, 1, 1])  # the key head of each head
    assert torch.equal(b, of("k_proj").view(2, 8, 32)[pairs].flatten(0, 1))
    assert torch.equal(x, of("v_proj").view(2, 8, 32)[pairs].flatten(0, 1))
    assert not dt.any() and (tensors["mamba.D"] == SKIP).all()
    assert torch.equal(tensors["mamba.conv1d.weight"][:, 0], torch.tensor([0.0, 0, 0, 1]).expand(shape.conv_size, 4))


def test_heads_of_a_group_share_the_mean_of_their_queries():
    shape = SHAPES["plain"]
    _, _, b, c, _ = rows(make(shape), shape)
    torch.testing.assert_close(c, of("q_proj").view(2, 2, 8, 32).mean(dim=1).flatten(0, 1))
    assert torch.equal(b, of("k_proj"))


def test_a_larger_state_splits_the_heads_of_a_group():
    shape = SHAPES["state 16"]
    _, _, b, c, _ = rows(make(shape), shape)
    assert torch.equal(c, of("q_proj"))  # two heads per group, two parts
    assert torch.equal(b, of("k_proj").view(2, 1, 8, 32).expand(2, 2, 8, 32).flatten(0, 2))


def test_wider_mixers_repeat_values_and_divide_the_output_among_them():
    shape = SHAPES["expand 2"]
    tensors = make(shape)
    x = rows(tensors, shape)[1]
    output = tensors["mamba.out_proj.weight"].view(32, 4, 2, 8).sum(dim=2).flatten(1)
    torch.testing.assert_close(output, of("o_proj"))
    assert torch.equal(x.view(2, 4, 8, 32)[0, 1], of("v_proj").view(2, 8, 32)[0])


def test_a_delta_net_keeps_query_key_value_and_output():
    shape = delta_net_shape(ATTENTION, num_groups=4)
    tensors = make_mixer_tensors("gated_delta_net", "attention", shape, 0, WEIGHTS, ATTENTION)
    q, k, v = tensors["linear_attn.in_proj_qkv.weight"].split(32)
    assert torch.equal(q, of("q_proj")) and torch.equal(tensors["linear_attn.out_proj.weight"], of("o_proj"))
    assert torch.equal(k, of("k_proj").view(2, 1, 8, 32).expand(2, 2, 8, 32).flatten(0, 2))
    assert torch.equal(v, of("v_proj").view(2, 1, 8, 32).expand(2, 2, 8, 32).flatten(0, 2))
    assert not tensors["linear_attn.in_proj_a.weight"].any() and not tensors["linear_attn.in_proj_b.weight"].any()


def test_heads_of_a_short_convolution_that_share_a_value_look_at_different_tokens():
    tensors = make(SHAPES["short convolution"])
    x = tensors["conv.in_proj.weight"][64:]
    assert torch.equal(x, of("v_proj").view(2, 1, 8, 32).expand(2, 2, 8, 32).flatten(0, 2))
    last, before = torch.tensor([0.0, 0, 1]), torch.tensor([0.0, 1, 0])
    weight = tensors["conv.conv.weight"].view(4, 8, 3)
    assert torch.equal(weight, torch.stack([last, before, last, before])[:, None].expand(4, 8, 3))


def test_the_memory_of_heads_is_spread_from_one_token_to_a_thousand():
    tensors = make(SHAPES["expand 2"])
    forgotten = tensors["mamba.A_log"].exp() * torch.nn.functional.softplus(tensors["mamba.dt_bias"])
    torch.testing.assert_close(forgotten.sort().values, torch.logspace(-3, 0, 8))


@pytest.mark.parametrize("init", ["attention", "fresh"])
def test_the_seed_decides_what_is_drawn_and_leaves_the_global_generator_alone(init):
    shape, before = SHAPES["plain"], torch.random.get_rng_state()
    first, again, other = make(shape, init, 1), make(shape, init, 1), make(shape, init, 2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(rows(first, shape)[0], rows(other, shape)[0])
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mamba2_shape(ATTENTION, num_groups=3), "3 groups do not divide 4 heads"),
        (lambda: mamba2_shape(AttentionShape(32, 2, 2, 24)), "heads of 24 do not divide the inner width 32"),
        (lambda: make(mamba2_shape(ATTENTION, state_size=12)), "state of 12 is not a multiple"),
        (lambda: make(mamba2_shape(AttentionShape(48, 6, 2, 8))), "6 heads cannot be derived from the attention's 4"),
        (lambda: delta_net_shape(ATTENTION, num_groups=3), "3 groups do not divide 4 heads"),
        (lambda: make(mamba2_shape(AttentionShape(32, 2, 2, 16))), "heads of 16 cannot be derived"),
        (lambda: make_mixer_tensors("mamba3", "fresh", SHAPES["plain"], 0), "no mixer 'mamba3'"),
        (lambda: make_mixer_tensors("mamba2", "atention", SHAPES["plain"], 0), "no init 'atention'"),
    ],
)
def test_what_cannot_be_made_is_refused_with_its_reason(call, words):
    with pytest.raises(PlanError, match=words):
        call()
