"""Edits of a config.json that are not about layers."""

from __future__ import annotations

from typing import Any


def set_config_dtype(config: dict[str, Any], dtype: str) -> None:
    """Let every place where `config` names a dtype name `dtype`, in the spelling it uses (`dtype` or `torch_dtype`)."""
    found = False
    for section in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in ("dtype", "torch_dtype"):
            if key in section:
                section[key] = dtype
                found = True
    if not found:
        config["torch_dtype"] = dtype
