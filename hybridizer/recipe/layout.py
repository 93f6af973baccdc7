"""The `layout` section of a recipe: which donor gives which layer."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field
from pydantic.config import JsonDict
from pydantic.dataclasses import dataclass

from hybridizer.recipe.examples import EXAMPLE_SLICES
from hybridizer.recipe.fields import (
    AUTO,
    STRATEGIES,
    BoundaryValue,
    Count,
    Layers,
    PositiveInt,
    SortedParameters,
    Switch,
    Text,
)
from hybridizer.recipe.mixer import Calibration, Mixer, MixerKind, MixerSizes, Swap, TargetFamily

# As in recipe.models: built together with the root.
_CONFIG = ConfigDict(extra="forbid", defer_build=True)
DEFAULT_CANDIDATES = 300  # of `layout: auto`


@dataclass(frozen=True, config=_CONFIG)
class BlendSource:
    """One side of a blend: as many layers as the other sides, and parameters of its own."""

    donor: Text = Field(description="the name of a donor")
    layers: Layers | None = Field(
        default=None, description="its layers, as many as the other sources'; all if left out", examples=["10..12"]
    )
    parameters: SortedParameters = Field(
        default=(), description="this source's own parameters of the method, such as weight or density"
    )


@dataclass(frozen=True, config=_CONFIG)
class Blend:
    """Layers mixed from several donors: the n-th layer of every source goes into the n-th layer of the blend.

    `method` and the names of the parameters are mergekit's and are not checked here. Parameters are (name, value) pairs
    sorted by name.
    """

    method: Text = Field(description="the name of a mergekit method, such as linear, slerp or ties")
    sources: tuple[BlendSource, ...] = Field(min_length=2, description="two donors or more, each with its layers")
    parameters: SortedParameters = Field(default=(), description="the method's parameters, such as t for slerp")
    base: Text | None = Field(default=None, description="the source donor that a method with a base starts from")


def _without(*keys: str) -> JsonDict:
    return {"not": {"anyOf": [{"required": [key]} for key in keys]}}


_ONE_KIND: JsonDict = {
    "oneOf": [
        {"required": ["donor"], **_without("blend", "fresh", "count")},
        {"required": ["blend"], **_without("donor", "layers", "fresh", "count", "mixer", "zero_output", "as")},
        {"required": ["fresh"], **_without("donor", "layers", "blend", "mixer", "as")},
    ]
}


@dataclass(frozen=True, config=ConfigDict(**_CONFIG, json_schema_extra=_ONE_KIND))
class Slice:
    """A run of output layers: layers of one donor in the order given, repeats allowed, a blend, or new layers.

    With `mixer` the donor's layers keep their norms and networks, and their attention is replaced.
    """

    donor: Text | None = Field(default=None, description="the name of a donor")
    layers: Layers | None = Field(
        default=None, description="its layers, as 0..14 or [15, 20..29], both ends included; all if left out"
    )
    as_: Literal["identity"] | None = Field(
        default=None,
        alias="as",
        description="identity: copies that return their input until they are trained, to make a model deeper",
        examples=["identity"],
    )
    blend: Blend | None = Field(default=None, description="layers mixed from several donors, in place of `donor`")
    mixer: Mixer | None = Field(default=None, description="what replaces the attention of these layers")
    fresh: MixerKind | None = Field(
        default=None,
        description="new layers with a mixer of this kind, in place of `donor`",
        examples=["mamba2"],
    )
    count: PositiveInt | None = Field(default=None, description="the number of new layers; 1 if left out", examples=[4])
    zero_output: Switch = Field(
        default=False,
        description="output projections of new parts start at zero: new layers change nothing, swapped ones add only "
        "their network",
    )

    @property
    def unused_keys(self) -> tuple[str, ...]:
        """The keys that have no effect beside the others."""
        return () if self.mixer or self.fresh else ("zero_output",)


_WAYS = ("candidates", "swap", "slices")  # beside the dial; each stands alone


def _alone(way: str) -> JsonDict:
    others = [other for other in _WAYS if other != way]
    return {"required": [way], **_without("deep", "shallow", "boundary", *others)}


_ONE_WAY: JsonDict = {"oneOf": [{"required": ["deep", "shallow"], **_without(*_WAYS)}, *(_alone(way) for way in _WAYS)]}


@dataclass(frozen=True, config=ConfigDict(**_CONFIG, json_schema_extra=_ONE_WAY))
class Layout:
    """Which donor gives which layer: by the dial (deep, shallow, boundary), in full (slices), by a scan (candidates) or
    one donor with new mixers in some layers (swap).

    A float boundary is a share of the depth, above 0 and below 1; an int one is the first layer of the deep side, at
    least 1. With slices and swap the boundary has no effect.
    """

    host: Text = Field(
        default="",  # the only donor, filled in by loading
        description="the donor that gives embeddings, final norm, head and tokenizer",
    )
    deep: Text | None = Field(
        default=None, description="the donor of the layers near the output, or auto for the one that ranks first"
    )
    shallow: Text | None = Field(
        default=None, description="the donor of the layers near the input, or auto for the one that ranks first"
    )
    boundary: BoundaryValue = Field(
        default=0.5,  # the midpoint, as in arXiv 2605.11416
        description="where deep begins: a share of the depth, its first layer, or a strategy: " + ", ".join(STRATEGIES),
    )
    candidates: Count | None = Field(
        default=None,
        description="the most models that a scan tries to choose every layer, in place of deep, shallow and boundary;"
        f" `layout: auto` is short for {DEFAULT_CANDIDATES}",
        examples=[DEFAULT_CANDIDATES],
    )
    slices: tuple[Slice, ...] | None = Field(
        default=None,
        min_length=1,
        description="the output layers from shallow to deep, in full",
        examples=[EXAMPLE_SLICES],
    )
    swap: Swap | None = Field(
        default=None,
        description="the layers of one donor, some of them with another mixer in the place of attention",
        examples=[{"mixer": {"kind": "mamba2", "init": "attention", "fit": "ridge"}, "count": 0.5}],
    )
    mixer_sizes: MixerSizes | None = Field(
        default=None,
        description="sizes of the new mixers; those that the donor suggests if left out",
        examples=[{"state": 64, "chunk": 64}],
    )
    calibration: Calibration | None = Field(
        default=None, description="the text that mixers are fitted on", examples=[{"path": "corpus/**/*.txt"}]
    )
    target: TargetFamily | None = Field(
        default=None,
        description="the family of the model; the donors' own, or one that has the new mixers, if left out",
        examples=["granitemoehybrid"],
    )

    @property
    def unused_keys(self) -> tuple[str, ...]:
        """The keys that have no effect beside the others."""
        ways = self.candidates is not None or self.swap is not None or self.slices is not None
        return ("deep", "shallow", "boundary") if ways else ()

    @property
    def swap_section(self) -> Swap:
        """`swap`, of a layout that has one."""
        assert self.swap is not None, "asked of layouts with a swap"
        return self.swap

    @property
    def needs_trace(self) -> bool:
        """Whether donors must be traced before the layout is known."""
        return AUTO in (self.deep, self.shallow) or (isinstance(self.boundary, str) and self.boundary != "midpoint")
