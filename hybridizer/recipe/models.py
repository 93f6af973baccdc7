"""The YAML door: what a recipe may hold, section by section, as pydantic models that turn into the frozen values.

A new section is a model here with its `frozen`, a field on `RecipeModel`, and a dataclass with a field on `Recipe`. The
descriptions are read in two places, the JSON Schema and the "Add `key`: ..." of a message.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from hybridizer.recipe.fields import (
    BoundaryField,
    CountField,
    DonorNameField,
    FingerprintField,
    FreezeField,
    LayersField,
    NameField,
    NonNegativeField,
    PairField,
    ParameterField,
    PositiveField,
    ShareBelowOneField,
    ShareField,
    SizeField,
    TextField,
)
from hybridizer.recipe.layers import expand
from hybridizer.recipe.recipe import (
    Blend,
    BlendSource,
    DataEntry,
    DonorEntry,
    Evaluate,
    Layout,
    Lora,
    Output,
    Parameters,
    ParameterValue,
    Part,
    Recipe,
    Slice,
    TextEntry,
    Trace,
    Tracker,
    Train,
)
from hybridizer.recipe.tree import KeyPath

DEFAULT_BOUNDARY = 0.5  # the midpoint, as in arXiv 2605.11416


_Positive = Annotated[int, Field(ge=1)]


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


class DataModel(Section):
    """A source of training text: local files, or a hub dataset."""

    path: TextField | None = Field(
        default=None, description="a file or a glob such as corpus/**/*.jsonl: .txt, .md, .rst, .jsonl, .parquet"
    )
    hub: TextField | None = Field(default=None, description="a dataset on the hub, read as a stream")
    weight: PositiveField = Field(default=DataEntry.weight, description="its share of the tokens, beside the others")
    field: TextField = Field(default="text", description="the JSONL field or Parquet column that holds the text")
    max_document_bytes: SizeField = Field(
        default=DataEntry.max_document_bytes, description="longer documents are left out, counted and listed"
    )
    split: TextField = Field(default=DataEntry.split, description="the split of a hub dataset")
    config: TextField | None = Field(default=None, description="the configuration of a hub dataset")
    revision: TextField | None = Field(default=None, description="the branch, tag or commit of a hub dataset")
    max_documents: CountField = Field(
        default=DataEntry.max_documents, description="the most documents read from a hub dataset"
    )

    def frozen(self) -> DataEntry:
        """The source as asked for."""
        return DataEntry(**self.model_dump())


class LoraModel(Section):
    """Low-rank adapters in place of whole matrices."""

    rank: _Positive = Field(default=Lora.rank, description="the rank of an adapter")
    alpha: _Positive = Field(default=Lora.alpha, description="the scale of an adapter, divided by the rank")
    dropout: ShareBelowOneField = Field(default=Lora.dropout, description="dropout before an adapter")

    def frozen(self) -> Lora:
        """The adapters as asked for."""
        return Lora(**self.model_dump())


class TrainModel(Section):
    """Continued pre-training with a part of the model frozen."""

    data: list[DataModel] = Field(min_length=1, description="the texts to train on, a list of sources")
    tokens: CountField = Field(description="how many tokens to train on, such as 2M")
    freeze: FreezeField = Field(
        default="deep", description="what stays as it is: deep, shallow, none, or a list of layers"
    )
    embedding: Part = Field(default="side", description="train or freeze it; side: as the first layer")
    final_norm: Part = Field(default="side", description="train or freeze it; side: as the last layer")
    head: Part = Field(default="side", description="train or freeze it; side: as the last layer")
    lora: LoraModel | None = Field(default=None, description="train low-rank adapters in place of whole matrices")
    seq_len: Annotated[int, Field(ge=2)] = Field(default=Train.seq_len, description="tokens in a row")
    packed: bool = Field(default=Train.packed, description="several documents in a row, kept apart")
    global_batch_size: _Positive = Field(default=Train.global_batch_size, description="rows in one optimizer step")
    micro_batch_size: Annotated[int, Field(ge=0)] = Field(
        default=Train.micro_batch_size, description="rows in memory at a time; 0: all of a step"
    )
    heldout_ratio: ShareBelowOneField = Field(
        default=Train.heldout_ratio, description="the share of documents kept out of training, to measure on"
    )
    optimizer: Literal["adamw", "adamw8bit"] = Field(
        default="adamw", description="adamw, or adamw8bit, which needs bitsandbytes"
    )
    lr: PositiveField = Field(default=Train.lr, description="the highest learning rate")
    betas: PairField = Field(default=Train.betas, description="the decay of the optimizer's two averages")
    eps: PositiveField = Field(default=Train.eps, description="what the optimizer adds before it divides")
    weight_decay: NonNegativeField = Field(default=Train.weight_decay, description="decay of matrices, not of vectors")
    max_grad_norm: NonNegativeField = Field(
        default=Train.max_grad_norm, description="the most a gradient's norm may be; 0: any"
    )
    schedule: Literal["cosine", "wsd", "constant"] = Field(
        default="cosine", description="how the rate runs: cosine, wsd (warm-up, stable, decay) or constant"
    )
    warmup_ratio: ShareField = Field(default=Train.warmup_ratio, description="the share of steps that warm up")
    min_lr_ratio: ShareField = Field(default=Train.min_lr_ratio, description="the last rate, as a share of the highest")
    decay_ratio: ShareField = Field(default=Train.decay_ratio, description="the share of steps that decay, for wsd")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="what computes; auto: bfloat16 where the device has it"
    )
    gradient_checkpointing: bool = Field(
        default=False, description="gradient checkpointing: less memory, a third more compute"
    )
    compile: bool = Field(default=False, description="compile the layers with torch.compile")
    max_steps: _Positive | None = Field(default=None, description="stop after so many steps")
    max_minutes: PositiveField | None = Field(default=None, description="stop after so many minutes")
    checkpoint_minutes: NonNegativeField = Field(
        default=Train.checkpoint_minutes, description="how often the state is saved; 0: every step"
    )
    trackers: list[Tracker] = Field(default=[], description="accelerate's trackers, such as tensorboard")

    def frozen(self) -> Train:
        """The section with its layers counted out."""
        layers = self.freeze if isinstance(self.freeze, str) else expand(self.freeze)
        values: dict[str, Any] = self.model_dump(exclude={"data", "lora", "freeze", "trackers"})
        return Train(
            data=tuple(entry.frozen() for entry in self.data),
            freeze=layers,
            lora=None if self.lora is None else self.lora.frozen(),
            trackers=tuple(self.trackers),
            **values,
        )


class TextModel(Section):
    """A text to measure on."""

    name: TextField = Field(description="what the text is called in tables")
    path: TextField = Field(description="a file or a glob")
    field: TextField = Field(default="text", description="the JSONL field or Parquet column that holds the text")

    def frozen(self) -> TextEntry:
        """The text as asked for."""
        return TextEntry(**self.model_dump())


class EvaluateModel(Section):
    """What is measured before and after training."""

    bits_per_byte: list[TextModel] = Field(
        default=[], description="general texts, to see what was forgotten; held-out training text is always measured"
    )
    max_tokens: CountField = Field(default=Evaluate.max_tokens, description="the most tokens of one text")
    context: Annotated[int, Field(ge=2)] = Field(default=Evaluate.context, description="tokens in one window")
    prompts: list[TextField] = Field(default=[], description="prompts to continue before and after")
    new_tokens: _Positive = Field(default=Evaluate.new_tokens, description="the tokens of a continuation")

    def frozen(self) -> Evaluate:
        """The section as asked for."""
        texts = tuple(text.frozen() for text in self.bits_per_byte)
        return Evaluate(texts, self.max_tokens, self.context, tuple(self.prompts), self.new_tokens)


class DonorModel(Section):
    """A checkpoint that gives layers."""

    source: TextField = Field(description="a folder, a GGUF file, a hub id with @revision, or pkg:package/file")
    allow: list[Literal["pickle", "remote_code", "vocabulary", "no_tokenizer"]] = Field(
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
    mask_ratio: ShareField = Field(default=Trace.mask_ratio, description="the share of context tokens that is masked")
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
