"""Which tensors of a layer are replaced so that the layer returns its input exactly: a zero-output copy.

LLaMA-Pro (arXiv 2401.02415) zeroes the output projections of attention and MLP. [ours] Where a norm follows a
projection, the norm's weight is replaced instead: behind a projection near zero, a norm scales any output up to its
full size within a few steps. tests/families/test_identity.py holds the tables against the models of transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from hybridizer.families.structure import Structure

ZERO, MINUS_ONE = "zero", "minus one"  # what a replaced tensor is filled with

# The module that an output projection is, by the last name on its path; `down_proj_bias` is that of gpt_oss's experts.
_OUTPUT_NAMES: Final = """
    o_proj out_proj down_proj down_proj_bias c_proj fc_out fc2 dense_4h_to_h linear_out output_linear w2 Wo proj_down
"""
_OUTPUTS: Final = frozenset(_OUTPUT_NAMES.split())
# Modules and tensors of single families, whose names mean something else in others.
_OWN_OUTPUTS: Final[Mapping[str, tuple[str, ...]]] = {
    "bailing_hybrid": ("attention.dense",),
    "bloom": ("self_attention.dense",),
    "ctrl": ("multi_head_attention.dense", "ffn.2"),
    "falcon": ("self_attention.dense",),
    "gpt_neox": ("attention.dense",),
    "jetmoe": ("mlp.bias", "self_attention.experts.bias"),
    "persimmon": ("self_attn.dense",),
    "phi": ("self_attn.dense",),
}
_ROUTERS: Final = re.compile(r"(^|\.)(gate|router)\.")  # their projections choose experts

# Norms between a module's output and the residual stream: the norm, and the start of the names of that module.
_OLMO: Final = {"post_attention_layernorm": ("self_attn.",), "post_feedforward_layernorm": ("mlp.",)}
_POST_NORMS: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "afmoe": {"post_attention_layernorm": ("self_attn.",), "post_mlp_layernorm": ("mlp.",)},
    "axk1": {"post_mlp_layernorm": ("mlp.",)},
    "exaone4": _OLMO,
    "flex_olmo": _OLMO,
    "gemma2": _OLMO,
    "gemma3_text": _OLMO,
    "glm4": {"post_self_attn_layernorm": ("self_attn.",), "post_mlp_layernorm": ("mlp.",)},
    "hyperclovax": {"post_norm1": ("self_attn.",), "post_norm2": ("mlp.",)},
    "kolibri1": {"post_attn_norm": ("self_attn.",), "post_ffn_norm": ("mlp.", "moe.")},
    "lfm3": {"post_operator_norm": ("self_attn.", "conv."), "post_ffn_norm": ("feed_forward.",)},
    "olmo2": _OLMO,
    "olmo3": _OLMO,
    "olmo_hybrid": _OLMO,
}
_ADD_ONE: Final = frozenset({"gemma2", "gemma3_text"})  # their norms multiply by 1 + weight

_SCALED = "its layers scale the residual stream itself"
_REFUSED: Final[Mapping[str, str]] = {
    "deepseek_v4": "its layers mix several residual streams (hyper-connections)",
    "doge": f"{_SCALED} (`input_residual`)",
    "gemma4_text": f"{_SCALED} (`layer_scalar`)",
    "gemma4_unified_text": f"{_SCALED} (`layer_scalar`)",
    "gpt_neox_japanese": "its last layer alone adds a bias",
    "longcat_flash": "some of its experts return their input",
    "minimax": "its residual stream is what a norm returns",
    "openai-gpt": "a norm follows each addition to its residual stream",
    "rwkv": "its first layer has a norm on the residual stream",
    "zaya": _SCALED,
}


def why_not_identity(family: str) -> str | None:
    """Why no layer of `family` can be made to return its input by its output tensors; None where it can."""
    return _REFUSED.get(family)


def identity_fills(structure: Structure, layer: int) -> dict[str, str]:
    """The tensors of `layer`, by suffix, that a zero-output copy replaces, each with what fills it.

    Empty where no output projection is found. For families that `why_not_identity` does not refuse.
    """
    family, suffixes = structure.text_family, structure.layers[layer]
    norms = {
        f"{norm}.weight": starts for norm, starts in _POST_NORMS.get(family, {}).items() if f"{norm}.weight" in suffixes
    }
    covered = tuple(start for starts in norms.values() for start in starts)
    fills = {suffix: MINUS_ONE if family in _ADD_ONE else ZERO for suffix in norms}
    fills |= {suffix: ZERO for suffix in suffixes if _is_output(family, suffix) and not suffix.startswith(covered)}
    return fills


def _is_output(family: str, suffix: str) -> bool:
    """Whether a tensor is the weight or the bias of a projection into the residual stream."""
    path, _, last = suffix.rpartition(".")
    module = path if last in ("weight", "bias") else suffix
    if _ROUTERS.search(suffix):
        return False
    own = _OWN_OUTPUTS.get(family, ())
    return module.rpartition(".")[2] in _OUTPUTS or module in own or suffix in own
