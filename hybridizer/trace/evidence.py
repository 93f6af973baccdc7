"""What a trace record says about where to put the boundary, taken out of the plain JSON object once and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hybridizer.core.errors import InputError, Problem

SCHEMA = "hybridizer.trace/1"

Interval = tuple[float, float]


@dataclass(frozen=True)
class Evidence:
    """Of one traced donor: `delta_js[l - 1]` in bits, and `scores[b - 1]` = S(b) with its 95% interval.

    An interval is None where there was one prompt. `particle` is the median task particle, 1..L in halves, None where
    no prompt has one.
    """

    donor: str
    delta_js: tuple[float, ...]
    scores: tuple[float, ...]
    intervals: tuple[Interval | None, ...]
    particle: float | None

    @property
    def num_layers(self) -> int:
        """L, the number of the donor's layers."""
        return len(self.delta_js)


def read_evidence(record: Mapping[str, Any]) -> Evidence:
    """The evidence in a record of schema "hybridizer.trace/1".

    Raises InputError for another schema, a field that is missing or of the wrong kind, layers or boundaries that are
    not numbered 1..L and 1..L-1, and a donor of a single layer, which no boundary splits.
    """
    if record.get("schema") != SCHEMA:
        raise _refusal("schema", f"{record.get('schema')!r} is not '{SCHEMA}'")
    layers, boundary = _rows(record, "layers", "layer"), _rows(record, "boundary", "b")
    if len(layers) < 2 or len(boundary) != len(layers) - 1:
        raise _refusal(
            "boundary", f"{len(layers)} layers and {len(boundary)} boundaries; L layers have L - 1, at least one"
        )
    return Evidence(
        donor=str(_field(record, "donor", Mapping).get("reference")),
        delta_js=tuple(_number(row, "delta_js", f"layers[{i}]") for i, row in enumerate(layers)),
        scores=tuple(_number(row, "s", f"boundary[{i}]") for i, row in enumerate(boundary)),
        intervals=tuple(_interval(row, "s_ci", f"boundary[{i}]") for i, row in enumerate(boundary)),
        particle=_particle(_field(record, "task_particle", Mapping), len(layers)),
    )


def _rows(record: Mapping[str, Any], name: str, number: str) -> list[Mapping[str, Any]]:
    rows: list[Mapping[str, Any]] = _field(record, name, list)
    if [row.get(number) if isinstance(row, Mapping) else None for row in rows] != [*range(1, len(rows) + 1)]:
        raise _refusal(name, f"its rows are not numbered {number} = 1, 2, ... in order")
    return rows


def _particle(particle: Mapping[str, Any], num_layers: int) -> float | None:
    if particle.get("layer") is None:
        return None
    layer = _number(particle, "layer", "task_particle")
    if not 1 <= layer <= num_layers:
        raise _refusal("task_particle.layer", f"{layer} is none of the {num_layers} layers")
    return layer


def _interval(row: Mapping[str, Any], name: str, where: str) -> Interval | None:
    value = row.get(name)
    if value is None:
        return None
    if (
        not isinstance(value, (list, tuple))
        or len(value) != 2
        or not all(map(_is_number, value))
        or value[0] > value[1]
    ):
        raise _refusal(f"{where}.{name}", f"{value!r} is not an interval [low, high]")
    return float(value[0]), float(value[1])


def _number(row: Mapping[str, Any], name: str, where: str) -> float:
    if not _is_number(row.get(name)):
        raise _refusal(f"{where}.{name}", f"{row.get(name)!r} is not a number")
    return float(row[name])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _field(record: Mapping[str, Any], name: str, kind: type) -> Any:
    if not isinstance(record.get(name), kind):
        raise _refusal(name, "it is missing or of the wrong kind")
    return record[name]


def _refusal(where: str, what: str) -> InputError:
    return InputError(Problem(f"trace record: {where}", f"{what}.", "Trace the donor again."))
