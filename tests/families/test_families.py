"""Splices of tiny checkpoints, family by family: every layer computes what its donor's layer computes, or is refused.

Two random donors, four orders of layers, recipes that are planned and built as users' are, the real models of
transformers, `torch.equal`. A family that is neither exact nor refused is a bug; so is one that is refused without
being listed here. Those that are not listed are held against docs/families.md, which scripts/family_table.py writes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybridizer.core.errors import PlanError
from support.marks import slow_except
from support.prove import orders, try_splices
from support.scripts import load_script
from support.tiny import FAMILIES as ALL_FAMILIES
from support.tiny import make_tiny, tiny_config

ALL = {"same depth", "grown", "shrunk", "shifted"}
# Orders that a family cannot have, by its config's encoding or by what its layers do.
REFUSED: dict[str, set[str]] = {
    "deepseek_v3": {"shifted"},
    "diffllama": {"grown", "shrunk", "shifted"},
    "gemma3n_text": ALL,
    "gemma4_unified_text": {"shifted"},
    "jamba": {"grown", "shrunk"},
    "lfm2_moe": {"shifted"},
    "rwkv": {"shifted"},
    "zamba2": ALL,
    "zaya": ALL,
}
FAMILIES = """
    bamba bloom cohere2 deepseek_v3 deepseek_v4 diffllama exaone4 falcon falcon_h1 gemma2 gemma3_text gemma3n_text
    gemma4_unified_text glm4 gpt2 gpt_neo gpt_neox gpt_oss granite_swa granitemoehybrid hunyuan_v1_moe jamba kimi_linear
    lfm2 lfm2_moe llama llama4_text mamba mamba2 minicpm3 mistral mixtral nemotron_h olmo3 olmo_hybrid opt phi3 qwen2
    qwen2_moe qwen3 qwen3_5_text qwen3_moe qwen3_next recurrent_gemma rwkv smollm3 zamba2 zaya
"""


pytestmark = pytest.mark.usefixtures("bench")


def check(first: Path, second: Path, refused: set[str], folder: Path) -> None:
    """All four splices of two checkpoints are exact, save those listed as refused, and those are refused."""
    found = try_splices((first, second), folder)
    assert found.keys() == orders().keys()
    errors = {name: error for name, error in found.items() if error is not None}
    assert errors.keys() == refused and all(isinstance(error, PlanError) for error in errors.values()), errors


@pytest.mark.parametrize("family", slow_except(FAMILIES.split(), "llama", "gemma3_text", "qwen3_moe", "mamba2"))
def test_layers_compute_what_the_donors_layers_computed(family: str, tmp_path: Path) -> None:
    first, second = (make_tiny(family, tmp_path / f"donor{seed}", seed=seed) for seed in (0, 1))
    check(first, second, REFUSED.get(family, set()), tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the modelling code of transformers
@pytest.mark.parametrize("family", sorted(set(ALL_FAMILIES) - set(FAMILIES.split())))
def test_every_other_family_does_what_its_row_in_the_docs_says(family: str, tmp_path: Path) -> None:
    script = load_script("family_table")
    assert script.format_row(script.try_family(family, tmp_path)) in script.TABLE.read_text()


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama with a tied head": ("llama", {"tie_word_embeddings": True}),
    "falcon with alibi": ("falcon", {"alibi": True, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "qwen3_moe by steps": ("qwen3_moe", {"decoder_sparse_step": 2, "mlp_only_layers": []}),
    "gpt2 with depth-scaled attention": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "gemma4 without per-layer embeddings": ("gemma4_text", {"hidden_size_per_layer_input": 0}),
    "minicpm3 with a depth scale": ("minicpm3", {"scale_depth": 1.4}),
}


REFUSED_VARIANTS = {
    "gemma4 without per-layer embeddings": {"shifted"},
    "gpt2 with depth-scaled attention": {"grown", "shrunk", "shifted"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_are_exact_too(variant: str, tmp_path: Path) -> None:
    family, overrides = VARIANTS[variant]
    first, second = (make_tiny(family, tmp_path / f"donor{seed}", seed=seed, **overrides) for seed in (0, 1))
    check(first, second, REFUSED_VARIANTS.get(variant, set()), tmp_path)


@pytest.mark.slow
def test_the_decoder_of_a_vision_model_is_spliced_in_place(tmp_path: Path) -> None:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,  # as many as the decoder has: the lists must not be confused
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    overrides = {
        "text_config": tiny_config("gemma3_text").to_dict(),
        "vision_config": vision,
        "mm_tokens_per_image": 4,
    }
    first, second = (make_tiny("gemma3", tmp_path / f"donor{seed}", seed=seed, **overrides) for seed in (0, 1))
    check(first, second, set(), tmp_path)


def _renamed(config: dict[str, Any]) -> dict[str, Any]:
    names = {"linear_attention": "mamba", "full_attention": "attention"}
    return {"layers_block_type": [names[name] for name in config["layer_types"]], "layer_types": None}


def _old_rope(config: dict[str, Any]) -> dict[str, Any]:
    rope = config["rope_parameters"]
    return {"rope_parameters": None, "rope_theta": rope["rope_theta"], "rope_scaling": None}


# Configs as transformers 4 and the authors of the families wrote them: None takes a key out.
OLD: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "bailing_hybrid": lambda config: {"layer_types": None, "mlp_layer_types": None, "layer_group_size": 2},
    "cohere2": lambda config: {"layer_types": None, "sliding_window_pattern": 2},
    "gemma2": lambda config: {"layer_types": None},
    "gemma3_text": lambda config: {
        "layer_types": None,
        "sliding_window_pattern": 2,
        "_sliding_window_pattern": None,
        "rope_parameters": None,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
    },
    "glm_moe_dsa": lambda config: {"mlp_layer_types": None, "layer_types": None, "indexer_types": None},
    "granitemoehybrid": _renamed,
    "lfm2": lambda config: {"layer_types": None, "full_attn_idxs": [1, 3]},
    "llama": _old_rope,
    "llama4_text": lambda config: {"layer_types": None, "no_rope_layers": None, "moe_layers": None},
    "nemotron_h": lambda config: {"layers_block_type": None, "hybrid_override_pattern": "M*E-", "num_hidden_layers": 4},
    "qwen2": lambda config: {"layer_types": None},
    "qwen3_next": lambda config: {"layer_types": None, "full_attention_interval": 2},
    "smollm3": lambda config: {"layer_types": None, "no_rope_layers": None},
}


@pytest.mark.parametrize("family", slow_except(OLD, "gemma3_text"))
def test_old_configs_are_spliced_as_exactly(family: str, tmp_path: Path) -> None:
    folders = [make_tiny(family, tmp_path / f"donor{seed}", seed=seed) for seed in (0, 1)]
    for folder in folders:
        config = json.loads((folder / "config.json").read_text())
        config |= OLD[family](config)
        kept = {key: value for key, value in config.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(kept))
    check(*folders, set(), tmp_path)
