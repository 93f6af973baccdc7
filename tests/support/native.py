"""Native hybrids of tiny donors: built from recipes, and assembled by hand from the donor and the written mixers."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from hybridizer.core.progress import SilentMonitor
from hybridizer.pipeline.build import Built, build
from support.lines import write_recipe
from support.prove import find_layers, load
from support.tiny import make_tiny

_BEFORE = {"original_max_position_embeddings": 32, "rope_theta": 1e6}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **_BEFORE}
YARN = {"rope_type": "yarn", "factor": 4.0, **_BEFORE}
# A donor of each family that a target takes: target, kind of mixer, donor, what its config needs beyond the sizes.
CASES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "llama": ("granitemoehybrid", "mamba2", "llama", {"tie_word_embeddings": True}),
    "llama with biases": ("granitemoehybrid", "mamba2", "llama", {"attention_bias": True}),
    "llama with scaled positions": (
        "granitemoehybrid",
        "mamba2",
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e4}},
    ),
    "llama with llama3 positions": ("granitemoehybrid", "mamba2", "llama", {"rope_parameters": LLAMA3}),
    "mistral": ("granitemoehybrid", "mamba2", "mistral", {"sliding_window": None}),
    "qwen2": ("granitemoehybrid", "mamba2", "qwen2", {"use_sliding_window": False}),
    "granite": (
        "granitemoehybrid",
        "mamba2",
        "granite",
        {"attention_multiplier": 0.3, "residual_multiplier": 0.5, "embedding_multiplier": 3.0, "logits_scaling": 2.0},
    ),
    "qwen3 and convolutions": ("lfm2", "short_conv", "qwen3", {"use_sliding_window": False}),
    "qwen3 and wide heads": ("lfm2", "short_conv", "qwen3", {"use_sliding_window": False, "head_dim": 32}),
    "qwen3": ("qwen3_5_text", "gated_delta_net", "qwen3", {"use_sliding_window": False}),
    "qwen3 with yarn": (
        "qwen3_5_text",
        "gated_delta_net",
        "qwen3",
        {"use_sliding_window": False, "rope_parameters": YARN},
    ),
    "qwen3 with biases": (
        "qwen3_5_text",
        "gated_delta_net",
        "qwen3",
        {"use_sliding_window": False, "attention_bias": True, "head_dim": 32},
    ),
    "olmo2": ("olmo_hybrid", "gated_delta_net", "olmo2", {}),
    "olmo3": ("olmo_hybrid", "gated_delta_net", "olmo3", {"layer_types": ["full_attention"] * 4}),
    "olmo3 with yarn": (
        "olmo_hybrid",
        "gated_delta_net",
        "olmo3",
        {
            "layer_types": ["full_attention"] * 4,
            "rope_parameters": {
                "full_attention": YARN,
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
            },
        },
    ),
    "olmo3 with settings beside its groups": (
        "olmo_hybrid",
        "gated_delta_net",
        "olmo3",
        {"layer_types": ["full_attention"] * 4, "rope_parameters": LLAMA3},
    ),
    "llama and branches": ("falcon_h1", "parallel mamba2", "llama", {"mlp_bias": True, "attention_bias": True}),
    "mistral and branches": ("falcon_h1", "parallel mamba2", "mistral", {"sliding_window": None}),
    "qwen2 and branches": ("falcon_h1", "parallel mamba2", "qwen2", {"use_sliding_window": False}),
    "qwen3 and next": ("qwen3_next", "gated_delta_net", "qwen3", {"use_sliding_window": False}),
}


def make_case(name: str, folder: Path) -> Path:
    """The donor of a case, without a tokenizer, in a folder of its own."""
    _, _, family, overrides = CASES[name]
    return make_tiny(family, folder / "donor", **deepcopy(overrides))  # transformers adds to what it is given


def build_native(folder: Path, donor: Path, slices: list[dict[str, Any]], name: str = "x", **layout: Any) -> Built:
    """The model that a recipe with these slices of the donor `a` builds, not loaded yet."""
    entry = {"source": str(donor), "allow": ["no_tokenizer"]}
    content = {"donors": {"a": entry}, "layout": {"host": "a", "slices": slices, **layout}}
    recipe = write_recipe(folder / f"{name}.yaml", **content)
    built = build(recipe, (), folder / "runs", SilentMonitor(), replace=False, deep=False, load=False)
    assert built is not None
    return built


class _AsAttention(nn.Module):
    """A mixer in the place of a donor's attention, or beside it."""

    def __init__(self, mixer: nn.Module, attention: nn.Module | None) -> None:
        super().__init__()
        self.mixer, self.attention = mixer, attention

    def forward(self, hidden_states: torch.Tensor, **options: Any) -> tuple[torch.Tensor, None]:
        mixed = self.mixer(hidden_states, attention_mask=probe()[1])
        if self.attention is None:
            return mixed, None
        return mixed + self.attention(hidden_states=hidden_states, **options)[0], None


class _AsLayer(nn.Module):
    """A layer of the written model in the donor's."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
        return self.layer(hidden_states, attention_mask=probe()[1])


def assemble_by_hand(donor: Path, written: PreTrainedModel, places: list[int], how: str) -> PreTrainedModel:
    """The donor's own model with mixers of the written one at `places`: "swap"ped for attention, or "beside" it.

    "insert" puts whole layers of the written model there.
    """
    model = load(donor)
    for place in places:
        found = find_layers(written)[place]
        if how == "insert":
            find_layers(model).insert(place, _AsLayer(found))
            model.config.num_hidden_layers += 1
            if getattr(model.config, "layer_types", None):
                model.config.layer_types.insert(place, "full_attention")
            continue
        (mixer,) = (module for name, module in found.named_children() if name in MIXERS)
        layer = find_layers(model)[place]
        layer.self_attn = _AsAttention(mixer, layer.self_attn if how == "beside" else None)
    return model


MIXERS = ("mamba", "conv", "linear_attn")


def probe() -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of two rows of 24 tokens and their mask: the first is padded on the left."""
    ids = torch.randint(3, 250, (2, 24), generator=torch.Generator().manual_seed(7))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    return ids, mask


def logits_of(model: PreTrainedModel, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The logits of the probe, at the places that are not padding."""
    ids, mask = probe()
    with torch.no_grad():
        logits = model.to(dtype)(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return logits[mask.bool()]


def load_in(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model in `folder`, read in `dtype`."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
