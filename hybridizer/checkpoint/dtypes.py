"""The dtypes of tensors: how safetensors and torch name them, and how wide they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# Each by its safetensors name: bits of an element, and the name in torch, in a config and in a recipe.
_DTYPES: Final[Mapping[str, tuple[int, str]]] = {
    "F64": (64, "float64"),
    "F32": (32, "float32"),
    "F16": (16, "float16"),
    "BF16": (16, "bfloat16"),
    "F8_E4M3": (8, "float8_e4m3fn"),
    "F8_E5M2": (8, "float8_e5m2"),
    "F8_E4M3FNUZ": (8, "float8_e4m3fnuz"),
    "F8_E5M2FNUZ": (8, "float8_e5m2fnuz"),
    "F8_E8M0": (8, "float8_e8m0fnu"),
    "I64": (64, "int64"),
    "I32": (32, "int32"),
    "I16": (16, "int16"),
    "I8": (8, "int8"),
    "U64": (64, "uint64"),
    "U32": (32, "uint32"),
    "U16": (16, "uint16"),
    "U8": (8, "uint8"),
    "BOOL": (8, "bool"),
    "C64": (64, "complex64"),
}
DTYPE_BITS: Final[Mapping[str, int]] = {name: bits for name, (bits, _) in _DTYPES.items()}
TORCH_NAMES: Final[Mapping[str, str]] = {name: torch_name for name, (_, torch_name) in _DTYPES.items()}
SAFETENSORS_NAMES: Final[Mapping[str, str]] = {torch_name: name for name, torch_name in TORCH_NAMES.items()}
FLOATING: Final = ("F64", "F32", "F16", "BF16")  # what weights are computed, blended and converted in
SUB_BYTE_DTYPES: Final = frozenset({"F4", "F6_E2M3", "F6_E3M2"})  # several numbers per byte: never read
