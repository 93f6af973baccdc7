"""The rotary settings of a config, whichever generation of transformers wrote it.

Until version 4 a config has `rope_theta`, `rope_scaling` and family-specific keys; from version 5 on it has
`rope_parameters`, nested by layer type where a family has several. Both are read into the same plain dict.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hybridizer.families.encodings import Config

_KEYS = """
    rope_parameters rope_scaling rope_theta partial_rotary_factor rotary_pct rope_pct rotary_emb_base
    rope_local_base_freq global_rope_theta local_rope_theta original_max_position_embeddings
"""
ROPE_KEYS = frozenset(_KEYS.split())

# What transformers 5.23 assumes for an absent key, where it is not 10000 and the whole head.
_DEFAULT_THETA = {
    "apertus": 12e6, "bailing_hybrid": 6e6, "bitnet": 5e5, "cohere": 5e5, "cwm": 1e6, "ernie4_5": 5e5,
    "ernie4_5_moe": 5e5, "flex_olmo": 5e5, "gpt_oss": 150e3, "helium": 1e5, "hy_v3": 11158840.0, "lfm2": 1e6,
    "lfm2_moe": 1e6, "lfm3": 1e6, "llama4_text": 5e5, "longcat_flash": 1e7, "minimax": 1e6, "minimax_m2": 5e6,
    "minimax_m3_vl_text": 5e6, "mixtral": 1e6, "olmo3": 5e5, "phimoe": 1e6,
}  # fmt: skip
_DEFAULT_PARTIAL = {
    "bamba": 0.5, "glm": 0.5, "glm4": 0.5, "glm4_moe": 0.5, "gpt_neox": 0.25, "nemotron": 0.5, "persimmon": 0.5,
    "phi": 0.5, "qwen3_5_moe_text": 0.25, "qwen3_5_text": 0.25, "qwen3_next": 0.25, "recurrent_gemma": 0.5,
    "stablelm": 0.25,
}  # fmt: skip
# Families whose layer types have rotary settings of their own: the old keys of both bases, and whether the scaling of
# an old config applies to sliding layers too.
_BY_LAYER_TYPE = {
    "gemma3_text": (("rope_theta", 1e6), ("rope_local_base_freq", 1e4), False),
    "gemma3n_text": (("rope_theta", 1e6), ("rope_local_base_freq", 1e4), False),
    "modernbert-decoder": (("global_rope_theta", 160e3), ("local_rope_theta", 1e4), True),
    "olmo3": (("rope_theta", 5e5), ("rope_theta", 5e5), False),
}
_SAME_TYPE = {"su": "longrope", "mrope": "default"}
# The scaling of these depends on the model's context length.
_USES_CONTEXT = frozenset({"dynamic", "yarn", "longrope"})


def read_rope(config: Config, family: str) -> dict[str, Any]:
    """The rotary settings, flat, with dotted names ("full_attention.rope_theta"); equal dicts mean equal rotations."""
    new = config.get("rope_parameters")
    by_type = {str(name): dict(group) for name, group in _settings(new).items() if isinstance(group, Mapping)}
    if by_type:  # what transformers leaves beside the groups of a family that has them rotates nothing
        groups = by_type
    elif family in _BY_LAYER_TYPE and new is None:
        groups = _read_old_by_type(config, family)
    else:
        groups = {"": _settings(config.get("rope_scaling") if new is None else new)}
    flat: dict[str, Any] = {}
    for name, group in groups.items():
        for key, value in _complete(group, config, family).items():
            flat[f"{name}.{key}" if name else key] = value
    return flat


def _settings(value: Any) -> dict[str, Any]:
    """A dict of settings; an invalid value becomes a setting of its own, so that it equals only itself."""
    return {} if value is None else dict(value) if isinstance(value, Mapping) else {"unreadable": value}


def _read_old_by_type(config: Config, family: str) -> dict[str, dict[str, Any]]:
    (full_key, full_default), (sliding_key, sliding_default), scale_both = _BY_LAYER_TYPE[family]
    scaling = _settings(config.get("rope_scaling"))
    return {
        "full_attention": {**scaling, "rope_theta": config.get(full_key) or full_default},
        "sliding_attention": {
            **(scaling if scale_both else {}),
            "rope_theta": config.get(sliding_key) or sliding_default,
        },
    }


def _complete(group: Mapping[str, Any], config: Config, family: str) -> dict[str, Any]:
    """One group of settings with its defaults filled in, old names replaced and nulls left out."""
    settings = {key: value for key, value in group.items() if value is not None and key != "type"}
    kind = str(group.get("rope_type") or group.get("type") or "default")
    settings["rope_type"] = kind = _SAME_TYPE.get(kind, kind)
    theta = config.get("rope_theta") or config.get("rotary_emb_base") or _DEFAULT_THETA.get(family, 1e4)
    settings.setdefault("rope_theta", theta)
    partial = next(
        (config[key] for key in ("partial_rotary_factor", "rotary_pct", "rope_pct") if config.get(key)), None
    )
    settings.setdefault("partial_rotary_factor", partial or _DEFAULT_PARTIAL.get(family, 1.0))
    if kind in _USES_CONTEXT:
        settings["max_position_embeddings"] = config.get("max_position_embeddings")
        settings.setdefault("original_max_position_embeddings", config.get("original_max_position_embeddings"))
    return settings
