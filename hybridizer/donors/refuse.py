"""Donors that are refused, or accepted only when the recipe allows it by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hybridizer.checkpoint.header import TensorEntry
from hybridizer.checkpoint.strict_json import shorten
from hybridizer.core.errors import DonorError, Problem
from hybridizer.families.names import is_recomputed

_QUANTISED_NAME = re.compile(
    r"\.(weight_scale_inv|weight_scale|input_scale|qweight|qzeros|scales|g_idx|SCB|weight\.absmax|weight\.quant_map"
    r"|weight\.quant_state\..*|weight_packed|weight_shape|[a-z_]*_blocks)$"
)
_EIGHT_BITS = ("I8", "U8")
_INTEGERS = ("I64", "I32", "I16", "U64", "U32", "U16", "BOOL")
_QUANTISED_FIX = (
    "Give a checkpoint in bfloat16, float16 or float32: dequantise this one first, with the tool that made it."
)


def refuse_remote_code(files: Mapping[Path, Any], allow: Iterable[str]) -> None:
    """Raise DonorError when a config of the checkpoint requires its own Python code and `allow` lacks remote_code.

    `files` are the contents of config.json and of tokenizer_config.json; transformers reads `auto_map` in both, and
    in the configs nested in them.
    """
    if "remote_code" in allow:
        return
    for path, content in files.items():
        wanted = [target for auto_map in _find_auto_maps(content) for target in _targets(auto_map)]
        if wanted:
            modules = {str(target).rpartition("--")[2].partition(".")[0] + ".py" for target in wanted if target}
            what = (
                f"its {path.name} requires running code that comes with the checkpoint ({', '.join(sorted(modules))})."
            )
            fix = "Read that code; if you trust it, add `allow: [remote_code]` to this donor."
            raise DonorError(Problem(str(path), what, fix))


def _find_auto_maps(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        if value.get("auto_map"):
            yield value["auto_map"]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _find_auto_maps(item)


def _targets(auto_map: Any) -> list[Any]:
    values = list(auto_map.values()) if isinstance(auto_map, Mapping) else [auto_map]
    return [target for value in values for target in (value if isinstance(value, list) else [value])]


def refuse_quantised(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorEntry]) -> None:
    """Raise DonorError for quantised weights: by the config, or by tensors that only those have.

    Copying, renumbering or blending such tensors without their scales corrupts weights silently (an FP8 donor without
    its scales came out 5312 times too large). 8-bit numbers are refused in any tensor, integers as weights and biases;
    buffers such as position ids may be integers.
    """
    settings = config.get("quantization_config") or config.get("compression_config")
    if settings:
        method = settings.get("quant_method", "unknown") if isinstance(settings, Mapping) else settings
        what = f"its weights are quantised ({shorten(method)})."
        raise DonorError(Problem(str(folder / "config.json"), what, _QUANTISED_FIX))
    for name, entry in tensors.items():
        if _looks_quantised(name, entry) and not is_recomputed(name, entry.shape):
            what = f"the tensor '{name}' ({entry.dtype}) belongs to quantised weights, which config.json does not "
            what += "mention."
            raise DonorError(Problem(str(folder), what, _QUANTISED_FIX))


def _looks_quantised(name: str, entry: TensorEntry) -> bool:
    if _QUANTISED_NAME.search(name) or entry.dtype.startswith(("F8", "F6", "F4")):
        return True
    if entry.dtype in _EIGHT_BITS:
        return not name.endswith("mask")
    return entry.dtype in _INTEGERS and name.endswith((".weight", ".bias"))
