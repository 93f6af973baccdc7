"""Strict reading of JSON objects: damaged or hostile files raise CheckpointError."""

from __future__ import annotations

import json
import reprlib
from typing import Any, NoReturn

from hybridizer.core.errors import CheckpointError, Problem


def parse_object(data: bytes, where: str, fix: str, *, infinities: bool = False) -> dict[str, Any]:
    """The JSON object in `data`.

    Stricter than the json module: duplicate keys, NaN and infinities, and text that no UTF-8 file can hold are
    refused. With `infinities`, Infinity and -Infinity are read: transformers writes them into config.json.
    Raises CheckpointError (at `where`, advising `fix`) for those and for text that is not UTF-8, not JSON, nested
    too deep, or a JSON value other than an object.
    """
    constant = _read_infinity if infinities else _refuse_constant
    try:
        value = json.loads(data.decode("utf-8", "strict"), object_pairs_hook=_unique_keys, parse_constant=constant)
    except UnicodeDecodeError as error:
        raise CheckpointError(Problem(where, f"not UTF-8 text at byte {error.start}.", fix)) from None
    except json.JSONDecodeError as error:
        what = f"not valid JSON: {error.msg} at character {error.pos} (line {error.lineno})."
        raise CheckpointError(Problem(where, what, fix)) from None
    except ValueError as error:
        raise CheckpointError(Problem(where, f"invalid JSON: {error}.", fix)) from None
    except RecursionError:
        raise CheckpointError(Problem(where, "JSON nested too deep to be a header or an index.", fix)) from None
    if not isinstance(value, dict):
        raise CheckpointError(Problem(where, f"a JSON object was expected, found {type(value).__name__}.", fix))
    return value


def shorten(value: object) -> str:
    """`value` as it would be typed in Python, cut to about 80 characters: safe to print."""
    if isinstance(value, int) and value.bit_length() > 128:  # Python refuses to print integers beyond 4300 digits
        return f"an integer of {value.bit_length()} bits"
    reader = reprlib.Repr()
    reader.maxstring = reader.maxother = 80
    text = reader.repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {shorten(key)} occurs twice")
        _refuse_surrogates(key)
        _refuse_surrogates(value)
        result[key] = value
    return result


def _refuse_surrogates(value: Any) -> None:
    # "\ud800" is valid JSON and becomes a str that no file can be written with.
    if isinstance(value, list):
        for item in value:
            _refuse_surrogates(item)
    elif isinstance(value, str) and not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError(f"{shorten(value)} contains half of a UTF-16 pair")


def _read_infinity(name: str) -> float:
    return float(name) if name.endswith("Infinity") else _refuse_constant(name)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
