"""A config that contradicts its tensors, and a hybrid without attention, are refused when they are planned."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hybridizer.checkpoint.reader import open_checkpoint
from hybridizer.families.reading import read_structure
from hybridizer.plan.config_shapes import check_attention_left, check_config
from support.lines import hybridize, make_donor, write_recipe
from support.tiny import FAMILIES, make_tiny


def structure_of(folder):
    config = json.loads((folder / "config.json").read_text())
    shapes = {name: entry.shape for name, entry in open_checkpoint(folder).tensors.items()}
    return read_structure(config, shapes, str(folder))


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def recipe_of(bench, slices=None, donor="a"):
    layout = {"host": donor, "slices": slices} if slices else {"host": donor, "deep": donor, "shallow": donor}
    return write_recipe(bench / "x.yaml", donors={donor: donor}, layout=layout)


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "hrm_text"])
def test_no_family_is_refused_as_transformers_writes_it(tmp_path, family):
    structure = structure_of(make_tiny(family, tmp_path))
    assert check_config(structure, "here") == [] == check_attention_left(structure, "here")


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "seed_oss"])
@pytest.mark.parametrize("value", [True, False])
def test_biases_and_head_sizes_of_ones_own_are_not_refused(tmp_path, family, value):
    sizes = {"head_dim": 8, "num_key_value_heads": 1, "intermediate_size": 112, "attention_bias": value}
    structure = structure_of(make_tiny(family, tmp_path, **sizes))
    assert check_config(structure, "here") == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"vocab_size": 300}, "`vocab_size` 300, and 'model.embed_tokens.weight' has shape [256, 64] (axis 0)."),
        ({"hidden_size": 32}, "`hidden_size` 32, and 'model.embed_tokens.weight' has shape [256, 64] (axis 1)."),
        ({"intermediate_size": 80}, "`intermediate_size` 80, and 'model.layers.0.mlp.down_proj.weight' has shape"),
        (
            {"num_attention_heads": 8},
            "`num_attention_heads` 8 x `head_dim` 16 = 128, and 'model.layers.0.self_attn.o_proj.weight' has shape",
        ),
        (
            {"num_key_value_heads": 4},
            "`num_key_value_heads` 4 x `head_dim` 16 = 64, and 'model.layers.0.self_attn.k_proj.weight' has shape",
        ),
        ({"attention_bias": True}, "`attention_bias` is true, and 'model.layers.0.self_attn.q_proj.bias' is not there"),
        ({"mlp_bias": True}, "`mlp_bias` is true, and 'model.layers.0.mlp.up_proj.bias' is not there"),
    ],
    ids=lambda value: "".join(value) if isinstance(value, dict) else "",
)
def test_a_config_that_contradicts_a_tensor_is_refused_by_check(bench, change, says):
    make_donor(bench / "a")
    edit_config(bench / "a", **change)
    stderr = hybridize("check", recipe_of(bench), code=2).stderr
    assert f"x.yaml:2: host 'a': {says}" in stderr
    assert "config.json" in stderr


def test_all_contradictions_are_reported_at_once_and_each_once(bench):
    make_donor(bench / "a")
    edit_config(bench / "a", vocab_size=300, intermediate_size=80, attention_bias=True)
    stderr = hybridize("check", recipe_of(bench), code=2).stderr
    assert [stderr.count(key) for key in ("`vocab_size`", "`intermediate_size`", "`attention_bias`")] == [1, 1, 1]
    assert stderr.rstrip().endswith("3 problems")


def test_biases_that_the_config_denies_are_refused(bench):
    make_donor(bench / "a", attention_bias=True)
    edit_config(bench / "a", attention_bias=False)
    says = "`attention_bias` is false, and 'model.layers.0.self_attn.q_proj.bias' is there, of shape [64]."
    assert says in hybridize("check", recipe_of(bench), code=2).stderr


def test_a_checkpoint_without_its_final_norm_is_refused(bench):
    make_donor(bench / "a")
    tensors = load_file(bench / "a/model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, bench / "a/model.safetensors", metadata={"format": "pt"})
    assert "no tensor is the final norm" in hybridize("check", recipe_of(bench), code=2).stderr


@pytest.mark.parametrize("family", ["granitemoehybrid", "lfm2", "qwen3_next", "bamba", "nemotron_h"])
def test_a_hybrid_that_keeps_no_attention_layer_is_refused_by_check(bench, family):
    make_donor(bench / "a", family)
    recipe = recipe_of(bench, [{"donor": "a", "layers": [0, 0]}])
    stderr = hybridize("check", recipe, code=2).stderr
    assert "x.yaml:3: no output layer has attention: all are " in stderr and f"'{family}'" in stderr
    hybridize("check", recipe_of(bench, [{"donor": "a", "layers": [0, 1]}]))


def test_transformers_fails_where_no_attention_layer_is_left(tmp_path):
    make_donor(tmp_path / "a", "granitemoehybrid", layer_types=["linear_attention"] * 4)
    assert check_attention_left(structure_of(tmp_path / "a"), "here")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    with pytest.raises(ValueError):
        model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False)


@pytest.mark.parametrize("family", ["mamba2", "minimax"])
def test_families_without_attention_and_with_a_cache_of_their_own_need_none(bench, family):
    make_donor(bench / "a", family)
    hybridize("check", recipe_of(bench, [{"donor": "a", "layers": [0, 2]}]))
