"""The keys of a recipe that put other mixers in the place of attention."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from hybridizer.recipe.fields import AtLeastTwo, Count, LayerCount, PositiveInt, Seed, Switch, Text

MixerKind: TypeAlias = Literal["mamba2", "gated_delta_net", "short_conv"]
TargetFamily: TypeAlias = Literal[
    "granitemoehybrid", "lfm2", "qwen3_5_text", "qwen3_next", "olmo_hybrid", "falcon_h1"
]  # those of hybridizer.families.targets, which a test compares
# Which layers are swapped, by the names of hybridizer.mixers.choice.
SwapPlace: TypeAlias = Literal["uniform", "shallow", "deep", "random", "trace", "leave-one-out", "kl"]
MEASURED_PLACES = ("leave-one-out", "kl")  # each layer is swapped alone and scored
EVIDENCE_PLACES = ("trace", *MEASURED_PLACES)  # the model is run before the layers are known

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
class Swap:
    """All layers of one donor in their order, another mixer in the place of attention in some of them.

    It stands for `slices`, which planning writes out. An int `count` is a number of layers, a float a share.
    """

    mixer: Mixer = Field(
        description="what replaces the attention of the layers that are swapped",
        examples=[{"kind": "mamba2", "init": "attention", "fit": "ridge"}],
    )
    donor: Text | None = Field(
        default=None, description="the name of a donor; the host if left out", examples=["instruct"]
    )
    count: LayerCount = Field(
        default=0.5,
        description="how many layers are swapped: a share of the depth such as 0.5, or a number such as 15; 0: none, "
        "the control of a trial",
    )
    place: SwapPlace = Field(
        default="uniform",
        description="which layers are swapped: uniform, spread evenly; shallow or deep, those at that end; random, by "
        "`seed`; or by evidence those that lose least: trace, which a disturbance moves least; leave-one-out or kl, "
        "each swapped alone and scored in bits per token or by its divergence from the donor",
    )
    seed: Seed = Field(default=0, description="the seed of random, and of what the evidence draws")
    score_tokens: Count = Field(
        default=512, description="tokens that leave-one-out and kl score on, behind those of the fit"
    )
    zero_output: Switch = Field(default=False, description="output projections of the new mixers start at zero")


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
