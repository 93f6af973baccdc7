"""JSON in, JSON out, and a content hash that is the same on every machine.

Stages hand each other small frozen dataclasses; this file turns any of them into plain JSON values and back into text.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybridizer.core.errors import CheckpointError, Problem
from hybridizer.core.files import write_file


def to_jsonable(value: Any) -> Any:
    """`value` as plain JSON values: dataclasses and mappings become dicts, tuples lists, paths text.

    Raises TypeError for anything else and ValueError for NaN and infinities, which JSON cannot carry.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_jsonable(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} cannot be written as JSON")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON")


def content_hash(value: Any) -> str:
    """`sha256:<hex>` over the canonical JSON of `value` (sorted keys, no spaces): equal for equal values, anywhere."""
    canonical = json.dumps(
        to_jsonable(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON: complete and flushed under its name, or not there at all."""
    write_file(path, json.dumps(to_jsonable(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value in `path`. Raises CheckpointError with file and line when it is missing, not UTF-8 or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            Problem(str(path), "this file was expected and is not there.", "Restore or rebuild it.")
        ) from None
    except json.JSONDecodeError as error:
        where = f"{path}:{error.lineno}"
        raise CheckpointError(Problem(where, f"not valid JSON: {error.msg}.", "Restore or rebuild the file.")) from None
    except UnicodeDecodeError as error:
        raise CheckpointError(
            Problem(str(path), f"not UTF-8 text at byte {error.start}.", "Restore the file.")
        ) from None
