"""The keys of a recipe that put other mixers in the place of attention."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from hybridizer.recipe.fields import AtLeastTwo, Count, PositiveInt, Switch, Text

MixerKind: TypeAlias = Literal["mamba2", "gated_delta_net", "short_conv"]
TargetFamily: TypeAlias = Literal[
    "granitemoehybrid", "lfm2", "qwen3_5_text", "qwen3_next", "olmo_hybrid", "falcon_h1"
]  # those of hybridizer.families.targets, which a test compares

_CONFIG = ConfigDict(extra="forbid", defer_build=True)


@dataclass(frozen=True, config=_CONFIG)
class Mixer:
    """What replaces the attention of a donor's layers, or is added beside it."""

    kind: MixerKind = Field(description="the kind of mixer", examples=["mamba2"])
    parallel: Switch = Field(default=False, description="beside the attention, which stays, instead of in its place")
    init: Literal["fresh", "attention"] = Field(
        default="fresh",
        description="fresh draws its weights as the family does; attention derives them from those that it replaces",
    )
    fit: Literal["none", "ridge"] = Field(
        default="none",
        description="ridge fits its output projection to what the attention gives on a text, in closed form",
    )


@dataclass(frozen=True, config=_CONFIG)
class MixerSizes:
    """Sizes of the new mixers, one set for the whole model: its config holds one.

    In the words of attention: heads of `head_dim` values each, whose keys and queries are `state` numbers wide and
    shared by `groups` groups of heads.
    """

    heads: PositiveInt | None = Field(default=None, description="heads; the donor's", examples=[9])
    head_dim: PositiveInt | None = Field(default=None, description="values per head; the donor's", examples=[64])
    state: PositiveInt | None = Field(default=None, description="numbers per key; the donor's head size", examples=[64])
    groups: PositiveInt | None = Field(
        default=None, description="groups of heads that share keys; the donor's key/value heads", examples=[3]
    )
    conv: AtLeastTwo | None = Field(default=None, description="tokens that the short convolution sees", examples=[4])
    chunk: PositiveInt | None = Field(
        default=None, description="tokens computed at once; changes speed alone", examples=[64]
    )


@dataclass(frozen=True, config=_CONFIG)
class Calibration:
    """The text that mixers with `fit: ridge` are fitted on; the first file source of `train.data` if left out."""

    path: Text = Field(description="a file or a glob", examples=["corpus/**/*.txt"])
    field: Text = Field(default="text", description="the JSONL field or Parquet column that holds the text")
    tokens: Count = Field(default=8192, description="tokens from its beginning")
    window: AtLeastTwo = Field(default=256, description="tokens per window")
