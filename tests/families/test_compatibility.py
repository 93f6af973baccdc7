"""Donors that differ are refused with both values named; donors that only seem to differ are not."""

from __future__ import annotations

from typing import Any

import pytest

from hybridizer.families.compatibility import check_compatible
from hybridizer.families.reading import read_structure
from hybridizer.families.structure import Source, Structure
from support.made_up import WIDTH, llama, llama_config, llama_shapes


def problems(donor: Structure, host: Structure | None = None) -> list[str]:
    host = host or llama("host")
    return [str(problem) for problem in check_compatible(host, [Source(host, 0), Source(donor, 1)])]


def test_equal_configs_are_compatible() -> None:
    assert problems(llama("donor", num_layers=5)) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": 16}, "`hidden_size` is 16, and 8 in host."),
        ({"num_attention_heads": 4}, "`num_attention_heads` is 4, and 2 in host."),
        ({"num_key_value_heads": 2}, "`num_key_value_heads` is 2, and 1 in host."),
        ({"head_dim": 8}, "`head_dim` is 8, and 4 in host."),
        ({"rms_norm_eps": 1e-5}, "`rms_norm_eps` is 1e-05, and 1e-06 in host."),
        ({"attention_bias": True}, "`attention_bias` is True, and False in host."),
        ({"hidden_act": "gelu"}, "`hidden_act` is 'gelu', and 'silu' in host."),
        ({"sliding_window": 8}, "`sliding_window` is 8, and absent in host."),
        ({"rope_theta": 5e5}, "`rotary positions, rope_theta` is 500000.0, and 10000.0 in host."),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "`rotary positions, factor` is 2.0, and absent in host."),
        ({"partial_rotary_factor": 0.5}, "`rotary positions, partial_rotary_factor` is 0.5, and 1.0 in host."),
        ({"a_key_of_the_future": 3}, "`a_key_of_the_future` is 3, and absent in host."),
        ({"quantization_config": {"bits": 4}}, "`quantization_config.bits` is 4, and absent in host."),
    ],
)
def test_keys_that_affect_layers_must_agree(changes: dict[str, Any], words: str) -> None:
    found = problems(llama("donor", **changes))
    assert any(message.startswith(f"donor/config.json: {words}") for message in found), found


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 99, "eos_token_id": 7, "tie_word_embeddings": True},
        {"max_position_embeddings": 4096, "initializer_range": 0.1, "attention_dropout": 0.1},
        {"torch_dtype": "bfloat16", "transformers_version": "4.40.0", "use_cache": False, "_name_or_path": "x"},
        {"head_dim": WIDTH // 2},
        {"attention_bias": False, "mlp_bias": False, "sliding_window": None, "rope_scaling": None},
        {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 10000}},
        {"logits_scaling": 8.0, "embedding_multiplier": 12.0, "final_logit_softcapping": 30.0},
        {"hidden_size": None, "n_embd": WIDTH},
    ],
)
def test_keys_that_do_not_affect_layers_may_differ(changes: dict[str, Any]) -> None:
    assert problems(llama("donor", **changes)) == []


def test_all_differences_are_reported_at_once() -> None:
    assert len(problems(llama("donor", hidden_act="gelu", rms_norm_eps=1.0))) == 2


def test_the_context_length_counts_where_the_rotary_scaling_depends_on_it() -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0}
    host = llama("host", rope_scaling=scaling, max_position_embeddings=1024)
    donor = llama("donor", rope_scaling=scaling, max_position_embeddings=2048)
    assert any("max_position_embeddings` is 2048, and 1024 in host" in message for message in problems(donor, host))


def test_old_and_new_rotary_settings_per_layer_type_are_equal() -> None:
    types = ["sliding_attention", "full_attention", "full_attention"]
    old = {"model_type": "gemma3_text", "rope_theta": 1e6, "rope_local_base_freq": 1e4, "layer_types": types}
    scaling = {"rope_type": "linear", "factor": 8.0}
    new = {
        "full_attention": {**scaling, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    host = read_structure(llama_config(**old, rope_scaling=scaling), llama_shapes(), "host")
    changes = {**old, "rope_theta": None, "rope_local_base_freq": None, "rope_parameters": new}
    donor = read_structure(llama_config(**changes), llama_shapes(), "donor")
    assert problems(donor, host) == []


def test_per_layer_traits_need_not_agree() -> None:
    host = read_structure(llama_config(model_type="qwen3_moe", mlp_only_layers=[0, 1, 2]), llama_shapes(), "host")
    donor = read_structure(llama_config(model_type="qwen3_moe", mlp_only_layers=[0]), llama_shapes(), "donor")
    assert problems(donor, host) == []


def test_the_number_of_experts_is_compared_under_all_its_names() -> None:
    def moe(where: str, **changes: Any) -> Structure:
        return read_structure(llama_config(model_type="qwen3_moe", **changes), llama_shapes(), where)

    assert problems(moe("donor", num_local_experts=4), moe("host", num_experts=4)) == []
    found = problems(moe("donor", num_local_experts=8), moe("host", num_experts=4))
    assert len(found) == 1 and "`num_local_experts` is 8, and 4 in host." in found[0]


def test_infinities_are_read_in_both_forms() -> None:
    host = llama("host", time_step_limit=[0.0, float("inf")])
    assert problems(llama("donor", time_step_limit=[0.0, {"__float__": "Infinity"}]), host) == []


def test_donors_of_two_families_are_refused() -> None:
    donor = read_structure(llama_config(model_type="mistral"), llama_shapes(), "donor")
    (message,) = problems(donor)
    assert message.startswith("donor: a donor of family 'mistral', and host is of family 'llama'.")


def test_shapes_are_compared_where_configs_agree() -> None:
    shapes = {
        name: (WIDTH, 17) if name.endswith("down_proj.weight") else shape for name, shape in llama_shapes().items()
    }
    (message,) = problems(read_structure(llama_config(), shapes, "donor"))
    assert "'mlp.down_proj.weight' of layer 1 is (8, 17), and (8, 16) in layer 0 of host" in message


def test_tensors_that_one_side_lacks_are_reported() -> None:
    shapes = llama_shapes()
    shapes |= {f"model.layers.{layer}.self_attn.q_proj.bias": (WIDTH,) for layer in range(3)}
    (message,) = problems(read_structure(llama_config(), shapes, "donor"))
    assert "'self_attn.q_proj.bias' of layer 1 is (8,), and absent in layer 0 of host" in message
