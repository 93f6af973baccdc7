"""The YAML door: what a recipe may hold, section by section, as pydantic models that turn into the frozen values.

A new section is a model here with its `frozen`, a field on `RecipeModel`, and a dataclass with a field on `Recipe`. The
descriptions are read in two places, the JSON Schema and the "Add `key`: ..." of a message.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from hybridizer.recipe.fields import (
    BoundaryField,
    DonorNameField,
    FingerprintField,
    LayersField,
    NameField,
    ParameterField,
    ShareField,
    SizeField,
    TextField,
)
from hybridizer.recipe.layers import expand
from hybridizer.recipe.recipe import (
    Blend,
    BlendSource,
    DonorEntry,
    Layout,
    Output,
    Parameters,
    ParameterValue,
    Recipe,
    Slice,
    Trace,
)
from hybridizer.recipe.section import Section
from hybridizer.recipe.training_models import EvaluateModel, TrainModel
from hybridizer.recipe.tree import KeyPath

DEFAULT_BOUNDARY = 0.5  # the midpoint, as in arXiv 2605.11416


class DonorModel(Section):
    """A checkpoint that gives layers."""

    source: TextField = Field(description="a folder, a GGUF file, a hub id with @revision, or pkg:package/file")
    allow: list[Literal["pickle", "remote_code", "vocabulary"]] = Field(
        default=[], description="what is let pass for this donor and refused otherwise"
    )
    fingerprint: FingerprintField | None = Field(
        default=None, description="the content this donor must have, as plans show it"
    )

    def frozen(self, name: str) -> DonorEntry:
        """The donor under its `name`; what it is allowed is sorted."""
        return DonorEntry(name, self.source, tuple(sorted(set(self.allow))), self.fingerprint)


class BlendSourceModel(Section):
    """One side of a blend."""

    donor: TextField = Field(description="the name of a donor")
    layers: LayersField = Field(default=None, description="its layers, as many as the other sources'; all if left out")
    parameters: dict[str, ParameterField] = Field(
        default={}, description="this source's own parameters of the method, such as weight or density"
    )

    def frozen(self) -> BlendSource:
        """The source with its layers counted out."""
        return BlendSource(self.donor, None if self.layers is None else expand(self.layers), _sorted(self.parameters))


class BlendModel(Section):
    """Layers mixed from several donors by a mergekit method."""

    method: TextField = Field(description="the name of a mergekit method, such as linear, slerp or ties")
    parameters: dict[str, ParameterField] = Field(
        default={}, description="the method's parameters, such as t for slerp"
    )
    base: TextField | None = Field(default=None, description="the source donor that a method with a base starts from")
    sources: list[BlendSourceModel] = Field(min_length=2, description="two donors or more, each with its layers")

    def frozen(self) -> Blend:
        """The blend with its parameters sorted by name."""
        sources = tuple(source.frozen() for source in self.sources)
        return Blend(self.method, sources, _sorted(self.parameters), self.base)


class SliceModel(Section):
    """A run of output layers: of one donor, or a blend."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": ["donor"], "not": {"required": ["blend"]}},
                {"required": ["blend"], "not": {"anyOf": [{"required": ["donor"]}, {"required": ["layers"]}]}},
            ]
        }
    )
    donor: TextField | None = Field(default=None, description="the name of a donor")
    layers: LayersField = Field(default=None, description="its layers, as 0..14 or [15, 20..29]; all if left out")
    blend: BlendModel | None = Field(default=None, description="layers mixed from several donors")

    def frozen(self) -> Slice | Blend:
        """The run of layers, of the one kind or the other."""
        if self.blend is not None:
            return self.blend.frozen()
        assert self.donor is not None, "checked at the door"
        return Slice(self.donor, None if self.layers is None else expand(self.layers))


