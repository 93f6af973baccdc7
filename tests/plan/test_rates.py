"""Factors on the learning rate: which key counts for which tensor, and keys that hold none."""

import pytest

from hybridizer.plan.rates import find_faults, find_idle, rate_lines, scale_tensors

PLACES = {
    "embed.weight": "embedding",
    **{f"layers.{i}.{part}.weight": f"layer {i}" for i in range(12) for part in ("attn", "mlp")},
    "norm.weight": "final norm",
    "head.weight": "head",
}


def factors(*scales):
    return scale_tensors(scales, PLACES, boundary=6, num_layers=12)


def test_sides_divide_at_the_boundary():
    found = factors(("shallow", 1.0), ("deep", 0.1))
    assert {name for name, factor in found.items() if factor == 0.1} == {
        name for name, place in PLACES.items() if place in ("final norm", "head", *(f"layer {i}" for i in range(6, 12)))
    }


@pytest.mark.parametrize("reverse", [False, True])
def test_a_pattern_counts_before_layers_and_layers_before_a_side(reverse):
    scales = [("deep", 0.1), ("6..8", 0.2), ("*.mlp.*", 0.3)]
    found = factors(*(reversed(scales) if reverse else scales))
    assert (found["layers.7.mlp.weight"], found["layers.7.attn.weight"], found["layers.9.attn.weight"]) == (
        0.3,
        0.2,
        0.1,
    )
    assert (found["layers.1.mlp.weight"], found["layers.1.attn.weight"]) == (0.3, 1.0)


def test_of_two_of_a_kind_the_later_counts():
    assert factors(("*.mlp.*", 0.3), ("layers.7.*", 0.4))["layers.7.mlp.weight"] == 0.4
    assert factors(("layers.7.*", 0.4), ("*.mlp.*", 0.3))["layers.7.mlp.weight"] == 0.3
    assert factors(("1..3", 0.3), ("2", 0.4))["layers.2.mlp.weight"] == 0.4


def test_layer_1_is_not_layer_10():
    found = factors(("1", 0.5))
    assert [name for name, factor in found.items() if factor != 1] == ["layers.1.attn.weight", "layers.1.mlp.weight"]


def test_decay_multiplies_from_the_head_down_to_the_embedding():
    found = factors(("layer_decay", 0.5), ("*.mlp.*", 3.0))
    assert found["head.weight"] == found["norm.weight"] == 1
    assert found["layers.11.attn.weight"] == 0.5 and found["layers.10.mlp.weight"] == 0.75
    assert found["layers.0.attn.weight"] == 0.5**12 and found["embed.weight"] == 0.5**13


def test_a_key_that_holds_no_tensor_is_named_with_names_near_it():
    scales = (("*.mpl.*", 1.0), ("deeep", 1.0), ("5..12", 1.0), ("*.attn.*", 1.0), ("deep", 1.0), ("x", 1.0))
    (pattern, side, layers, strange) = find_faults(scales, PLACES, 6, 12)
    assert pattern[0] == "*.mpl.*" and "Did you mean 'mlp', as in layers.0.mlp.weight" in pattern[2]
    assert side[2] == "Did you mean 'deep'?"
    assert "layers 12 of a model with 12 layers (0..11)" in layers[1]
    assert "such as embed.weight" in strange[2]


def test_a_key_that_holds_only_frozen_tensors_is_idle():
    trained = {name: place for name, place in PLACES.items() if place.startswith("layer ")}
    assert find_idle((("head.*", 0.5), ("deep", 0.5), ("layer_decay", 0.9)), trained, 6) == ("head.*",)


def test_rates_are_shown_once_for_layers_with_the_same():
    found = factors(("deep", 0.5), ("*.mlp.*", 0.1))
    assert rate_lines(found, PLACES, 1e-3) == [
        "layers 0..5: 0.0001 and 0.001", "layers 6..11: 0.0001 and 0.0005", "embedding: 0.001", "final norm: 0.0005",
        "head: 0.0005",
    ]  # fmt: skip
