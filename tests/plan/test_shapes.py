import json
import warnings

import pytest
import torch

from hybridizer.core.errors import CheckpointError
from hybridizer.models.parts import find_parts
from hybridizer.plan.shapes import Experts, layer_shape, planned_shape
from support.shapes import shape_of
from support.tiny import tiny_config


def planned(model_type, **overrides):
    """The planned shape of a tiny model, and the model."""
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_config(tiny_config(model_type, **overrides))
    config = json.loads(json.dumps(model.config.to_dict()))
    names = dict(model.named_parameters())
    return planned_shape(config, {name: (tuple(p.shape), "F32") for name, p in names.items()}), model.eval()


@pytest.mark.parametrize(
    ("model_type", "attention_width"),
    [
        ("llama", 64),
        ("qwen3", 64),
        ("gpt2", 64),
        ("gemma3_text", 64),
        ("phi3", 64),
        ("deepseek_v3", 4 * (32 + 16) // 2),
    ],
)
def test_a_planned_shape_counts_what_the_model_holds(model_type, attention_width):
    shape, model = planned(model_type)
    parts = find_parts(model)
    assert [layer.parameters for layer in shape.layers] == [
        sum(p.numel() for p in layer.parameters()) for layer in parts.layers
    ]
    assert (shape.vocabulary, shape.width) == tuple(model.get_input_embeddings().weight.shape)
    assert {layer.attention_width for layer in shape.layers} == {attention_width}
    assert shape.stored_bytes == 4


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gpt2", "gemma3_text"])
def test_a_plan_and_the_loaded_model_give_the_same_shape(model_type):
    shape, model = planned(model_type)
    assert shape == shape_of(find_parts(model), 64)


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma3_text", "olmo2", "starcoder2", "gpt_neox"])
def test_the_kept_widths_are_what_autograd_keeps(model_type):
    from hybridizer.train.fused import fused

    shape, model = planned(model_type)
    layer, tokens = find_parts(model).layers[1], 64
    model.train().requires_grad_(True)
    kept: dict[int, int] = {}
    inside = []
    layer.register_forward_pre_hook(lambda *_: inside.append(True))
    layer.register_forward_hook(lambda *_: inside.clear())
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if inside and storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with fused(model), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(input_ids=torch.arange(tokens)[None], use_cache=False)
    found = sum(kept.values()) / 4 / tokens
    assert output.logits.requires_grad
    expected = shape.layers[1].kept_width + shape.layers[1].trained_width
    assert found == pytest.approx(expected, rel=0.15)  # the rest: statistics of norms, masks, copies for layout


def test_of_experts_all_take_memory_and_the_chosen_ones_work():
    shape, model = planned("qwen3_moe")
    sparse, dense = shape.layers[0], shape.layers[1]
    config = model.config
    expert = 3 * config.hidden_size * config.moe_intermediate_size
    shared = 64 * (64 + 32 + 32 + 64) + 64 * config.num_experts  # attention and router
    assert sparse.matrix_parameters == shared + config.num_experts_per_tok * expert
    assert sparse.parameters > shared + config.num_experts * expert
    assert dense.matrix_parameters == 64 * (64 + 32 + 32 + 64) + 3 * 64 * 96


def test_experts_one_by_one_count_as_stacked_ones_do():
    stacked = {"mlp.experts.up": (4, 8, 16), "mlp.router.weight": (4, 16)}
    single = {f"mlp.experts.{i}.up.weight": (8, 16) for i in range(4)} | {"mlp.router.weight": (4, 16)}
    worked = [layer_shape(t, 16, 0, Experts(4, 2)).matrix_parameters for t in (stacked, single)]
    assert worked == [2 * 8 * 16 + 4 * 16] * 2


def test_layers_without_attention_have_no_attention_width():
    shape, _ = planned("mamba2")
    assert {layer.attention_width for layer in shape.layers} == {0}
    mixed, _ = planned("qwen3_next")
    assert [layer.attention_width for layer in mixed.layers] == [0, 64, 0, 64]


def test_a_config_that_contradicts_its_tensors_is_refused():
    with pytest.raises(CheckpointError, match="layers"):
        planned_shape({"model_type": "llama", "num_hidden_layers": 3}, {"model.layers.0.a.weight": ((2, 2), "F32")})
