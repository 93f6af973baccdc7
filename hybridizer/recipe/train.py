"""The `train` section of a recipe: sources of text, what is frozen, and the settings of the optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.config import JsonDict
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from hybridizer.recipe.fields import (
    AUTO,
    AtLeastTwo,
    AutoSwitch,
    Count,
    Freeze,
    LearningRate,
    LrScale,
    NonNegative,
    NonNegativeInt,
    Pair,
    Part,
    Positive,
    PositiveInt,
    Ratio,
    RatioBelowOne,
    Recompute,
    Size,
    Switch,
    Text,
    Tracker,
)
from hybridizer.recipe.sections import fill_in, keys_of

# As in recipe.models: built together with the root.
_CONFIG = ConfigDict(extra="forbid", defer_build=True)
HUB_KEYS = ("split", "config", "revision", "max_documents")  # they have no effect on files
NO_TOKENS = "no_tokens"  # the kind of error of a section without `tokens` and `stages`
# Keys of `train` that hold for the whole training: what every stage reads, how it computes, and when it ends.
WHOLE_TRAINING = (
    "data", "tokens", "lora", "seq_len", "packed", "heldout_ratio", "optimizer", "precision", "compile", "max_steps",
    "max_minutes", "checkpoint_minutes", "divergence", "trackers",
)  # fmt: skip


@dataclass(frozen=True, config=_CONFIG)
class DataEntry:
    """A source of training text: local files, or a hub dataset read as a stream."""

    path: Text | None = Field(
        default=None,
        description="a file or a glob such as corpus/**/*.jsonl: .txt, .md, .rst, .jsonl, .parquet",
        examples=["corpus/**/*.txt"],
    )
    hub: Text | None = Field(
        default=None,
        description="a dataset on the hub, read as a stream, in place of `path`",
        examples=["organisation/dataset"],
    )
    weight: Positive = Field(default=1.0, description="its share of the tokens, beside the others")
    field: Text = Field(default="text", description="the JSONL field or Parquet column that holds the text")
    max_document_bytes: Size = Field(default=10_000_000, description="longer documents are left out and counted")
    split: Text = Field(default="train", description="the split of a hub dataset")
    config: Text | None = Field(default=None, description="the configuration of a hub dataset", examples=["default"])
    revision: Text | None = Field(
        default=None, description="the branch, tag or commit of a hub dataset", examples=["main"]
    )
    max_documents: Count = Field(default=100_000, description="the most documents read from a hub dataset")

    @property
    def name(self) -> str:
        """The name of the source in messages and records."""
        return self.path or self.hub or "nothing"

    @property
    def unused_keys(self) -> tuple[str, ...]:
        """The keys that have no effect beside the others."""
        return HUB_KEYS if self.path is not None else ()


@dataclass(frozen=True, config=_CONFIG)
class Lora:
    """Low-rank adapters (arXiv 2106.09685) in place of whole matrices."""

    rank: PositiveInt = Field(default=16, description="the rank of an adapter")
    alpha: PositiveInt = Field(default=32, description="the scale of an adapter, divided by the rank")
    dropout: RatioBelowOne = Field(default=0.0, description="dropout before an adapter")


def _without_default(schema: JsonDict) -> None:
    del schema["default"]


def _with_keys_of(section: type) -> Callable[[type], type]:
    """A decorator: the class gets the keys of `section` that a stage may change, each optional and without default."""

    def add(stage: type) -> type:
        for key, field in keys_of(section).items():
            if key not in WHOLE_TRAINING:
                kind: Any = field.annotation
                for mark in field.metadata:
                    kind = Annotated[kind, mark]
                stage.__annotations__[key] = kind | None
                setattr(stage, key, Field(default=None, description=field.description, examples=field.examples))
        return stage

    return add


@dataclass(frozen=True, config=_CONFIG)
class TrainSettings:
    """The keys of `train`, except its stages."""

    data: tuple[DataEntry, ...] = Field(
        min_length=1,
        description="the texts to train on, a list of sources",
        examples=[[{"path": "corpus/**/*.txt"}]],
    )
    tokens: Count = Field(
        default=0,  # the sum of the stages, filled in; without stages it has to be given
        description="how many tokens to train on, such as 2M; with stages each has its own",
        examples=["2M"],
        json_schema_extra=_without_default,
    )
    freeze: Freeze = Field(
        default="deep",
        description="what is frozen: deep, shallow, none, or a list of layers such as [0, 15..29]",
    )
    embedding: Part = Field(default="side", description="train or freeze it; side: as the first layer")
    final_norm: Part = Field(default="side", description="train or freeze it; side: as the last layer")
    head: Part = Field(default="side", description="train or freeze it; side: as the last layer")
    lora: Lora | None = Field(default=None, description="train low-rank adapters in place of whole matrices")
    seq_len: AtLeastTwo = Field(default=1024, description="tokens per row")
    packed: Switch = Field(default=True, description="several documents per row, isolated from each other")
    global_batch_size: PositiveInt = Field(default=8, description="rows per optimizer step")
    micro_batch_size: NonNegativeInt = Field(default=0, description="rows in memory at a time; 0: all of a step")
    heldout_ratio: RatioBelowOne = Field(
        default=0.02, description="the share of documents held out of training, for evaluation"
    )
    optimizer: Literal["adamw", "adamw8bit"] = Field(
        default="adamw", description="adamw, or adamw8bit, which needs bitsandbytes"
    )
    lr: LearningRate = Field(default=3e-5, description="the peak learning rate, at most 0.1")
    lr_scale: LrScale | None = Field(
        default=None,
        description="factors on lr, by side, layers or names of tensors; layer_decay: a factor per layer from the top",
        examples=[{"shallow": 1.0, "deep": 0.1, "0..1": 0.5, "*.mlp.*": 0.2}],
    )
    betas: Pair = Field(default=(0.9, 0.95), description="AdamW's two decay rates")
    eps: Positive = Field(default=1e-8, description="AdamW's epsilon")
    weight_decay: NonNegative = Field(default=0.1, description="weight decay of matrices; vectors have none")
    max_grad_norm: NonNegative = Field(default=1.0, description="gradients are clipped to this norm; 0: not clipped")
    schedule: Literal["cosine", "wsd", "constant"] = Field(
        default="cosine", description="the learning rate schedule: cosine, wsd (warm-up, stable, decay) or constant"
    )
    warmup_ratio: Ratio = Field(default=0.1, description="the share of steps that warm up")
    min_lr_ratio: Ratio = Field(default=0.1, description="the final learning rate, as a share of the peak")
    decay_ratio: Ratio = Field(default=0.2, description="the share of steps that decay, for wsd")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="the compute dtype; auto: bfloat16 where the device has hardware for it"
    )
    gradient_checkpointing: Recompute = Field(
        default=False,
        description="recompute the activations of all layers (true), or of as many as it takes to stay within a size "
        "such as 8GB, or within the device's memory (auto): less memory, up to a third more compute",
    )
    compile: AutoSwitch = Field(
        default=AUTO, description="compile the layers with torch.compile; auto: on CUDA, not on a CPU"
    )
    max_steps: PositiveInt | None = Field(default=None, description="stop after this many steps", examples=[1000])
    max_minutes: Positive | None = Field(default=None, description="stop after this many minutes", examples=[60])
    checkpoint_minutes: NonNegative = Field(default=5.0, description="minutes between checkpoints; 0: every step")
    divergence: Literal["stop", "warn", "off"] = Field(
        default="stop", description="if the loss rises and stays high: stop, warn or off; NaN always stops"
    )
    trackers: tuple[Tracker, ...] = Field(default=(), description="accelerate's trackers, such as tensorboard")


@dataclass(frozen=True, config=_CONFIG)
@_with_keys_of(TrainSettings)
class Stage:
    """One stage of a training: its tokens, and the keys of `train` that differ in it."""

    tokens: Count = Field(description="how many tokens the stage trains on, such as 2M", examples=["2M"])
    name: Text | None = Field(default=None, description="the name of the stage in tables", examples=["warm-up"])

    @property
    def changes(self) -> dict[str, Any]:
        """What the stage gives in place of the keys of `train`."""
        values = {key: getattr(self, key) for key in keys_of(type(self)) if key != "name"}
        return {key: value for key, value in values.items() if value is not None}


_TOKENS_OR_STAGES: JsonDict = {"oneOf": [{"required": ["tokens"]}, {"required": ["stages"]}]}


@dataclass(frozen=True, config=ConfigDict(**_CONFIG, json_schema_extra=_TOKENS_OR_STAGES))
class Train(TrainSettings):
    """Continued pre-training with a part of the model frozen; without this section the spliced model is the result."""

    stages: tuple[Stage, ...] | None = Field(
        default=None,
        min_length=1,
        description="stages of the training, run in order, each with its tokens and what differs from the keys above",
        examples=[[{"tokens": "1M", "freeze": "deep"}, {"tokens": "1M", "freeze": "none", "lr": 1e-5}]],
    )

    def __post_init__(self) -> None:
        if not self.tokens and self.stages is None:
            raise PydanticCustomError(NO_TOKENS, "neither tokens nor stages")
        if self.stages is not None:
            object.__setattr__(self, "tokens", sum(stage.tokens for stage in self.stages))

    @property
    def unused_keys(self) -> tuple[str, ...]:
        """The keys that have no effect beside the others."""
        return ("tokens",) if self.stages is not None else ()

    def as_stages(self) -> tuple[Train, ...]:
        """One section without stages for each stage, in order; this section alone where it has none."""
        if self.stages is None:
            return (self,)
        return tuple(fill_in(self, stages=None, **stage.changes) for stage in self.stages)

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The names of the stages, `stage 1` and so on where the recipe gives none; empty without stages."""
        named = enumerate(self.stages or (), start=1)
        return tuple(stage.name or f"stage {number}" for number, stage in named)
