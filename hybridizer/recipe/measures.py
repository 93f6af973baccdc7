"""What models are measured on besides text, as sections that recipes and evaluation files share."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Le
from pydantic import ConfigDict, Field, Strict
from pydantic.dataclasses import dataclass

from hybridizer.recipe.fields import Text

_CONFIG = ConfigDict(extra="forbid", defer_build=True)
Shots = Annotated[int, Strict(), Ge(0), Le(64)]
MAX_PAIRS = 2000


@dataclass(frozen=True, config=_CONFIG)
class ItemsEntry:
    """Multiple-choice items: built in, or from a file."""

    name: Text = Field(description="exam-en, exam-zh, or a name for the items in `path`", examples=["exam-en"])
    path: Text | None = Field(default=None, description="a JSON Lines file of items", examples=["items.jsonl"])
    examples: Text | None = Field(
        default=None, description="a JSON Lines file of items to show before each question", examples=["shots.jsonl"]
    )
    language: Literal["en", "zh"] = Field(default="en", description="the language of the prompt's own words")
    shots: Shots = Field(default=0, description="how many examples are shown")
    style: Literal["letters", "text"] = Field(default="letters", description="what answers: a letter or the choice")