class LayoutModel(Section):
    """Which donor gives which layer: by the dial (deep, shallow, boundary) or in full (slices)."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": ["deep", "shallow"], "not": {"required": ["slices"]}},
                {
                    "required": ["slices"],
                    "not": {"anyOf": [{"required": ["deep"]}, {"required": ["shallow"]}, {"required": ["boundary"]}]},
                },
            ]
        }
    )
    host: TextField | None = Field(
        default=None, description="the donor that gives embeddings, final norm, head and tokenizer"
    )
    deep: TextField | None = Field(
        default=None, description="the donor of the layers near the output, or auto for the one that ranks first"
    )
    shallow: TextField | None = Field(default=None, description="the donor of the layers near the input")
    boundary: BoundaryField = Field(
        default=None,
        description="where deep begins: a share of the depth, its first layer, or a strategy such as auto",
        json_schema_extra={"default": DEFAULT_BOUNDARY},
    )
    slices: list[SliceModel] | None = Field(
        default=None, min_length=1, description="the output layers from shallow to deep, in full"
    )

    def frozen(self, only_donor: str) -> Layout:
        """The layout; `only_donor` is the host where none is named, and the boundary has its default."""
        host = self.host or only_donor
        if self.slices:
            return Layout(host, slices=tuple(piece.frozen() for piece in self.slices))
        boundary = DEFAULT_BOUNDARY if self.boundary is None else self.boundary
        return Layout(host, self.deep, self.shallow, boundary)


class OutputModel(Section):
    """How the model is written."""

    dtype: Literal["keep", "float32", "bfloat16", "float16"] = Field(
        default="keep", description="the precision of the weights; keep leaves each tensor as its donor has it"
    )
    max_shard_bytes: SizeField = Field(default=5_000_000_000, description="the most bytes in one safetensors file")

    def frozen(self) -> Output:
        """The output as asked for."""
        return Output(self.dtype, self.max_shard_bytes)


class TraceModel(Section):
    """How donors are traced."""

    probes: TextField = Field(default=Trace.probes, description="antonyms-en, antonyms-zh, or a JSON Lines file")
    perturb: Literal["context", "layer", "both"] = Field(
        default=Trace.perturb, description="what is disturbed: tokens of the context, the output of a layer, or both"
    )
    mask_share: ShareField = Field(default=Trace.mask_share, description="the share of context tokens that is masked")
    mask_with: TextField = Field(default=Trace.mask_with, description="the token put there, or auto")
    lens: Literal["plain", "tuned"] = Field(default=Trace.lens, description="the logit lens, or a tuned lens")
    tau: ShareField = Field(default=Trace.tau, description="the least ratio by which a task particle rises")
    p_min: ShareField = Field(default=Trace.p_min, description="the least probability of a task particle")
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = Field(
        default=Trace.dtype, description="the precision that donors are traced in"
    )

    def frozen(self) -> Trace:
        """The trace settings as asked for."""
        return Trace(**self.model_dump())


class RecipeModel(Section):
    """A recipe for one hybrid model."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"donors": {"minProperties": 2}}},
            "then": {"properties": {"layout": {"required": ["host"]}}},
        }
    )
    name: NameField | None = Field(
        default=None, description="the name of the run and its folder; the file's name if left out"
    )
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = Field(default=0, description="the seed of everything random")
    donors: dict[DonorNameField, DonorModel] = Field(
        min_length=1, description="the checkpoints to build from, each under a name of your choice"
    )
    layout: LayoutModel = Field(description="which donor gives which layer")
    output: OutputModel = Field(default={}, validate_default=True, description="how the model is written")
    trace: TraceModel | None = Field(default=None, description="how donors are traced")
    train: TrainModel | None = Field(default=None, description="continued pre-training of what is not frozen")
    evaluate: EvaluateModel | None = Field(default=None, description="what is measured before and after training")

    def frozen(self, path: Path, places: Mapping[KeyPath, str]) -> Recipe:
        """The recipe as frozen values. Call it only when `checks.check` found nothing."""
        donors = tuple(donor.frozen(name) for name, donor in self.donors.items())
        return Recipe(
            name=self.name or path.stem,
            seed=self.seed,
            donors=donors,
            layout=self.layout.frozen(donors[0].name),
            output=self.output.frozen(),
            trace=None if self.trace is None else self.trace.frozen(),
            train=None if self.train is None else self.train.frozen(),
            evaluate=None if self.evaluate is None else self.evaluate.frozen(),
            path=path,
            places=places,
        )


def _sorted(parameters: Mapping[str, ParameterValue]) -> Parameters:
    return tuple(sorted(parameters.items()))
