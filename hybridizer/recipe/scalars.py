"""What one unquoted YAML word means here: text, number, true, false or nothing, and which words are refused.

YAML 1.1 and 1.2 read the same word differently (`no`, `017`, `1_000`, `1:30`), and so do their libraries. A word that
some reader takes for something else is refused with the two ways to write it: a recipe means the same everywhere.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple, TypeAlias

Scalar: TypeAlias = str | int | float | bool | None

_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_SWITCHES = {"yes": "true", "on": "true", "no": "false", "off": "false"}
_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?")
_LONG_INT = re.compile(r"[-+]?[1-9][0-9]{18,}")
_NOT_FINITE = re.compile(r"[-+]?\.inf|\.nan", re.IGNORECASE)
_UNDERSCORED = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?")
_OTHER_BASE = re.compile(r"[-+]?0(?:[0-9]+|[oO][0-7]+|[xX][0-9a-fA-F]+|[bB][01]+)")
_SEXAGESIMAL = re.compile(r"[-+]?[0-9]+(:[0-5]?[0-9])+(\.[0-9]*)?")


class Reading(NamedTuple):
    """The meaning of a word; where `what` is not empty the word is refused and the meaning is its plain text."""

    value: Scalar
    what: str = ""
    fix: str = ""


def read_word(text: str) -> Reading:
    """The meaning of the unquoted YAML scalar `text`. Never raises; numbers that come back are finite."""
    if text in _WORDS:
        return Reading(_WORDS[text])
    if _INT.fullmatch(text):
        return Reading(int(text))
    return _read_number(text) or _refuse_word(text) or Reading(text)


def _read_number(text: str) -> Reading | None:
    if _LONG_INT.fullmatch(text):
        return Reading(
            text, f"{text[:20]}... is too large a number.", f"Write a smaller one, or {_quote(text)} for text."
        )
    if _NOT_FINITE.fullmatch(text):
        return Reading(text, f"{text} is not a finite number.", f"Write a finite number, or {_quote(text)} for text.")
    if not _FLOAT.fullmatch(text):
        return None
    number = float(text)
    if not math.isfinite(number):
        return Reading(text, f"{text[:20]} is too large a number.", f"Write a smaller one, or {_quote(text)} for text.")
    return Reading(number)


def _refuse_word(text: str) -> Reading | None:
    if text.lower() in _SWITCHES and text in (text.lower(), text.upper(), text.capitalize()):
        meaning = _SWITCHES[text.lower()]
        return Reading(
            text,
            f"`{text}` is text to some YAML readers and {meaning} to others.",
            f"Write {_quote(text)}, with the quotes, for text, or {meaning}.",
        )
    if _OTHER_BASE.fullmatch(text) or _SEXAGESIMAL.fullmatch(text) or ("_" in text and _UNDERSCORED.fullmatch(text)):
        return Reading(
            text,
            f"`{text}` is a different number, or text, to different YAML readers.",
            f"Write {_quote(text)}, with the quotes, for text, or plain digits for a number.",
        )
    return None


def _quote(text: str) -> str:
    return f"'{text}'" if len(text) <= 40 else "it in quotes"
