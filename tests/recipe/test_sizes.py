"""Sizes in bytes: decimal and binary units, and what is no size."""

from __future__ import annotations

import pytest

from hybridizer.core.errors import RecipeError
from hybridizer.recipe.sizes import MAX_BYTES, parse_size


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (1, 1),
        ("5GB", 5_000_000_000),
        ("5 gb", 5_000_000_000),
        ("500MB", 500_000_000),
        ("2GiB", 2 * 1024**3),
        ("1.5kB", 1500),
        ("0.1GB", 100_000_000),
        ("4TiB", 4 * 1024**4),
        ("77B", 77),
        (MAX_BYTES, MAX_BYTES),
    ],
)
def test_reads_units(value: object, size: int) -> None:
    assert parse_size(value) == size


@pytest.mark.parametrize(
    "value", ["", "5", "5G", "GB", "-5GB", "5iB", "1e3MB", "5GB 3", "٥GB", True, 1.5, None, [], {}]
)
def test_refuses_what_is_no_size(value: object) -> None:
    with pytest.raises(RecipeError, match="here: must be a size in bytes; got "):
        parse_size(value, "here")


@pytest.mark.parametrize("value", [0, -1, "0GB", "0.0001B", MAX_BYTES + 1, "999999999999999TB"])
def test_refuses_what_no_file_can_have(value: object) -> None:
    with pytest.raises(RecipeError, match="must be at least 1 byte and below"):
        parse_size(value)
