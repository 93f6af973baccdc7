"""Which tests `scripts/test --fast` leaves out."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow_except(values: Iterable[Any], *fast: Any) -> list[Any]:
    """Parameters of a test, all marked slow except `fast`: a few that stand for the others when time is short."""
    values = list(values)
    assert set(fast) <= set(values), f"{set(fast) - set(values)} are not among the parameters"
    return [value if value in fast else pytest.param(value, marks=pytest.mark.slow) for value in values]
