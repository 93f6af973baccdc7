"""A trait is rewritten in every encoding that a file uses, and a file never ends up saying two things."""

from __future__ import annotations

from typing import Any

import pytest

from hybridizer.families.attention import attention_of
from hybridizer.families.encodings import CannotExpress
from hybridizer.families.families import read_traits
from hybridizer.families.mlp import mlp_of

FULL, SLIDING = "full_attention", "sliding_attention"


def test_old_pattern_is_kept_while_it_can_say_the_order() -> None:
    edited = attention_of("gemma3_text").encode({"sliding_window_pattern": 3}, (SLIDING, FULL) * 2)
    assert edited == {"sliding_window_pattern": 2}


def test_explicit_list_replaces_a_pattern_that_cannot_say_the_order() -> None:
    edited = attention_of("gemma3_text").encode({"sliding_window_pattern": 3}, (FULL, SLIDING))
    assert edited == {"layer_types": [FULL, SLIDING]}


def test_what_nothing_says_yet_is_said_in_the_oldest_way_that_suffices() -> None:
    assert attention_of("gemma3_text").encode({}, (SLIDING, FULL) * 2) == {"sliding_window_pattern": 2}
    assert attention_of("gemma3_text").encode({}, (SLIDING,) * 3) == {}


def test_both_spellings_of_a_file_are_rewritten() -> None:
    config = {"layer_types": [FULL, FULL, SLIDING], "max_window_layers": 2, "use_sliding_window": True}
    edited = attention_of("qwen2").encode(config, (FULL, SLIDING, SLIDING, SLIDING))
    assert edited == {
        "layer_types": [FULL, SLIDING, SLIDING, SLIDING],
        "max_window_layers": 1,
        "use_sliding_window": True,
    }


def test_a_stale_weaker_spelling_is_taken_out() -> None:
    config = {"layer_types": [FULL, SLIDING], "max_window_layers": 1, "use_sliding_window": True}
    edited = attention_of("qwen2").encode(config, (SLIDING, FULL))
    assert edited == {"layer_types": [SLIDING, FULL], "use_sliding_window": True}


def test_nested_spellings_leave_their_neighbours_alone() -> None:
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
def test_orders_beyond_a_family_are_refused(family: str, values: tuple[str, ...], words: str) -> None:
    with pytest.raises(CannotExpress, match=words):
        attention_of(family).encode({}, values)


def test_a_missing_list_without_a_rule_is_named() -> None:
    with pytest.raises(ValueError, match="`full_attn_idxs` or `layer_types` is missing"):
        attention_of("lfm2_moe").decode({}, 2)


def test_sparse_layers_keep_the_step_where_they_can() -> None:
    trait = mlp_of("qwen2_moe")
    assert trait is not None
    config = {"decoder_sparse_step": 2, "mlp_only_layers": []}
    assert trait.encode(config, ("dense", "moe", "dense", "dense")) == {
        "decoder_sparse_step": 2,
        "mlp_only_layers": [3],
    }
    assert trait.encode(config, ("moe", "dense")) == {"decoder_sparse_step": 1, "mlp_only_layers": [1]}


def test_every_trait_of_a_family_has_a_name_of_its_own() -> None:
    for family in ("llama", "llama4_text", "hunyuan_v1_moe", "gemma4_text", "glm_moe_dsa"):
        names = [trait.name for trait in read_traits(family)]
        assert len(names) == len(set(names)), family
