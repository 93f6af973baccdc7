"""Sizes in bytes and counts as they are written: 5GB, 2GiB; 2M, 500k."""

from __future__ import annotations

import re

from hybridizer.core.errors import Problem, RecipeError
from hybridizer.recipe.tree import clip, show

MAX_SEED = 2**32 - 1  # the noise of each prompt is seeded with a million times this

_UNITS = {"b": 1, **{f"{p}b": 1000 ** (i + 1) for i, p in enumerate("kmgt")}}
_BINARY_UNITS = {f"{p}ib": 1024 ** (i + 1) for i, p in enumerate("kmgt")}
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([kmgt]?i?b)", re.IGNORECASE)
_COUNT = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([kmgbt])", re.IGNORECASE)
_THOUSANDS = {"k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "t": 10**12}
MAX_BYTES = 10**18 - 1  # as many digits as a recipe's numbers may have


def parse_size(value: object, where: str = "size") -> int:
    """Bytes, at least 1: from a whole number, or text with a unit, decimal (kB, MB, GB, TB) or binary (KiB to TiB).

    Raises RecipeError at `where` for anything else.
    """
    fix = "Write a number of bytes, or one with its unit: 500MB, 5GB, 2GiB."
    if isinstance(value, str) and (parts := _SIZE.fullmatch(value.strip())) and parts[2].lower() != "ib":
        size, _ = _times(parts[1], (_UNITS | _BINARY_UNITS)[parts[2].lower()])
    elif isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        raise RecipeError(Problem(where, f"must be a size in bytes; got {show(value)}.", fix))
    if not 1 <= size <= MAX_BYTES:
        raise RecipeError(Problem(where, f"must be at least 1 byte and below 10^18; got {clip(str(value))}.", fix))
    return size


def parse_count(value: object, where: str = "count") -> int:
    """How many, at least 1: from a whole number, or text with k, M, B (or G) or T for thousands, millions, and so on.

    Raises RecipeError at `where` for anything else.
    """
    fix = "Write a whole number, or one with k, M or B: 500k, 2M, 1.5B."
    if isinstance(value, str) and (parts := _COUNT.fullmatch(value.strip())):
        number, rest = _times(parts[1], _THOUSANDS[parts[2].lower()])
    elif isinstance(value, int) and not isinstance(value, bool):
        number, rest = value, 0
    else:
        raise RecipeError(Problem(where, f"must be a whole number, at least 1; got {show(value)}.", fix))
    if not 1 <= number <= MAX_BYTES or rest:
        raise RecipeError(
            Problem(where, f"must be a whole number, at least 1 and below 10^18; got {clip(str(value))}.", fix)
        )
    return number


def _times(text: str, factor: int) -> tuple[int, int]:
    """The decimal number `text` times `factor`, rounded down, and a remainder: 0 where nothing was rounded.

    Without `fractions`, whose import takes 2 of the 67 ms of `--help`.
    """
    whole, _, decimals = text.partition(".")
    parts: int = 10 ** len(decimals)
    return divmod(int(whole + decimals) * factor, parts)


def format_size(size: int) -> str:
    """The shortest text that `parse_size` reads as `size`, with the largest decimal unit that divides it: "5GB"."""
    unit, factor = max(((u, f) for u, f in _UNITS.items() if size % f == 0), key=lambda pair: pair[1])
    return str(size) if factor == 1 else f"{size // factor}{'kB' if unit == 'kb' else unit.upper()}"
