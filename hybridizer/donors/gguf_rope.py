"""The scaling of rotary positions of Llama 3.1 and later, which a GGUF file holds as a table of factors.

llama.cpp divides each frequency by its factor. A config gives the rule that the table was computed by, of which the
file says nothing: the rule that Llama 3.1, 3.2 and 3.3 were published with is tried, and the table compared with it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any, Final, NoReturn

from hybridizer.core.errors import CheckpointError, Problem
from hybridizer.donors.gguf_header import GgufHeader, GgufTensor

TABLE_NAME: Final = "rope_freqs.weight"

_PUBLISHED: Final[Mapping[str, Any]] = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_FLOAT32: Final = 0  # the ggml type
_MAX_FREQUENCIES = 4096
_TOLERANCE = 1e-5  # tables are computed in float32, whose rounding the division by a small share magnifies 32 times


def read_rope_scaling(header: GgufHeader, theta: float) -> dict[str, Any] | None:
    """The rope parameters that give the table of factors in a GGUF file; None where it has no table.

    `theta` is the base of the frequencies. Raises CheckpointError where the file is not a llama's, or the table
    differs from that of the rule by more than 1e-5 of a factor.
    """
    table = header.tensors.get(TABLE_NAME)
    if table is None:
        return None
    if header.architecture != "llama" or table.kind != _FLOAT32 or table.num_elements > _MAX_FREQUENCIES:
        _refuse(header, f"is not read for the architecture '{header.architecture}' and type {table.kind}.")
    factors = _read(header, table)
    parameters = {**_PUBLISHED, "factor": max(factors), "rope_theta": theta}
    expected = compute_factors(parameters, len(factors))
    pairs = zip(factors, expected, strict=True)
    apart = next((i for i, (a, b) in enumerate(pairs) if not math.isclose(a, b, rel_tol=_TOLERANCE)), None)
    if apart is not None:
        what = f"has {factors[apart]:g} at frequency {apart}, and Llama 3's rule gives {expected[apart]:g}: "
        _refuse(header, what + "no config can say it.")
    return parameters


def compute_factors(parameters: Mapping[str, Any], count: int) -> list[float]:
    """What the rule "llama3" divides each of `count` frequencies by: 1 for the high, `factor` for the low ones.

    Source: `_compute_llama3_parameters` of transformers, which multiplies by the inverse.
    """
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    factors = []
    for index in range(count):
        wavelength = 2 * math.pi * parameters["rope_theta"] ** (index / count)
        turns = parameters["original_max_position_embeddings"] / wavelength
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1 / ((1 - smooth) / parameters["factor"] + smooth))
    return factors


def _read(header: GgufHeader, table: GgufTensor) -> tuple[float, ...]:
    with header.path.open("rb") as file:
        file.seek(table.begin)
        factors = struct.unpack(f"<{table.num_elements}f", file.read(4 * table.num_elements))
    if not all(math.isfinite(factor) and factor >= 1 for factor in factors):
        _refuse(header, "holds factors that are not finite numbers of at least 1.")
    return factors


def _refuse(header: GgufHeader, what: str) -> NoReturn:
    fix = "Use the original safetensors checkpoint, whose config.json has the rule."
    raise CheckpointError(Problem(str(header.path), f"the table '{TABLE_NAME}' {what}", fix))
