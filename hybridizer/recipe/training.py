"""What a recipe says about training and about measuring it, as plain frozen values with their defaults."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from hybridizer.recipe.layers import format_layers

Part = Literal["side", "train", "freeze"]
Tracker = Literal[
    "aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"
]  # accelerate's
HUB_KEYS = ("split", "config", "revision", "max_documents")  # they say nothing about files


@dataclass(frozen=True)
class DataEntry:
    """One source of a mixture: a `path` or glob, relative to the recipe, or a `hub` dataset read as a stream.

    `field` is the JSONL field or Parquet column with the text; `weight` the share of tokens, relative to the others.
    `split`, `config`, `revision` and `max_documents` are a hub dataset's.
    """

    path: str | None = None
    hub: str | None = None
    weight: float = 1.0
    field: str = "text"
    max_document_bytes: int = 10_000_000
    split: str = "train"
    config: str | None = None
    revision: str | None = None
    max_documents: int = 100_000

    @property
    def name(self) -> str:
        """What the source is called in messages and records."""
        return self.path or self.hub or "nothing"


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (arXiv 2106.09685): the rank, the scale `alpha` / rank, and dropout before them."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0


@dataclass(frozen=True)
class Train:
    """Continued pre-training. `freeze` is a side or layer numbers; the three parts follow their side unless named.

    Tokens, rows and shares are those of hybridizer.training.data.DataSettings, the rest those of
    hybridizer.training.loop.TrainSettings and its parts, under the same names.
    """

    data: tuple[DataEntry, ...]
    tokens: int
    freeze: str | tuple[int, ...] = "deep"
    embedding: Part = "side"
    final_norm: Part = "side"
    head: Part = "side"
    lora: Lora | None = None
    sequence: int = 1024
    packed: bool = True
    rows_per_step: int = 8
    rows_per_batch: int = 0
    heldout_share: float = 0.02
    optimizer: str = "adamw"
    lr: float = 3e-5
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    schedule: str = "cosine"
    warmup_share: float = 0.1
    final_share: float = 0.1
    decay_share: float = 0.2
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    recompute_layers: bool = False
    compile_layers: bool = False
    max_steps: int | None = None
    max_minutes: float | None = None
    checkpoint_minutes: float = 5.0
    trackers: tuple[Tracker, ...] = ()


@dataclass(frozen=True)
class TextEntry:
    """A general text to measure on, under a `name`: a file or glob, one document a record as in training data."""

    name: str
    path: str
    field: str = "text"


@dataclass(frozen=True)
class Evaluate:
    """What is measured before and after training, besides the held-out documents of the training data.

    At most `max_tokens` of each text, in windows of `context` tokens; `prompts` are continued by `new_tokens` tokens.
    """

    bits_per_byte: tuple[TextEntry, ...] = ()
    max_tokens: int = 100_000
    context: int = 1024
    prompts: tuple[str, ...] = ()
    new_tokens: int = 40


def plain(section: Train | Evaluate) -> dict[str, Any]:
    """The section as a recipe would hold it, what is None left out."""
    values: dict[str, Any] = _without_none(dataclasses.asdict(section))
    for entry in values.get("data", []):
        for key in HUB_KEYS if "path" in entry else ():
            entry.pop(key, None)
    if isinstance(values.get("freeze"), list):
        values["freeze"] = format_layers(values["freeze"])
    return values


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, (list, tuple)) else value
