"""The YAML door of the sections `train` and `evaluate`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from hybridizer.recipe.fields import (
    CountField,
    FreezeField,
    NonNegativeField,
    PairField,
    PositiveField,
    ShareBelowOneField,
    ShareField,
    SizeField,
    TextField,
)
from hybridizer.recipe.layers import expand
from hybridizer.recipe.section import Section
from hybridizer.recipe.training import DataEntry, Evaluate, Lora, Part, TextEntry, Tracker, Train

_Positive = Annotated[int, Field(ge=1)]


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
    sequence: Annotated[int, Field(ge=2)] = Field(default=Train.sequence, description="tokens in a row")
    packed: bool = Field(default=Train.packed, description="several documents in a row, kept apart")
    rows_per_step: _Positive = Field(default=Train.rows_per_step, description="rows in one optimizer step")
    rows_per_batch: Annotated[int, Field(ge=0)] = Field(
        default=Train.rows_per_batch, description="rows in memory at a time; 0: all of a step"
    )
    heldout_share: ShareBelowOneField = Field(
        default=Train.heldout_share, description="the share of documents kept out of training, to measure on"
    )
    optimizer: Literal["adamw", "adamw8bit"] = Field(
        default="adamw", description="adamw, or adamw8bit, which needs bitsandbytes"
    )
    lr: PositiveField = Field(default=Train.lr, description="the highest learning rate")
    betas: PairField = Field(default=Train.betas, description="the decay of the optimizer's two averages")
    eps: PositiveField = Field(default=Train.eps, description="what the optimizer adds before it divides")
    weight_decay: NonNegativeField = Field(default=Train.weight_decay, description="decay of matrices, not of vectors")
    clip_norm: NonNegativeField = Field(
        default=Train.clip_norm, description="the most a gradient's norm may be; 0: any"
    )
    schedule: Literal["cosine", "wsd", "constant"] = Field(
        default="cosine", description="how the rate runs: cosine, wsd (warm-up, stable, decay) or constant"
    )
    warmup_share: ShareField = Field(default=Train.warmup_share, description="the share of steps that warm up")
    final_share: ShareField = Field(default=Train.final_share, description="the last rate, as a share of the highest")
    decay_share: ShareField = Field(default=Train.decay_share, description="the share of steps that decay, for wsd")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="what computes; auto: bfloat16 where the device has it"
    )
    recompute_layers: bool = Field(
        default=False, description="gradient checkpointing: less memory, a third more compute"
    )
    compile_layers: bool = Field(default=False, description="compile the layers with torch.compile")
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
