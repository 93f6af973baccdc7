"""Reading checkpoints: where every tensor belongs, and that damage and contradictions are reported, never guessed."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hybridizer.core.errors import CheckpointError
from hybridizer.families.reading import read_structure
from support.hostile import FAMILIES, hostile_changes
from support.made_up import VOCAB, WIDTH, llama, llama_config, llama_shapes


def refused(config: Any, shapes: dict[str, tuple[int, ...]]) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_structure(config, shapes, "alpha")
    return str(caught.value)


def test_every_tensor_has_its_place() -> None:
    structure = llama()
    assert (structure.family, structure.num_layers, structure.layer_prefix) == ("llama", 3, "model.layers.")
    assert structure.layers[2]["mlp.down_proj.weight"] == "model.layers.2.mlp.down_proj.weight"
    assert structure.embedding == ("model.embed_tokens.weight",)
    assert structure.final_norm == ("model.norm.weight",)
    assert structure.head == ("lm_head.weight",)
    assert structure.vocab_size == VOCAB
    assert structure.extra == ()
    assert structure.kinds == ("full_attention",) * 3


def test_tensor_names_without_the_prefix_of_a_module_are_read() -> None:
    shapes = {name.removeprefix("model."): shape for name, shape in llama_shapes().items()}
    structure = read_structure(llama_config(), shapes, "alpha")
    assert (structure.layer_prefix, structure.final_norm, structure.embedding) == (
        "layers.",
        ("norm.weight",),
        ("embed_tokens.weight",),
    )


def test_kinds_name_attention_and_mlp() -> None:
    config = llama_config(model_type="qwen3_next", num_experts=4, mlp_only_layers=[0], full_attention_interval=3)
    shapes = llama_shapes()
    shapes["model.layers.0.mlp.only_dense.weight"] = (1,)
    shapes["model.layers.2.self_attn.k_norm.weight"] = (1,)
    kinds = read_structure(config, shapes, "alpha").kinds
    assert kinds == ("linear_attention+dense", "linear_attention+moe", "full_attention+moe")


def test_draft_layers_after_the_last_layer_are_left_out_with_a_reason() -> None:
    config = llama_config(model_type="deepseek_v3", num_nextn_predict_layers=1, first_k_dense_replace=0)
    shapes = llama_shapes(4) | {"mtp.norm.weight": (WIDTH,)}
    structure = read_structure(config, shapes, "alpha")
    assert structure.num_layers == 3
    assert {(extra.kept, extra.role) for extra in structure.extra} == {(False, "draft")}
    assert "model.layers.3.mlp.down_proj.weight" in {extra.name for extra in structure.extra}


def test_recomputed_buffers_are_left_out_and_global_tensors_kept() -> None:
    shapes = llama_shapes() | {
        "model.layers.0.self_attn.rotary_emb.inv_freq": (4,),
        "model.layers.1.attn.bias": (1, 1, 64, 64),
        "model.embed_positions.weight": (64, WIDTH),
    }
    structure = read_structure(llama_config(), shapes, "alpha")
    assert {extra.name: extra.kept for extra in structure.extra} == {
        "model.layers.0.self_attn.rotary_emb.inv_freq": False,
        "model.layers.1.attn.bias": False,
        "model.embed_positions.weight": True,
    }
    assert len({len(layer) for layer in structure.layers}) == 1


@pytest.mark.parametrize(
    ("config_says", "head_there", "tied", "in_doubt"),
    [(True, False, True, False), (True, True, True, True), (None, True, True, True), (None, False, True, False)],
)
def test_a_tie_follows_the_config_and_the_files(
    config_says: bool | None, head_there: bool, tied: bool, in_doubt: bool
) -> None:
    shapes = llama_shapes()
    if not head_there:
        del shapes["lm_head.weight"]
    config = llama_config(model_type="gemma", tie_word_embeddings=config_says)  # gemma ties by default
    structure = read_structure(config, shapes, "alpha")
    assert (structure.tied, structure.tie_in_doubt) == (tied, in_doubt)


def test_an_unknown_family_without_the_key_is_tied_where_there_is_no_head() -> None:
    config = llama_config(model_type="a_family_of_the_future", tie_word_embeddings=None)
    shapes = llama_shapes()
    assert not read_structure(config, shapes, "alpha").tied
    del shapes["lm_head.weight"]
    assert read_structure(config, shapes, "alpha").tied


def test_config_and_files_of_different_depth_are_refused() -> None:
    message = refused(llama_config(4), llama_shapes(3))
    assert "alpha: the config has 4 layers, and the files hold model.layers.* (3 layers)" in message
    assert "the config has 2 layers" in refused(llama_config(2), llama_shapes(3))


def test_a_missing_layer_is_named() -> None:
    shapes = {name: shape for name, shape in llama_shapes().items() if ".layers.1." not in name}
    assert "(2 layers without 1)" in refused(llama_config(), shapes)


def test_files_without_layers_are_refused() -> None:
    assert "no list of layers" in refused(llama_config(), {"lm_head.weight": (2, 2)})


def test_two_lists_of_the_right_length_are_refused() -> None:
    shapes = llama_shapes() | llama_shapes(stem="other.")
    message = refused(llama_config(), shapes)
    assert "model.layers.* (3 layers), other.layers.* (3 layers)" in message
    assert "It is ambiguous" in message


def test_a_layer_that_lacks_a_tensor_of_its_kind_is_refused() -> None:
    shapes = llama_shapes()
    del shapes["model.layers.1.mlp.down_proj.weight"]
    message = refused(llama_config(), shapes)
    assert "layer 1 has no tensor 'mlp.down_proj.weight', and layer 0, of the same kind, has one." in message


def test_a_layer_of_another_shape_than_its_kind_is_refused() -> None:
    shapes = llama_shapes() | {"model.layers.2.mlp.down_proj.weight": (WIDTH, 17)}
    message = refused(llama_config(), shapes)
    assert (
        "'model.layers.2.mlp.down_proj.weight' has shape (8, 17), and layer 0, of the same kind, has (8, 16)."
        in message
    )


def test_an_untied_model_without_a_head_is_refused() -> None:
    shapes = llama_shapes()
    del shapes["lm_head.weight"]
    assert "no tensor is an output head" in refused(llama_config(), shapes)


def test_a_model_without_an_embedding_is_refused() -> None:
    shapes = llama_shapes()
    del shapes["model.embed_tokens.weight"]
    assert "no tensor is an embedding" in refused(llama_config(), shapes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": ""}, "`model_type` is ''"),
        ({"model_type": 3}, "`model_type` is 3"),
        ({"num_hidden_layers": 0}, "`num_hidden_layers` 0"),
        ({"num_hidden_layers": "3"}, "no key holds it"),
        ({"n_layer": 4}, "`num_hidden_layers` 3 and `n_layer` 4"),
        ({"layer_types": ["full_attention"] * 2}, "`layer_types` has 2 entries, and the model has 3 layers."),
    ],
)
def test_configs_that_contradict_themselves_are_refused(changes: dict[str, Any], words: str) -> None:
    message = refused(llama_config(**changes), llama_shapes())
    assert message.startswith("alpha/config.json: ") and words in message


def test_a_config_that_is_not_a_dict_is_refused() -> None:
    assert "not a family's name" in refused([], llama_shapes())


@pytest.mark.slow
@settings(max_examples=250, deadline=None)
@given(family=st.sampled_from(FAMILIES), changes=hostile_changes(4))
@example(family="recurrent_gemma", changes={"layer_types": None, "block_types": [[]]})
def test_any_config_is_read_or_refused(family: str, changes: dict[str, Any]) -> None:
    try:
        structure = read_structure(llama_config(**{"model_type": family, **changes}), llama_shapes(), "alpha")
    except CheckpointError:
        return
    assert structure.num_layers == len(structure.layers) == len(structure.kinds) == 3


def test_reading_a_config_imports_no_heavy_library() -> None:
    code = (
        "import sys, hybridizer.families.config;"
        "print(sorted({'torch', 'numpy', 'transformers', 'safetensors', 'pydantic'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
