"""What a conversion is to write, and by how much llama.cpp may then differ from transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True)
class WeightType:
    """A type of weights in a GGUF file: the most bits per byte of text that it may cost, and bytes per weight.

    The limits are at least 2.5 times the largest loss that was measured (docs/deploy.md).
    `bytes_each` is an upper estimate.
    """

    limit: float
    bytes_each: float


FLOATS: Final[Mapping[str, WeightType]] = MappingProxyType({
    "f32": WeightType(0.001, 4.0), "f16": WeightType(0.002, 2.0), "bf16": WeightType(0.01, 2.0),
})  # fmt: skip
QUANTISED: Final[Mapping[str, WeightType]] = MappingProxyType({
    "q8_0": WeightType(0.02, 1.1), "q6_k": WeightType(0.05, 1.1), "q5_k_m": WeightType(0.1, 1.1),
    "q4_k_m": WeightType(0.2, 1.1),
})  # fmt: skip
TYPES: Final[Mapping[str, WeightType]] = MappingProxyType({**FLOATS, **QUANTISED})


@dataclass(frozen=True)
class ConvertRequest:
    """The type of the weights, where the file goes (None: beside the model), and the text that both engines score.

    `text` None is the built-in text; of it, the first `windows` of `context` tokens count. `llama_cpp` is the source
    tree of llama.cpp, None for installed programs.
    """

    type: str = "f16"
    out: Path | None = None
    text: Path | None = None
    context: int = 512
    windows: int = 8
    llama_cpp: Path | None = None
    replace: bool = False
