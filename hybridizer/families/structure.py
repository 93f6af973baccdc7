"""The record of the structure of one checkpoint, and of where one output layer comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from hybridizer.families.encodings import Config, Values
from hybridizer.families.names import Shapes

_REASONS = {
    "model": "belongs to the whole model",
    "draft": "draft head for multi-token prediction, trained on the output of another last layer",
    "buffer": "a buffer that is recomputed on loading",
}


@dataclass(frozen=True)
class Extra:
    """A tensor that is in no layer and is not embedding, final norm or head."""

    name: str
    role: Literal["model", "draft", "buffer"]

    @property
    def kept(self) -> bool:
        """Whether a model with this host needs the tensor."""
        return self.role == "model"

    @property
    def reason(self) -> str:
        """Why it is kept or left out, for messages."""
        return _REASONS[self.role]


@dataclass(frozen=True)
class Structure:
    """One checkpoint: where every tensor belongs and what its layers are.

    `layers[j]` maps a suffix ("self_attn.q_proj.weight") to the full tensor name in layer j. `traits` holds, for each
    trait of the family, one value per layer; `kinds` are the shown ones as text. `text_path` is the path to
    the part of the config that describes the decoder: () or ("text_config",). `max_tokens` is the longest row that the
    model takes, None where neither config nor family limits it.
    """

    where: str
    family: str
    text_family: str
    config: Config = field(repr=False)
    text_path: tuple[str, ...]
    shapes: Shapes = field(repr=False)
    num_layers: int
    layer_prefix: str
    layers: tuple[Mapping[str, str], ...]
    embedding: tuple[str, ...]
    final_norm: tuple[str, ...]
    head: tuple[str, ...]
    extra: tuple[Extra, ...]
    tied: bool
    vocab_size: int
    max_tokens: int | None
    traits: Mapping[str, Values]
    kinds: tuple[str, ...]

    @property
    def text_config(self) -> Config:
        """The part of the config that describes the decoder."""
        config = self.config
        for key in self.text_path:
            config = config[key]
        return config

    @property
    def tie_in_doubt(self) -> bool:
        """Whether the config ties head and embedding although the files hold a head: the bytes must decide."""
        return self.tied and any(name.endswith(".weight") for name in self.head)


@dataclass(frozen=True)
class Source:
    """Where one output layer comes from: layer `layer` (from 0) of `donor`."""

    donor: Structure
    layer: int

    def __str__(self) -> str:
        return f"{self.donor.where} layer {self.layer}"
