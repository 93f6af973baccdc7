"""A finished trace on disk: the record as JSON, and the readings that any other figure can be computed from."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridizer.core.files import write_file
from hybridizer.core.records import read_json, write_json

if TYPE_CHECKING:
    from hybridizer.trace.baselines import LayerScores
    from hybridizer.trace.readings import Readings

_RECORD, _READINGS = "record.json", "readings.npz"


@dataclass(frozen=True)
class TraceRun:
    """A donor's trace: the JSON object of schema hybridizer.trace/1, the readings behind it, baselines if asked."""

    donor: str
    record: Mapping[str, Any]
    readings: Readings
    baselines: tuple[LayerScores, ...] = ()


def is_traced(folder: Path) -> bool:
    """Whether `folder` holds a finished trace."""
    return (folder / _RECORD).is_file()


def write_traced(folder: Path, record: Mapping[str, Any], readings: Readings) -> None:
    """Write a trace into the existing `folder`; the record last, so that a trace is whole or not there."""
    import numpy as np

    buffer = io.BytesIO()
    np.savez(buffer, **{name: array for name, array in vars(readings).items() if array is not None})
    write_file(folder / _READINGS, buffer.getvalue())
    write_json(folder / _RECORD, record)


def read_traced(folder: Path, donor: str, reference: str) -> TraceRun:
    """The trace in `folder` under the donor's present name and reference. Raises CheckpointError when it is damaged."""
    import numpy as np

    from hybridizer.trace.readings import Readings

    record = read_json(folder / _RECORD)
    record["donor"]["reference"] = reference
    with np.load(folder / _READINGS, allow_pickle=False) as stored:
        arrays = {f.name: stored.get(f.name) for f in fields(Readings)}
    return TraceRun(donor, record, Readings(**arrays))
