"""Every encoding reads back what it writes, refuses what it cannot express, and reports invalid values in a file."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridizer.families import rules
from hybridizer.families.encodings import (
    UNSET,
    CannotExpress,
    Encoding,
    Indexed,
    Letters,
    Listed,
    Nested,
    OneOrList,
    Overrides,
    apply_edits,
)

ENCODINGS: dict[str, tuple[Encoding, tuple[Any, ...]]] = {
    "list": (Listed("layer_types"), ("full_attention", "mamba")),
    "list of flags": (Listed("flags", names={1: "rope", 0: "no rope"}), ("rope", "no rope")),
    "letters": (Letters("pattern", {"M": "mamba", "*": "full", "-": "mlp"}), ("mamba", "full", "mlp")),
    "indices": (Indexed("full_attn_idxs", "full", "conv"), ("full", "conv")),
    "indices from 1": (Nested("inner", Indexed("full_layers", "full", "kda", first=1)), ("full", "kda")),
    "one or list": (OneOrList("intermediate_size"), (64, 96)),
    "overrides": (Overrides(), ("{}", '{"head_dim": 32}')),
    "every": (rules.every("n", 4, "full", "sliding"), ("full", "sliding")),
    "every from the first": (rules.every("n", 3, "full", "sliding", from_first=True), ("full", "sliding")),
    "first": (rules.first("k", 1, "dense", "moe"), ("dense", "moe")),
    "period": (rules.period("p", "o", (8, 4), "full", "mamba"), ("full", "mamba")),
    "window from": (rules.window_from("max_window_layers", 28, None), ("full_attention", "sliding_attention")),
    "sparse step": (rules.sparse_step(()), ("dense", "moe")),
    "sparse range": (rules.sparse_range(), ("dense", "moe")),
    "cycle": (rules.cycle("block_types", ("a",), {"a": "attention", "r": "rg-lru"}), ("attention", "rg-lru")),
    "runs": (rules.runs("attention_types", [[["global", "local"], 12]]), ("global", "local")),
}
# These can express every order of their values; the others refuse most.
COMPLETE = {
    *("list", "list of flags", "letters", "indices", "indices from 1", "one or list"),
    *("overrides", "sparse step", "cycle", "runs"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODINGS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_values_that_are_encoded_decode_to_the_same_values(name: str, data: st.DataObject) -> None:
    encoding, alphabet = ENCODINGS[name]
    values = tuple(data.draw(st.lists(st.sampled_from(alphabet), min_size=1, max_size=9)))
    try:
        edited = apply_edits({}, encoding.encode({}, values))
    except CannotExpress:
        assert name not in COMPLETE
        return
    assert encoding.decode(edited, len(values)) == values


@pytest.mark.parametrize(
    ("name", "values", "edits"),
    [
        ("every", ("sliding", "full", "sliding", "full"), {"n": 2}),
        ("every", ("sliding", "sliding"), {}),  # the default of 4 means this already
        ("every from the first", ("full", "sliding", "full"), {"n": 2}),
        ("first", ("dense", "dense", "moe"), {"k": 2}),
        ("period", ("mamba", "full", "mamba", "mamba", "full"), {"p": 3, "o": 1}),
        ("period", ("mamba", "mamba"), {}),
        (
            "sparse range",
            ("dense", "moe", "dense", "moe", "dense"),
            {"moe_layer_start_index": 1, "moe_layer_end_index": 3},
        ),
        ("runs", ("local", "local", "global"), {"attention_types": [[["local"], 2], [["global"], 1]]}),
        ("indices from 1", ("kda", "full"), {"inner": {"full_layers": [2]}}),
        ("overrides", ("{}", '{"head_dim": 32}'), {"per_layer_config": {"1": {"head_dim": 32}}}),
    ],
)
def test_a_rule_is_encoded_by_its_parameters(name: str, values: tuple[str, ...], edits: dict[str, Any]) -> None:
    found = ENCODINGS[name][0].encode({}, values)
    assert edits.items() <= found.items() if edits else found == {}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("every", ("full", "sliding", "sliding")),
        ("first", ("moe", "dense")),
        ("period", ("full", "mamba", "full", "full")),
        ("sparse range", ("moe", "moe", "dense", "moe")),
        ("window from", ("sliding_attention", "full_attention")),
        ("letters", ("moe",)),
        ("indices", ("sliding",)),
        ("overrides", (UNSET, "{}")),
        ("one or list", (64, UNSET)),
    ],
)
def test_orders_that_an_encoding_cannot_express_are_refused(name: str, values: tuple[str, ...]) -> None:
    with pytest.raises(CannotExpress):
        ENCODINGS[name][0].encode({}, values)


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("list", {"layer_types": ["full_attention"]}, "`layer_types` has 1 entries, and the model has 2 layers"),
        ("list", {"layer_types": "full_attention"}, "a list with one entry per layer"),
        ("list", {"layer_types": [{}, {}]}, "holds {}"),
        ("letters", {"pattern": "M"}, "1 letters"),
        ("letters", {"pattern": "M?"}, "one letter of M"),
        ("letters", {"pattern": 7}, "per layer is expected"),
        ("indices", {"full_attn_idxs": [2]}, "layers 0..1"),
        ("indices", {"full_attn_idxs": "01"}, "layers 0..1"),
        ("indices from 1", {"inner": {"full_layers": [0]}}, "layers 1..2"),
        ("overrides", {"per_layer_config": {"2": {}}}, "names layer 2"),
        ("overrides", {"per_layer_config": [1]}, "a dict of dicts"),
        ("every", {"n": 0}, "at least 1"),
        ("every", {"n": "two"}, "`n` is 'two'"),
        ("first", {"k": [1]}, "a whole number"),
        ("period", {"p": 2, "o": 2}, "outside"),
        ("sparse step", {"mlp_only_layers": 3}, "`mlp_only_layers` is 3"),
        ("cycle", {"block_types": ["x"]}, "a list of names among a, r"),
        ("runs", {"attention_types": [1]}, "[[names, repeats], ...]"),
        ("runs", {"attention_types": [[["global"], 3]]}, "gives 3 layers"),
    ],
)
def test_an_invalid_value_is_reported_with_its_key(name: str, config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as caught:
        ENCODINGS[name][0].decode(config, 2)
    assert words in str(caught.value)


def test_old_names_are_kept_where_the_file_uses_them() -> None:
    encoding = Listed("layer_types", old_names={"mamba": "linear_attention", "attention": "full_attention"})
    values = ("full_attention", "linear_attention")
    assert encoding.encode({"layer_types": ["mamba", "mamba"]}, values) == {"layer_types": ["attention", "mamba"]}
    assert encoding.encode({"layer_types": ["linear_attention"]}, values) == {"layer_types": list(values)}


def test_a_single_value_stays_single_where_it_can() -> None:
    encoding = OneOrList("moe_topk")
    assert encoding.encode({"moe_topk": 2}, (4, 4)) == {"moe_topk": 4}
    assert encoding.encode({"moe_topk": 2}, (4, 2)) == {"moe_topk": [4, 2]}
    assert encoding.encode({"moe_topk": [1, 2]}, (4, 4)) == {"moe_topk": [4, 4]}


def test_the_residual_scale_is_equal_in_float32_after_every_change_of_depth() -> None:
    encoding = rules.residual_scale()
    for old_depth in range(1, 80, 3):
        values = encoding.decode({"scale_depth": 1.4}, old_depth)
        assert values is not None
        for new_depth in range(1, 100):
            wanted = (values[0],) * new_depth
            edited = apply_edits({"scale_depth": 1.4}, encoding.encode({"scale_depth": 1.4}, wanted))
            assert encoding.decode(edited, new_depth) == wanted


def test_residual_scale_is_read_as_transformers_reads_it() -> None:
    encoding = rules.residual_scale()
    assert encoding.decode({}, 1) == pytest.approx((1.4,), rel=1e-7)  # rel: float32
    assert encoding.decode({"scale_depth": None}, 9) == (1.0,) * 9
    assert encoding.decode({"scale_depth": 3}, 9) == (1.0,) * 9
