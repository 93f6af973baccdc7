"""The `train` section of a recipe: sources of text, what is frozen, and the settings of the optimizer."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from hybridizer.recipe.fields import (
    AUTO,
    AtLeastTwo,
    AutoSwitch,
    Count,
    Freeze,
    LearningRate,
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
from hybridizer.recipe.objective import Objective

# As in recipe.models: built together with the root.
_CONFIG = ConfigDict(extra="forbid", defer_build=True)
HUB_KEYS = ("split", "config", "revision", "max_documents")  # they have no effect on files


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


@dataclass(frozen=True, config=_CONFIG)
class Train:
    """Continued pre-training with a part of the model frozen; without this section the spliced model is the result."""

    data: tuple[DataEntry, ...] = Field(
        min_length=1,
        description="the texts to train on, a list of sources",
        examples=[[{"path": "corpus/**/*.txt"}]],
    )
    tokens: Count = Field(description="how many tokens to train on, such as 2M", examples=["2M"])
    freeze: Freeze = Field(
        default="deep",
        description="what is frozen: deep, shallow, none, or a list of layers such as [0, 15..29]",
    )
    embedding: Part = Field(default="side", description="train or freeze it; side: as the first layer")
    final_norm: Part = Field(default="side", description="train or freeze it; side: as the last layer")
    head: Part = Field(default="side", description="train or freeze it; side: as the last layer")
    objective: Objective | None = Field(
        default=None,
        description="what is minimised: next-token, the default, or distill or align with the keys below",
    )
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
