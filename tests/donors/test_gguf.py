"""The conversion of a GGUF file holds what the file holds: nothing invented, nothing lost, or it is refused."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from hybridizer.core.errors import CheckpointError
from hybridizer.donors import converted
from hybridizer.donors.open import NotFetched
from support.gguf_files import HEADS, HIDDEN, LAYERS, tiny_tensors, write_gguf
from support.opened import donor as opened

donor = partial(opened, text="x.gguf")


def test_every_number_of_the_file_is_in_the_conversion(bench):
    write_gguf(bench / "x.gguf")
    opened = donor(bench)
    found, expected = load_file(opened.folder / "model.safetensors"), tiny_tensors()
    assert torch.equal(found["model.embed_tokens.weight"], torch.from_numpy(expected["token_embd.weight"]))
    down = expected["blk.1.ffn_down.weight"]
    assert torch.equal(found["model.layers.1.mlp.down_proj.weight"], torch.from_numpy(down))
    assert sum(t.numel() for t in found.values()) == sum(values.size for values in expected.values())
    assert opened.structure.num_layers == LAYERS and opened.structure.tied


def rename(old, new):
    return lambda settings, tensors: tensors.update({new: tensors.pop(old)})


def drop(key):
    return lambda settings, tensors: settings.pop(key) if key in settings else tensors.pop(key)


def set_key(key, value):
    return lambda settings, tensors: settings.update({key: value})


def add_table(*factors):
    def change(settings, tensors):
        tensors["rope_freqs.weight"] = np.array(factors, np.float32)

    return change


def add_tensor(name, *shape):
    return lambda settings, tensors: tensors.update({name: np.ones(shape, np.float32)})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (rename("blk.1.ffn_up.weight", "blk.1.ffn_upp.weight"), "1 tensors: model.layers.1.mlp.up_proj.weight"),
        (drop("blk.0.attn_norm.weight"), "1 tensors: model.layers.0.input_layernorm.weight"),
        (drop("output_norm.weight"), "model.norm.weight"),
        (drop("llama.block_count"), "has no `llama.block_count`"),
        (drop("llama.attention.head_count"), "has no `llama.attention.head_count`"),
        (drop("llama.embedding_length"), "has no `llama.embedding_length`"),
        (drop("llama.attention.layer_norm_rms_epsilon"), "no epsilon for the norms"),
        (set_key("llama.block_count", 3), r"`block_count` is 3, and it holds layers 0..1"),
        (set_key("llama.block_count", 1), r"`block_count` is 1, and it holds layers 0..1"),
        (set_key("llama.block_count", 10**9), r"`llama.block_count` is 1000000000, and no tensor is as wide"),
        (set_key("llama.rope.dimension_count", 2**31), "no tensor is as wide"),
        (set_key("llama.rope.scaling.factor", 4.0), "`llama.rope.scaling.factor` is 4.0"),
        (set_key("llama.attention.scale", 0.5), "`llama.attention.scale` is 0.5, and transformers ignores it"),
        (set_key("llama.logit_scale", 0.5), "`llama.logit_scale` is 0.5"),
        (
            set_key("llama.attention.layer_norm_epsilon", 0.5),
            "`llama.attention.layer_norm_epsilon` is 0.5, and the config",
        ),
        (set_key("llama.attention.sliding_window", 8), "`llama.attention.sliding_window` is 8"),
        (add_table(1.0, 1.0, float("nan"), 8.0), "'rope_freqs.weight' holds factors that are not"),
        (add_table(1.0, 1.0, 2.0, 8.0), r"has 2 at frequency 2, and Llama 3's rule gives 1: no config can say it"),
        (add_tensor("blk.0.attn_q.bias", HIDDEN), "not read, among them blk.0.attn_q.bias"),
        (add_tensor("blk.2.attn_norm.weight", HIDDEN), r"`block_count` is 2, and it holds layers 0..2"),
        (add_tensor("blk.0.attn_q.weight", HIDDEN, HIDDEN * 2), "GGUF"),
    ],
)
def test_a_file_whose_conversion_would_invent_or_lose_something_is_refused(bench, change, says):
    write_gguf(bench / "x.gguf", change)
    with pytest.raises(CheckpointError, match=says) as caught:
        donor(bench)
    assert all(problem.fix for problem in caught.value.problems)
    assert not any((bench / "cache/gguf").glob("*")) if (bench / "cache/gguf").exists() else True


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_table_of_rope_factors_becomes_llama_3s_rule_in_the_config(bench, factor):
    from transformers import AutoModelForCausalLM

    # The table as llama.cpp's converter writes it, from transformers' own frequencies; one lies between the bounds.
    rule = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": factor, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
    config = LlamaConfig(hidden_size=HIDDEN, num_attention_heads=HEADS, rope_parameters=rule)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500_000.0 ** -(torch.arange(0, HIDDEN // HEADS, 2, dtype=torch.float32) / (HIDDEN // HEADS))
    table = (plain / scaled).numpy()
    assert table[0] == 1 and 1 < table[2] < factor == table[3]

    def change(settings, tensors):
        settings["llama.rope.freq_base"] = 500_000.0
        tensors["rope_freqs.weight"] = table

    write_gguf(bench / "x.gguf", change)
    folder = donor(bench).folder
    written = json.loads((folder / "config.json").read_text())
    assert written["rope_parameters"] == rule
    assert written["rope_scaling"] == {key: value for key, value in rule.items() if key != "rope_theta"}
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.allclose(model.model.rotary_emb.inv_freq, scaled, rtol=1e-5, atol=0)
    assert len(load_file(folder / "model.safetensors")) == len(tiny_tensors())


def test_settings_that_change_nothing_are_accepted(bench):
    write_gguf(bench / "x.gguf", set_key("llama.rope.scaling.type", "none"))
    assert donor(bench).structure.num_layers == LAYERS


def test_files_beside_a_gguf_file_are_not_read(bench):
    write_gguf(bench / "x.gguf")
    clean = (donor(bench).folder / "tokenizer_config.json").read_bytes()
    (bench / "y").mkdir()
    write_gguf(bench / "y/x.gguf", set_key("llama.context_length", 65))
    (bench / "y/tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["evil.T", None]}, "eos_token": "a"})
    )
    (bench / "y/chat_template.jinja").write_text("stray")
    stray = donor(bench, text="y/x.gguf").folder
    assert (stray / "tokenizer_config.json").read_bytes() == clean and not (stray / "chat_template.jinja").exists()


def test_a_file_without_a_tokenizer_gives_a_donor_without_one(bench):
    write_gguf(bench / "x.gguf", tokenizer=False)
    assert set(donor(bench).tokenizer_files) == {"generation_config.json"}


def test_configs_have_the_keys_of_both_generations_of_transformers(bench):
    write_gguf(bench / "x.gguf")
    folder = donor(bench).folder
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 100_000.0
    assert config["torch_dtype"] == config["dtype"] == "float32"
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    debris = {"_name_or_path", "_model_name_or_path", "is_local", "local_files_only", "name_or_path"}
    assert not debris & {*config, *tokenizer}
    assert not any(str(bench) in path.read_text() for path in folder.glob("*.json") if path.name != "conversion.json")


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "model.safetensors").write_bytes(b"x"),
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "config.json").write_text("{}"),
        lambda folder: (folder / "conversion.json").write_text("{"),
        lambda folder: (folder / "conversion.json").unlink(),
        lambda folder: (folder / "stray.json").write_text("{}"),
    ],
)
def test_a_damaged_conversion_is_made_again(bench, damage):
    write_gguf(bench / "x.gguf")
    folder = donor(bench).folder
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    damage(folder)
    assert isinstance(donor(bench, fetch=False), NotFetched)
    assert donor(bench).folder == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_another_version_of_the_converter_makes_another_conversion(bench, monkeypatch):
    write_gguf(bench / "x.gguf")
    first = donor(bench).folder
    monkeypatch.setattr(converted, "_version", lambda tool: "99")
    assert isinstance(donor(bench, fetch=False), NotFetched)
    second = donor(bench).folder
    monkeypatch.setattr(converted, "FORMAT", 99)
    assert first != second and isinstance(donor(bench, fetch=False), NotFetched)


def test_a_file_that_is_cut_short_in_its_weights_is_refused(bench):
    whole = write_gguf(bench / "whole.gguf").read_bytes()
    for size in (len(whole) - 1, len(whole) - 100, len(whole) // 2):
        (bench / "x.gguf").write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="x.gguf"):
            donor(bench)
