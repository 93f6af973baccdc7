"""A trait is rewritten in every encoding that a file uses, and a file never contradicts itself afterwards."""

from __future__ import annotations

from typing import Any

import pytest

from hybridizer.families.attention import attention_of
from hybridizer.families.encodings import CannotExpress
from hybridizer.families.families import read_traits
from hybridizer.families.mlp import mlp_of

FULL, SLIDING = "full_attention", "sliding_attention"


def test_an_old_pattern_is_kept_where_it_can_express_the_order() -> None:
    edited = attention_of("gemma3_text").encode({"sliding_window_pattern": 3}, (SLIDING, FULL) * 2)
    assert edited == {"sliding_window_pattern": 2}


def test_a_list_replaces_a_pattern_that_cannot_express_the_order() -> None:
    edited = attention_of("gemma3_text").encode({"sliding_window_pattern": 3}, (FULL, SLIDING))
    assert edited == {"layer_types": [FULL, SLIDING]}


def test_a_new_value_is_written_in_the_oldest_encoding_that_can_express_it() -> None:
    assert attention_of("gemma3_text").encode({}, (SLIDING, FULL) * 2) == {"sliding_window_pattern": 2}
    assert attention_of("gemma3_text").encode({}, (SLIDING,) * 3) == {}


def test_both_encodings_of_a_file_are_rewritten() -> None:
    config = {"layer_types": [FULL, FULL, SLIDING], "max_window_layers": 2, "use_sliding_window": True}
    edited = attention_of("qwen2").encode(config, (FULL, SLIDING, SLIDING, SLIDING))
    assert edited == {
        "layer_types": [FULL, SLIDING, SLIDING, SLIDING],
        "max_window_layers": 1,
        "use_sliding_window": True,
    }


def test_an_encoding_that_cannot_express_the_new_order_is_removed() -> None:
    config = {"layer_types": [FULL, SLIDING], "max_window_layers": 1, "use_sliding_window": True}
    edited = attention_of("qwen2").encode(config, (SLIDING, FULL))
    assert edited == {"layer_types": [SLIDING, FULL], "use_sliding_window": True}


def test_a_nested_encoding_leaves_other_keys_unchanged() -> None:
    nested = {"full_attn_layers": [2], "kda_layers": [1], "head_dim": 128}
    edited = attention_of("kimi_linear").encode({"linear_attn_config": nested}, (FULL, "linear_attention", FULL))
    assert edited == {"linear_attn_config": {"full_attn_layers": [1, 3], "kda_layers": [2], "head_dim": 128}}


def test_an_unchanged_order_leaves_the_config_unchanged() -> None:
    config: dict[str, Any] = {"layer_types": ["mamba", "attention"], "no_rope_layers": [True, False], "other": 1}
    assert attention_of("granitemoehybrid").encode(config, ("linear_attention", FULL)) == config


@pytest.mark.parametrize(
    ("family", "values", "words"),
    [
        ("jamba", (FULL, FULL, "mamba"), "by period and offset"),
        ("olmo_hybrid", (FULL, FULL), "at least one linear_attention layer"),
        ("gemma4_text", (FULL, SLIDING), "at the very end"),
        ("rwkv", ("rwkv",), "at least two layers"),
        ("falcon_h1", (FULL,), "every layer is hybrid"),
    ],
)
def test_orders_that_a_family_cannot_express_are_refused(family: str, values: tuple[str, ...], words: str) -> None:
    with pytest.raises(CannotExpress, match=words):
        attention_of(family).encode({}, values)


def test_a_missing_list_without_a_default_rule_is_reported() -> None:
    with pytest.raises(ValueError, match="`full_attn_idxs` or `layer_types` is missing"):
        attention_of("lfm2_moe").decode({}, 2)


def test_sparse_layers_keep_their_step_where_it_fits() -> None:
    trait = mlp_of("qwen2_moe")
    assert trait is not None
    config = {"decoder_sparse_step": 2, "mlp_only_layers": []}
    assert trait.encode(config, ("dense", "moe", "dense", "dense")) == {
        "decoder_sparse_step": 2,
        "mlp_only_layers": [3],
    }
    assert trait.encode(config, ("moe", "dense")) == {"decoder_sparse_step": 1, "mlp_only_layers": [1]}


def test_the_traits_of_a_family_have_different_names() -> None:
    for family in ("llama", "llama4_text", "hunyuan_v1_moe", "gemma4_text", "glm_moe_dsa"):
        names = [trait.name for trait in read_traits(family)]
        assert len(names) == len(set(names)), family
