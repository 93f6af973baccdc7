"""Which tensors of a layer are zero where the layer returns its input exactly: a zero-output copy.

LLaMA-Pro (arXiv 2401.02415) zeroes the output projections of attention and MLP. A norm behind one gives zero for zero.
tests/families/test_identity.py holds the tables against the models of transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from hybridizer.families.structure import Structure

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


def output_tensors(structure: Structure, layer: int) -> frozenset[str]:
    """The tensors of `layer`, by suffix, that are zero in a zero-output copy: weights and biases of its outputs.

    Empty where no output projection is found. For families that `why_not_identity` does not refuse.
    """
    return frozenset(suffix for suffix in structure.layers[layer] if _is_output(structure.text_family, suffix))


def _is_output(family: str, suffix: str) -> bool:
    """Whether a tensor is the weight or the bias of a projection into the residual stream."""
    path, _, last = suffix.rpartition(".")
    module = path if last in ("weight", "bias") else suffix
    if _ROUTERS.search(suffix):
        return False
    own = _OWN_OUTPUTS.get(family, ())
    return module.rpartition(".")[2] in _OUTPUTS or module in own or suffix in own
