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
from typing import Any, TypeVar

from hybridizer.core.errors import CheckpointError, Problem
from hybridizer.core.files import write_file

Record = TypeVar("Record")

_PLAIN = frozenset({bool, int, str})


def to_jsonable(value: Any) -> Any:
    """`value` as plain JSON values: dataclasses and mappings become dicts, tuples lists, paths text.

    Raises TypeError for anything else and ValueError for NaN and infinities, which JSON cannot carry.
    """
    if value is None or type(value) in _PLAIN:  # most values by far: a plan of 60 layers has 30,000
        return value
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
    if isinstance(value, (bool, int, float, str)):
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
    except OSError as error:
        raise CheckpointError(Problem(str(path), f"cannot be read: {error.strerror}.", "Check the path.")) from None
    except json.JSONDecodeError as error:
        where = f"{path}:{error.lineno}"
        raise CheckpointError(Problem(where, f"not valid JSON: {error.msg}.", "Restore or rebuild the file.")) from None
    except UnicodeDecodeError as error:
        raise CheckpointError(
            Problem(str(path), f"not UTF-8 text at byte {error.start}.", "Restore the file.")
        ) from None
    except (ValueError, RecursionError):  # an integer of thousands of digits, or lists in lists without end
        what = "JSON nested too deep, or with a number too long, to be read."
        raise CheckpointError(Problem(str(path), what, "Restore or rebuild the file.")) from None


def read_record(source: Path | Mapping[str, Any], record: type[Record], schema: str, where: str, fix: str) -> Record:
    """The frozen dataclass `record` whose JSON is in the file `source`, or is the value `source`.

    Strict: every field is there, of its annotated type, and nothing else is; an int stays an int, a list becomes the
    tuple that is annotated. The value's "schema" must be `schema` and is not a field. Raises CheckpointError, at
    `where` and with `fix`, that names the first field at fault.
    """
    from pydantic import TypeAdapter, ValidationError  # slow to import, and reading a record is not always needed

    value = read_json(source) if isinstance(source, Path) else source
    found = value.get("schema") if isinstance(value, Mapping) else None
    if found != schema:
        what = f"its schema is {found!r}, and this version reads {schema!r}." if found else f"no {schema!r} in it."
        raise CheckpointError(Problem(where, what, fix))
    fields = {name: item for name, item in value.items() if name != "schema"}
    try:
        made = TypeAdapter(record).validate_json(json.dumps(to_jsonable(fields)), strict=True)
    except ValueError as error:
        if not isinstance(error, ValidationError):  # Python's json reads NaN, which JSON does not know
            raise CheckpointError(Problem(where, f"{error}.", fix)) from None
        first = error.errors(include_url=False)[0]
        path = ".".join(str(step) for step in first["loc"]) or "the record"
        raise CheckpointError(Problem(where, f"`{path}`: {first['msg']}.", fix)) from None
    stray = _first_difference(fields, to_jsonable(made))
    if stray is not None:
        raise CheckpointError(Problem(where, f"`{stray}` is missing, or is not a field of this record.", fix))
    return made


def _first_difference(value: Any, made: Any, path: str = "") -> str | None:
    """Where two JSON values differ in what keys they have: pydantic passes over unknown keys and fills in defaults."""
    if isinstance(value, Mapping) and isinstance(made, Mapping):
        for key in [*value, *made]:
            inner = f"{path}.{key}" if path else str(key)
            found = inner if key not in value or key not in made else _first_difference(value[key], made[key], inner)
            if found is not None:
                return found
    if isinstance(value, list) and isinstance(made, list):
        for index, pair in enumerate(zip(value, made, strict=True)):
            found = _first_difference(*pair, f"{path}.{index}")
            if found is not None:
                return found
    return None
