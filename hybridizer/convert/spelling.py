"""A model folder in the spelling that llama.cpp's converter reads, where that differs from transformers'."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

GRANITE_HYBRID: Final = "granitemoehybrid"
# The converter tells attention from a state space by these names alone; transformers 5 writes the others.
_OLDER_NAMES: Final = {"full_attention": "attention", "linear_attention": "mamba"}
# Without this option the converter expects a multi-token prediction head, which no such hybrid has.
_OPTIONS: Final = {"qwen3_5_text": ("--no-mtp",)}


def spell_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` as the converter understands it; the model that it describes is the same.

    A granitemoehybrid gets the older names of its layers, for others are read as state spaces. With state-space layers
    and rotary positions it also gets Bamba's architecture: the converter switches rotary positions off for any other. A
    falcon_h1 gets the size of its heads, which the converter reads without asking whether it is there.
    """
    spelled = dict(config)
    if config.get("model_type") == GRANITE_HYBRID:
        layers = [_OLDER_NAMES.get(name, name) for name in config.get("layer_types") or ()]
        spelled["layer_types"] = layers
        if "mamba" in layers and config.get("position_embedding_type") == "rope":
            spelled["architectures"] = ["BambaForCausalLM"]
    if config.get("model_type") == "falcon_h1" and config.get("head_dim") is None:
        spelled["head_dim"] = config["hidden_size"] // config["num_attention_heads"]
    return spelled


def converter_options(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Options that the converter needs for the family of this config."""
    return _OPTIONS.get(str(config.get("model_type")), ())


def copy_spelled(model: Path, folder: Path, config: Mapping[str, Any]) -> None:
    """Fill `folder` with links to the files of `model`, and `config` in the converter's spelling as its config.json."""
    for path in sorted(model.iterdir()):
        if path.is_file() and path.name != "config.json":
            (folder / path.name).symlink_to(path.absolute())
    (folder / "config.json").write_text(json.dumps(spell_config(config), indent=2), encoding="utf-8")
