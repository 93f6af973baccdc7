"""Donors that are refused, or pass only when the recipe allows it by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hybridizer.core.errors import DonorError, Problem

_QUANTISED_NAME = re.compile(
    r"\.(weight_scale_inv|weight_scale|input_scale|qweight|qzeros|scales|g_idx|SCB|weight\.absmax|weight\.quant_map"
    r"|weight\.quant_state\..*|weight_packed|weight_shape|[a-z_]*_blocks)$"
)
_QUANTISED_DTYPES = ("F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2")
_QUANTISED_FIX = (
    "Give a checkpoint in bfloat16, float16 or float32: dequantise this one first, with the tool that made it."
)


def refuse_remote_code(folder: Path, config: Mapping[str, Any], allow: Iterable[str]) -> None:
    """Raise DonorError when the checkpoint asks for Python code of its own and `allow` does not name remote_code."""
    wanted = config.get("auto_map")
    if not wanted or "remote_code" in allow:
        return
    files = ", ".join(sorted({str(target).partition(".")[0] + ".py" for target in _targets(wanted)}))
    what = f"its config.json asks to run code that comes with the checkpoint ({files})."
    fix = "Read that code; if you trust it, add `allow: [remote_code]` to this donor."
    raise DonorError(Problem(str(folder / "config.json"), what, fix))


def _targets(auto_map: Any) -> list[Any]:
    return list(auto_map.values()) if isinstance(auto_map, Mapping) else [auto_map]


def refuse_quantised(folder: Path, config: Mapping[str, Any], dtypes: Mapping[str, str]) -> None:
    """Raise DonorError for quantised weights: a config that says so, or tensors (name to dtype) that only those have.

    Copying, renumbering or blending such tensors without their scales corrupts weights in silence (an FP8 donor without
    its scales came out 5312 times too large).
    """
    settings = config.get("quantization_config") or config.get("compression_config")
    if settings:
        method = settings.get("quant_method", "unknown") if isinstance(settings, Mapping) else settings
        what = f"its weights are quantised ({method})."
        raise DonorError(Problem(str(folder / "config.json"), what, _QUANTISED_FIX))
    for name, dtype in dtypes.items():
        if _QUANTISED_NAME.search(name) or dtype in _QUANTISED_DTYPES:
            what = f"the tensor '{name}' ({dtype}) belongs to quantised weights, which config.json does not mention."
            raise DonorError(Problem(str(folder), what, _QUANTISED_FIX))
