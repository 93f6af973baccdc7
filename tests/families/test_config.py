"""The spliced config: the host's file with the depth and the per-layer traits rewritten, and nothing else."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridizer.core.errors import CheckpointError, PlanError
from hybridizer.families.config import splice_config
from hybridizer.families.reading import read_structure
from hybridizer.families.structure import Source, Structure
from support.hostile import FAMILIES, hostile_changes
from support.made_up import llama, llama_config, llama_shapes


def made(where: str, num_layers: int = 3, **changes: Any) -> Structure:
    return read_structure(llama_config(num_layers, **changes), llama_shapes(num_layers), where)


def refused(host: Structure, *layers: tuple[Structure, int]) -> str:
    with pytest.raises(PlanError) as caught:
        splice_config(host, [Source(donor, layer) for donor, layer in layers])
    return str(caught.value)


def test_identity_leaves_the_config_as_it_is() -> None:
    host = llama("host", anything={"nested": [1, 2]}, rope_scaling={"type": "linear", "factor": 2.0})
    assert splice_config(host, [Source(host, layer) for layer in range(3)]) == host.config


def test_the_depth_changes_under_every_name_and_nothing_else_changes() -> None:
    host = llama("host", n_layer=3, keep="me")
    config = splice_config(host, [Source(host, layer) for layer in (0, 1, 1, 2, 2)])
    assert config == {**host.config, "num_hidden_layers": 5, "n_layer": 5}


def test_the_host_config_is_not_changed() -> None:
    changes: dict[str, Any] = {"model_type": "qwen2", "rope_scaling": {"type": "linear", "factor": 2.0}}
    host = made("host", **changes)
    before = copy.deepcopy(host.config)
    splice_config(host, [Source(host, 0)])["rope_scaling"]["factor"] = 4.0
    assert host.config == before


def test_layer_types_come_from_the_donor_layers() -> None:
    types = ["sliding_attention", "sliding_attention", "full_attention"]
    host = made("host", model_type="gemma2", layer_types=types)
    donor = made("donor", model_type="gemma2", layer_types=types[::-1])
    config = splice_config(host, [Source(host, 2), Source(donor, 0), Source(donor, 1), Source(host, 0)])
    assert config["layer_types"] == ["full_attention", "full_attention", "sliding_attention", "sliding_attention"]
    assert config["num_hidden_layers"] == 4


def test_a_list_that_only_the_donor_has_is_added_in_the_encoding_of_the_host() -> None:
    host = made("host", model_type="qwen3_moe", mlp_only_layers=[])
    donor = made("donor", model_type="qwen3_moe", decoder_sparse_step=2)
    assert donor.traits["mlp"] == ("dense", "moe", "dense")
    config = splice_config(host, [Source(donor, 0), Source(host, 1), Source(donor, 2)])
    assert config["mlp_only_layers"] == [0, 2]


def test_the_count_of_draft_layers_is_zero_when_they_are_left_out() -> None:
    changes = {"model_type": "deepseek_v3", "num_nextn_predict_layers": 1, "first_k_dense_replace": 0}
    host = read_structure(llama_config(**changes), llama_shapes(4), "host")
    assert splice_config(host, [Source(host, 0)])["num_nextn_predict_layers"] == 0
    without = read_structure(llama_config(**changes), llama_shapes(3), "host")
    assert splice_config(without, [Source(without, 0)])["num_nextn_predict_layers"] == 1


def test_both_counts_of_longcat_change_together() -> None:
    counts = {"model_type": "longcat_flash", "num_layers": 3, "num_hidden_layers": 6}
    host = read_structure(llama_config() | counts, llama_shapes(), "host")
    config = splice_config(host, [Source(host, 0), Source(host, 1)])
    assert (config["num_layers"], config["num_hidden_layers"]) == (2, 4)


def test_a_decoder_inside_a_composite_config_is_edited_in_place() -> None:
    config = {
        "model_type": "gemma3",
        "text_config": llama_config(model_type="gemma3_text"),
        "vision_config": {"depth": 9},
    }
    host = read_structure(config, llama_shapes(stem="language_model.model."), "host")
    spliced = splice_config(host, [Source(host, 0)])
    assert spliced["text_config"]["num_hidden_layers"] == 1
    assert spliced["vision_config"] == {"depth": 9} and "num_hidden_layers" not in spliced


def test_layers_that_the_donor_does_not_have_are_refused() -> None:
    host = llama("host")
    message = refused(host, (host, 3), (host, -1))
    assert "host: layer 3 was requested, and the donor has 3 layers." in message and "layer -1" in message
    assert "Give a layer inside 0..2." in message
    assert "no layers were requested" in refused(host)


def test_donors_whose_configs_differ_are_refused() -> None:
    assert "`rms_norm_eps` is 0.1, and 1e-06 in host." in refused(llama("host"), (llama("donor", rms_norm_eps=0.1), 0))


def test_an_order_that_the_family_cannot_encode_is_refused() -> None:
    host = made("host", model_type="jamba", attn_layer_period=3, attn_layer_offset=1)
    message = refused(host, (host, 1), (host, 1), (host, 0))
    assert "the attention of the layers would be full_attention, full_attention, mamba" in message
    assert "by period and offset (`attn_layer_period`, `attn_layer_offset`)" in message


def test_layers_of_an_unknown_family_cannot_be_moved() -> None:
    host = made("host", model_type="a_family_of_the_future")
    assert splice_config(host, [Source(host, layer) for layer in range(3)]) == host.config
    assert "it is not known how its layers depend on their place" in refused(host, (host, 0))


def test_an_unknown_list_with_one_entry_per_layer_is_refused() -> None:
    host = llama("host", layer_magic=[1, 2, 3])
    assert "`layer_magic` looks like a per-layer list" in refused(host, (host, 0), (host, 2))
    assert splice_config(host, [Source(host, layer) for layer in range(3)]) == host.config


def test_a_layer_that_uses_the_one_before_it_can_only_follow_it() -> None:
    types = {"indexer_types": ["full", "shared", "shared"], "first_k_dense_replace": 0}
    host, donor = (made(where, model_type="glm_moe_dsa", **types) for where in ("host", "donor"))
    assert splice_config(host, [Source(host, 0), Source(host, 1), Source(donor, 0)])["indexer_types"] == [
        "full",
        "shared",
        "full",
    ]
    message = refused(host, (host, 0), (donor, 1))
    assert "donor: layer 1 uses the indexer of the layer before it, and would follow host layer 0." in message
    assert "would follow no layer" in refused(host, (host, 1), (host, 2))


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    family=st.sampled_from(FAMILIES),
    shared=hostile_changes(4),
    own=hostile_changes(2),
    order=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2)), min_size=1, max_size=5),
)
def test_the_written_config_means_the_requested_layers(
    family: str, shared: dict[str, Any], own: dict[str, Any], order: list[tuple[int, int]]
) -> None:
    try:
        donors = (
            made("host", **{"model_type": family, **shared}),
            made("donor", **{"model_type": family, **shared, **own}),
        )
        config = splice_config(donors[0], [Source(donors[which], layer) for which, layer in order])
    except (CheckpointError, PlanError):
        return
    output = read_structure(config, llama_shapes(len(order)), "output")
    for name, values in output.traits.items():
        assert values == tuple(donors[which].traits[name][layer] for which, layer in order)
