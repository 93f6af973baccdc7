"""The keys of a source of text that a donor writes itself."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import ConfigDict, Field, PlainValidator, WithJsonSchema
from pydantic.dataclasses import dataclass

from hybridizer.recipe.fields import Count, NotAKey, Positive, PositiveInt, Seed, Text, as_validator, refusal
from hybridizer.recipe.tree import show

_CONFIG = ConfigDict(extra="forbid", defer_build=True)
_TEXT: dict[str, Any] = {"type": "string", "minLength": 1}


def _read_prompts(value: object) -> str | tuple[str, ...]:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, (list, tuple)) and value and all(isinstance(one, str) and one for one in value):
        return tuple(value)
    fix = "Write a file (one prompt per line, or .jsonl with a field `prompt`), or a list of texts."
    raise refusal(f"must be a file or a list of prompts; got {show(value)}.", fix)


Prompts: TypeAlias = Annotated[
    str | tuple[str, ...],
    PlainValidator(as_validator(_read_prompts)),
    WithJsonSchema({"anyOf": [_TEXT, {"type": "array", "minItems": 1, "items": _TEXT}]}),
]


@dataclass(frozen=True, config=_CONFIG)
class Generate:
    """Text sampled once from a donor, kept in the cache.

    `identity` is the hash of donor, prompts and settings, filled in when a recipe is planned.
    """

    from_: Text = Field(
        alias="from", description="the donor that writes it; it may give no layers", examples=["instruct"]
    )
    prompts: Prompts = Field(
        description="how texts begin: a list, or a file of one per line, or .jsonl with a field `prompt`",
        examples=["prompts.txt"],
    )
    tokens: Count = Field(description="how many tokens to generate, in its own tokens", examples=["50k"])
    max_new_tokens: PositiveInt = Field(default=256, description="the most tokens of one text")
    temperature: Positive = Field(default=1.0, description="of the distribution that tokens are drawn from")
    seed: Seed = Field(default=0, description="the seed of the draws")
    identity: Annotated[str, NotAKey()] = ""
