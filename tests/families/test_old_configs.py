"""Configs without explicit lists mean what transformers 5.23 takes them to mean, for every family and many depths."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from hybridizer.families.attention import _WITHOUT_LIST, OLD_NAMES, attention_of
from hybridizer.families.families import read_traits
from hybridizer.families.mlp import MLP_TYPES, mlp_of

DEPTHS = (2, 5, 13)

# The old encodings of each family, as checkpoints in the wild use them, beside the bare default.
OLD: dict[str, list[dict[str, Any]]] = {
    "afmoe": [{"global_attn_every_n_layers": 3, "num_dense_layers": 2}],
    "axk1": [{"first_k_dense_replace": 2}],
    "axk2": [{"first_k_dense_replace": 3}],
    "bailing_hybrid": [{"layer_group_size": 4, "first_k_dense_replace": 1}],
    "bamba": [{"attn_layer_indices": [0]}],
    "cohere2": [{"sliding_window_pattern": 3}],
    "cohere2_moe": [{"sliding_window_pattern": 3, "first_k_dense_replace": 1}],
    "deepseek_v32": [{"first_k_dense_replace": 1}],
    "dots1": [{"max_window_layers": 3}, {"max_window_layers": 1, "sliding_window": None}],
    "exaone4": [{"sliding_window_pattern": 5}, {"sliding_window_pattern": 1}],
    "exaone_moe": [{"sliding_window_pattern": 2, "first_k_dense_replace": 2}],
    "gemma3_text": [{"sliding_window_pattern": 3}],
    "glm_moe_dsa": [{"first_k_dense_replace": 1}],
    "inkling_text": [{"dense_mlp_idx": 2}, {"local_layer_ids": [0]}],
    "jamba": [
        {
            "attn_layer_period": 3,
            "attn_layer_offset": 1,
            "expert_layer_period": 4,
            "expert_layer_offset": 0,
        }
    ],
    "kimi_linear": [{"first_k_dense_replace": 2}],
    "lfm2": [{"full_attn_idxs": [0]}],
    "llama4_text": [{"no_rope_layer_interval": 3}, {"interleave_moe_layer_step": 2}, {"moe_layers": [0]}],
    "modernbert-decoder": [{"global_attn_every_n_layers": 2}],
    "qwen2": [{"use_sliding_window": True, "max_window_layers": 2}, {"max_window_layers": 1}],
    "qwen2_moe": [{"use_sliding_window": True, "max_window_layers": 4}],
    "qwen3": [{"use_sliding_window": True, "max_window_layers": 2, "sliding_window": 8}],
    "qwen3_5_text": [{"full_attention_interval": 3}],
    "qwen3_5_moe_text": [{"full_attention_interval": 1}],
    "qwen3_next": [{"full_attention_interval": 2}],
    "recurrent_gemma": [{"block_types": ["attention", "recurrent"]}],
    "smollm3": [
        {"no_rope_layer_interval": 2},
        {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 8},
    ],
}
# Without a list these have no rule, or a rule of the model rather than of its layers (see `why_bound`).
NO_RULE = {"dots3_note_text", "lfm2_moe", "deepseek_v4", "zaya"}
FAMILIES = sorted(({*_WITHOUT_LIST} - NO_RULE) | {"axk1", "bamba", "hy_v3", "jamba", "recurrent_gemma"})
CASES = [(family, old) for family in FAMILIES for old in [{}, *OLD.get(family, [])]]


@pytest.mark.parametrize(("family", "old"), CASES, ids=[f"{family}-{i}" for i, (family, _) in enumerate(CASES)])
def test_layers_are_read_as_transformers_reads_them(family: str, old: dict[str, Any]) -> None:
    for depth in DEPTHS:
        config = CONFIG_MAPPING[family](num_hidden_layers=depth, **old)
        if hasattr(config, "layer_types"):
            expected = tuple(OLD_NAMES.get(name, name) for name in config.layer_types)
            found = tuple(OLD_NAMES.get(kind, kind) for kind in attention_of(family).decode(old, depth))
            if family.startswith("gemma4"):  # transformers forces the last layer; a rule of the trait refuses it
                found, expected = found[:-1], expected[:-1]
            assert found == expected, f"{depth} layers"
        trait = mlp_of(family)
        if trait is not None and MLP_TYPES in trait.encodings:
            expected = tuple({"sparse": "moe"}.get(name, name) for name in config.mlp_layer_types)
            assert trait.decode(old, depth) == expected, f"{depth} layers"


@pytest.mark.parametrize(
    ("family", "old"),
    [
        ("glm_moe_dsa", {}),
        ("glm_moe_dsa", {"index_topk_freq": 3}),
        ("glm_moe_dsa", {"index_topk_freq": 2, "index_skip_topk_offset": 3}),
        ("glm_moe_dsa", {"index_topk_pattern": "FSSFS"}),
        ("hy_v4", {}),
    ],
)
def test_indexers_are_read_as_transformers_reads_them(family: str, old: dict[str, Any]) -> None:
    (trait,) = (trait for trait in read_traits(family) if trait.name == "indexer")
    for depth in (5,) if "index_topk_pattern" in old else DEPTHS:
        expected = CONFIG_MAPPING[family](num_hidden_layers=depth, **old).indexer_types
        assert trait.decode(old, depth) == tuple(expected)


@pytest.mark.parametrize("family", ["dots1", "qwen2", "qwen2_moe", "qwen3"])
def test_windows_start_or_end_at_the_layer_that_the_class_assumes(family: str) -> None:
    old = {"sliding_window": 8} | ({} if family == "dots1" else {"use_sliding_window": True})
    config = CONFIG_MAPPING[family](num_hidden_layers=70, **old)
    assert len(set(config.layer_types)) == 2
    assert attention_of(family).decode(old, 70) == tuple(config.layer_types)


def test_jamba_experts_are_read_as_transformers_reads_them() -> None:
    for depth in DEPTHS:
        config = CONFIG_MAPPING["jamba"](num_hidden_layers=depth)
        expected = tuple("moe" if experts > 1 else "dense" for experts in config.layers_num_experts)
        trait = mlp_of("jamba")
        assert trait is not None and trait.decode({}, depth) == expected
