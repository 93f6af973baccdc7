"""What every section of a recipe is: a pydantic model without other keys, conversions or changes."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a recipe: no other keys, no conversions ("true" is not 1), no changes."""

    # Built at first use, and then only the root with everything inside it: a third of the time of one by one.
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        defer_build=True,
        model_title_generator=lambda model: model.__name__.removesuffix("Model"),
    )
