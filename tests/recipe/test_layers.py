"""Lists of layers: every spelling, every refusal, and there and back again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridizer.core.errors import RecipeError
from hybridizer.recipe.layers import MAX_LAYERS, expand, first_deep_layer, format_layers, read_ranges


@pytest.mark.parametrize(
    ("value", "layers"),
    [
        (3, (3,)),
        ("3", (3,)),
        ("0..3", (0, 1, 2, 3)),
        (" 5 .. 6 ", (5, 6)),
        ("7..7", (7,)),
        ("0..1, 4", (0, 1, 4)),
        (["0..1", 4, "2, 2"], (0, 1, 4, 2, 2)),
        ([2, 1, 0], (2, 1, 0)),
        (MAX_LAYERS - 1, (MAX_LAYERS - 1,)),
    ],
)
def test_reads_every_spelling(value: object, layers: tuple[int, ...]) -> None:
    assert expand(read_ranges(value)) == layers


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("14..0", "layers 14..0 run backwards.\n  Write 0..14, or list the layers one by one"),
        ([], "an empty list of layers.\n  Name at least one layer, or leave `layers` out"),
        (-1, "layer -1 does not exist; layers count from 0."),
        ("-1..3", "'-1..3' is not a layer or a range"),
        (1.5, "the number 1.5 is not a layer."),
        (True, "true is not a layer."),
        ([[1]], "a list is not a layer."),
        ("", "'' is not a layer or a range"),
        ("1,,2", "'' is not a layer or a range"),
        ("0...3", "'0...3' is not a range of layers.\n  Write it as 0..3."),
        ("0-3", "'0-3' is not a range of layers.\n  Write it as 0..3."),
        ("0 to 3", "'0 to 3' is not a range of layers.\n  Write it as 0..3."),
        ("٣", "'٣' is not a layer or a range"),
        (f"0..{MAX_LAYERS}", f"layer {MAX_LAYERS} requested; the limit is layer {MAX_LAYERS - 1}"),
        (f"0..{'9' * 5000}", "is not a layer or a range"),
        ([f"0..{MAX_LAYERS - 1}", 0], f"{MAX_LAYERS + 1} layers in one list; {MAX_LAYERS} is the limit."),
        (["0..9999"] * 20_000, "200000000 layers in one list"),
    ],
)
def test_refuses_with_the_way_out(value: object, words: str) -> None:
    with pytest.raises(RecipeError) as refusal:
        read_ranges(value, "here")
    assert str(refusal.value).startswith("here: ")
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("layers", "text"),
    [((), "none"), ((4,), "4"), ((0, 1, 2), "0..2"), ((2, 1, 0), "2, 1, 0"), ((0, 1, 1, 2, 9), "0..1, 1..2, 9")],
)
def test_formats_runs_as_ranges(layers: tuple[int, ...], text: str) -> None:
    assert format_layers(layers) == text


@given(st.lists(st.integers(0, 12), min_size=1))
def test_what_is_formatted_is_read_back(layers: list[int]) -> None:
    assert expand(read_ranges(format_layers(layers))) == tuple(layers)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text("0123456789., -"), st.lists, max_leaves=5
    )
)
def test_any_value_is_read_or_refused(value: object) -> None:
    try:
        layers = expand(read_ranges(value))
    except RecipeError:
        return
    assert layers
    assert all(0 <= layer < MAX_LAYERS for layer in layers)


@pytest.mark.parametrize(
    ("share", "num_layers", "layer"),
    [
        (0.33, 30, 10),
        (0.5, 30, 15),
        (0.66, 30, 20),
        (0.5, 3, 2),
        (0.001, 9, 1),
        (0.999, 9, 8),
        (0.5, 2, 1),
        (0.5, 1, 0),
    ],
)
def test_a_share_of_the_depth_is_a_layer_with_layers_on_both_sides(share: float, num_layers: int, layer: int) -> None:
    assert first_deep_layer(share, num_layers) == layer


@pytest.mark.parametrize("layer", [0, 3, 30, 99])
def test_a_boundary_that_is_a_layer_is_that_layer_in_every_donor(layer: int) -> None:
    assert first_deep_layer(layer, 30) == layer
