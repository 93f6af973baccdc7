import json
import warnings

import pytest
import torch
from torch import nn

from hybridizer.core.errors import DonorError
from hybridizer.models.load import load_causal_lm
from hybridizer.models.parts import agree, arbitrary_ids, find_parts, first_floating, run_model
from support.tiny import make_tiny, tiny_config, tiny_tokenizer


def build(family, **overrides):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoModelForCausalLM.from_config(tiny_config(family, **overrides)).eval()


@pytest.mark.parametrize(
    ("family", "path", "norm", "axes"),
    [
        ("llama", "model.layers", "model.norm", (-3, -2)),
        ("gpt2", "transformer.h", "transformer.ln_f", (-3, -2)),
        ("opt", "model.decoder.layers", "model.decoder.final_layer_norm", (-3, -2)),
        ("mamba", "backbone.layers", "backbone.norm_f", (-3, -2)),
        ("gemma3n_text", "model.layers", None, (-3, -2)),  # four streams, merged before the norm
        ("deepseek_v4", "model.layers", None, (-4, -3)),  # streams inside of the time axis
    ],
)
def test_parts_are_found_without_knowing_the_family(family, path, norm, axes):
    model = build(family)
    parts = find_parts(model)
    assert parts.layers_path == path
    assert parts.layers == tuple(model.get_submodule(path))
    assert parts.final_norm is (model.get_submodule(norm) if norm else None)
    assert parts.head is model.get_output_embeddings()
    assert parts.embedding is model.get_input_embeddings()
    assert (parts.batch_axis, parts.time_axis) == axes
    assert parts.vocab_size == 256


def test_finding_parts_leaves_no_hook_behind():
    model = build("llama")
    find_parts(model)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_layers_inside_a_layer_are_not_taken_for_the_layers():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.ModuleList([nn.Linear(64, 64) for _ in range(3)])

        def forward(self, hidden, *args, **kwargs):
            for step in self.inner:
                hidden = step(hidden)
            return hidden

    model = build("llama", num_hidden_layers=2)
    model.model.layers = nn.ModuleList([Layer(), Layer()])
    assert find_parts(model).layers_path == "model.layers"


def test_a_model_that_looks_ahead_is_refused():
    with pytest.raises(DonorError, match="positions see tokens to their right: it is not a causal language model"):
        find_parts(build("bert", num_hidden_layers=2, num_attention_heads=4))


def test_a_model_whose_layers_run_twice_is_refused():
    model = build("llama")
    model.model.layers[1] = model.model.layers[0]
    with pytest.raises(
        DonorError, match=r"LlamaForCausalLM: .* no list of modules is called one after the other, each once"
    ):
        find_parts(model)


def test_a_model_that_needs_more_than_tokens_is_refused_with_its_own_words():
    model = build("llama")

    def forward(*args, **kwargs):
        raise ValueError("pixel_values are missing")

    model.forward = forward
    with pytest.raises(DonorError, match="does not run on token ids alone: ValueError: pixel_values are missing"):
        find_parts(model)


def test_tokens_to_try_a_model_with_are_none_of_its_special_ones():
    model = build("llama", bos_token_id=5, eos_token_id=[6, 7], pad_token_id=None)
    ids = arbitrary_ids(model, 3, 11)
    assert ids.shape == (3, 11)
    assert not {5, 6, 7} & set(ids.flatten().tolist())
    assert len(set(ids.flatten().tolist())) == 33


def test_agreement_forgives_rounding_and_one_flipped_expert_but_nothing_else():
    a = torch.randn(100, generator=torch.Generator().manual_seed(0))
    assert agree(a, a + 1e-7)
    outlier = a.clone()
    outlier[3] += 5
    assert agree(outlier, a)
    assert not agree(a + 1e-3, a)
    assert agree(a.bfloat16() * 1.01, a.bfloat16())
    assert not agree(a.bfloat16() * 1.5, a.bfloat16())


def test_the_first_floating_tensor_is_found_among_others():
    wanted = torch.ones(1)
    assert first_floating((None, torch.ones(1, dtype=torch.long), wanted, torch.zeros(1))) is wanted
    assert first_floating(wanted) is wanted
    assert first_floating({"a": wanted}) is None
    assert first_floating((None,)) is None


def test_a_folder_loads_ready_to_run(tmp_path):
    tiny_tokenizer(make_tiny("llama", tmp_path))
    model, tokenizer = load_causal_lm(tmp_path, torch.bfloat16)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    ids = torch.tensor([tokenizer("hot is not")["input_ids"]])
    assert run_model(model, ids).shape == (1, ids.shape[1], 256)


def test_a_missing_tensor_is_refused_instead_of_made_up(tmp_path):
    from safetensors.torch import load_file, save_file

    tiny_tokenizer(make_tiny("llama", tmp_path))
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DonorError, match=r"1 tensors are missing .* random: model.layers.2.mlp.up_proj.weight"):
        load_causal_lm(tmp_path)


def test_a_tensor_of_another_shape_is_refused(tmp_path):
    tiny_tokenizer(make_tiny("llama", tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 80}))
    with pytest.raises(DonorError, match="cannot load this folder|of the wrong shape"):
        load_causal_lm(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file_is_refused(tmp_path, name):
    tiny_tokenizer(make_tiny("llama", tmp_path))
    (tmp_path / name).unlink()
    with pytest.raises(DonorError, match="transformers cannot load this folder"):
        load_causal_lm(tmp_path)


def test_pickled_weights_are_refused(tmp_path):
    tiny_tokenizer(make_tiny("llama", tmp_path))
    (tmp_path / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(DonorError, match="transformers cannot load this folder"):
        load_causal_lm(tmp_path)
