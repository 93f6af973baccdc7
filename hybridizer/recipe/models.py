"""The sections of a recipe: one class per section, with the name, default, constraint and description of every key.

Messages, the JSON Schema, the starter recipe and the trace options of the command line are generated from these
classes. A new key is a line here, the code that uses it, and its test. Layers, sizes and counts are held as numbers,
whatever form they were written in; building a section in Python checks its values as loading a recipe does (pydantic's
ValidationError). What depends on a donor (its depth, its shapes) is checked by the plan.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.config import JsonDict
from pydantic.dataclasses import dataclass

from hybridizer.recipe.fields import (
    AUTO,
    ORIGINALS,
    SIDES,
    STRATEGIES,
    AtLeastTwo,
    Boundary,
    Count,
    DonorName,
    Fingerprint,
    Name,
    NonNegative,
    NonNegativeInt,
    NotAKey,
    Parameters,
    ParameterValue,
    Part,
    Positive,
    PositiveInt,
    Ratio,
    Seed,
    Size,
    Text,
    Tracker,
    WrittenAs,
)
from hybridizer.recipe.layout import DEFAULT_CANDIDATES, Blend, BlendSource, Layout, Slice
from hybridizer.recipe.mixer import Calibration, Mixer, MixerSizes, Swap
from hybridizer.recipe.sections import fill_in, plain
from hybridizer.recipe.train import HUB_KEYS, DataEntry, Lora, Stage, Train
from hybridizer.recipe.tree import KeyPath, locate
from hybridizer.recipe.trial import Trial

__all__ = [
    "AUTO",
    "DEFAULT_CANDIDATES",
    "HUB_KEYS",
    "ORIGINALS",
    "SIDES",
    "STRATEGIES",
    "Blend",
    "BlendSource",
    "Boundary",
    "Calibration",
    "DataEntry",
    "DonorEntry",
    "Evaluate",
    "Layout",
    "Lora",
    "Mixer",
    "MixerSizes",
    "Output",
    "ParameterValue",
    "Parameters",
    "Part",
    "Recipe",
    "Slice",
    "Stage",
    "Swap",
    "TextEntry",
    "Trace",
    "Tracker",
    "Train",
    "Trial",
    "plain",
]

Dtype = Literal["keep", "float32", "bfloat16", "float16"]
Allowed = Literal["pickle", "remote_code", "vocabulary", "no_tokenizer", "incompetent"]

# Built at first use, and then only the root with everything inside it: a third of the time of one by one.
_CONFIG = ConfigDict(extra="forbid", defer_build=True)


def _sort_allowed(allow: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(set(allow)))


@dataclass(frozen=True, config=_CONFIG)
class DonorEntry:
    """A checkpoint that gives layers.

    `source` is not parsed here; a relative folder in it counts from `Recipe.folder`.
    """

    source: Text = Field(description="a folder, a GGUF file, a hub id with @revision, or pkg:package/file")
    allow: Annotated[tuple[Allowed, ...], AfterValidator(_sort_allowed)] = Field(
        default=(), description="what is allowed for this donor and refused otherwise"
    )
    fingerprint: Fingerprint | None = Field(
        default=None,
        description="the content this donor must have, as plans show it",
        examples=[f"sha256:{64 * '0'}"],
    )
    name: Annotated[str, NotAKey()] = ""  # the key under `donors`


@dataclass(frozen=True, config=_CONFIG)
class Output:
    """How the model is written."""

    dtype: Dtype = Field(
        default="keep", description="the precision of the weights; keep leaves each tensor as its donor has it"
    )
    max_shard_bytes: Size = Field(default=5_000_000_000, description="the most bytes in one safetensors file")


@dataclass(frozen=True, config=_CONFIG)
class Trace:
    """How donors are traced, if `deep` or `boundary` needs it or this section is present.

    perturb: "context" (arXiv 2605.11416), "layer" (arXiv 2604.20556), or "both". tau, p_min: the task particle is the
    first layer where the target's probability rises to p_min or more, by a ratio of tau or more. [ours] 0.5 is a
    doubling within one layer; below 0.1 a token is one guess among many. All keys except `batch_size` affect the
    result.
    """

    probes: Text = Field(
        default="antonyms-en",
        description="the prompts: antonyms-en, antonyms-zh, tasks-en, tasks-zh, or a JSON Lines file",
    )
    perturb: Literal["context", "layer", "both"] = Field(
        default="context", description="what is disturbed: tokens of the context, the output of a layer, or both"
    )
    mask_ratio: Ratio = Field(default=0.3, description="the share of context tokens that is masked")
    mask_with: Text = Field(default="auto", description="the mask token, as text or id; auto chooses one")
    second_mask_with: Text = Field(
        default="auto",
        description="a second mask token, which the licence to freeze deep must agree under; auto chooses one, "
        "none leaves it out, and then nothing is licensed",
    )
    noise_ratio: Positive = Field(
        default=0.1, description="the norm of the noise on a layer's output, as a share of the residual stream's"
    )
    lens: Literal["plain", "tuned", "both"] = Field(
        default="plain",
        description="how layers are read: plain, by the logit lens; tuned, by a tuned lens (arXiv 2303.08112); both, "
        "figures by the plain lens and the licence by both",
    )
    tau: Ratio = Field(default=0.5, description="the least ratio by which a task particle rises")
    p_min: Ratio = Field(default=0.1, description="the least probability of a task particle")
    epsilon: Positive = Field(
        default=1e-10, description="added to probabilities so that ratios stay finite; smaller than any of interest"
    )
    num_resamples: PositiveInt = Field(
        default=2000, description="the number of bootstrap samples of the prompts behind every interval"
    )
    dtype: Dtype = Field(default="float32", description="the precision that donors are traced in; keep: as stored")
    batch_size: PositiveInt = Field(default=64, description="the most prompts in one batch; does not change the result")


@dataclass(frozen=True, config=_CONFIG)
class TextEntry:
    """A text to evaluate on, one document per record as in training data."""

    name: Text = Field(description="the name of the text in tables", examples=["news"])
    path: Text = Field(description="a file or a glob", examples=["heldout/news.jsonl"])
    field: Text = Field(default="text", description="the JSONL field or Parquet column that holds the text")


@dataclass(frozen=True, config=_CONFIG)
class Evaluate:
    """What is evaluated before and after training, besides the documents held out of the training data."""

    bits_per_byte: tuple[TextEntry, ...] = Field(
        default=(),
        description="general texts, to measure forgetting; held-out training text is always evaluated",
        examples=[[{"name": "news", "path": "heldout/news.jsonl"}]],
    )
    max_tokens: Count = Field(default=100_000, description="the most tokens per text")
    context: AtLeastTwo = Field(default=1024, description="tokens per window")
    prompts: tuple[Text, ...] = Field(default=(), description="prompts to continue before and after")
    new_tokens: PositiveInt = Field(default=40, description="tokens per continuation")
    gate: Text | None = Field(
        default=None, description="a YAML file of limits on what training may lose", examples=["limits.yaml"]
    )
    every: NonNegativeInt = Field(default=0, description="also measure every so many steps of training; 0: do not")
    curve_tokens: Count = Field(default=10_000, description="the most tokens per text in a measurement of `every`")
    retention: NonNegative | None = Field(
        default=None,
        description="by how many bits per byte a general text may rise during training",
        examples=[0.01],
    )
    on_forgetting: Literal["warn", "stop"] = Field(
        default="warn", description="if a general text rises above `retention`: warn once, or stop"
    )
    keep: Literal["last", "best"] = Field(
        default="last", description="the weights that are the result: the last, or the best in domain that `every` saw"
    )


def _name_donors(donors: Mapping[str, DonorEntry]) -> tuple[DonorEntry, ...]:
    return tuple(fill_in(entry, name=name) for name, entry in donors.items())


_SEVERAL_NEED_A_HOST: JsonDict = {
    "if": {"properties": {"donors": {"minProperties": 2}}},
    "then": {"properties": {"layout": {"required": ["host"]}}},
}


@dataclass(frozen=True, kw_only=True, config=ConfigDict(**_CONFIG, json_schema_extra=_SEVERAL_NEED_A_HOST))
class Recipe:
    """A recipe for one hybrid model. Two are equal if they have the same content, wherever their files are."""

    name: Name = Field(
        default="",  # the file's name, filled in by loading
        description="the name of the run and its folder; the file's name if left out",
        examples=["my-hybrid"],
    )
    seed: Seed = Field(default=0, description="the seed of everything random")
    donors: Annotated[
        tuple[DonorEntry, ...],
        WrittenAs(Annotated[dict[DonorName, DonorEntry], Field(min_length=1)], _name_donors),
    ] = Field(description="the checkpoints to build from, each under a name of your choice")
    layout: Layout = Field(description="which donor gives which layer")
    output: Output = Field(default_factory=Output, description="how the model is written")
    trace: Trace | None = Field(default=None, description="how donors are traced")
    train: Train | None = Field(default=None, description="continued pre-training of what is not frozen")
    evaluate: Evaluate | None = Field(default=None, description="what is measured before and after training")
    trial: Trial | None = Field(default=None, description="arms that are trained and compared by `hybridize trial`")
    path: Annotated[Path, NotAKey()] = dataclasses.field(default=Path(), compare=False)
    places: Annotated[Mapping[KeyPath, str], NotAKey()] = dataclasses.field(
        default_factory=dict, compare=False, repr=False
    )
    warnings: Annotated[tuple[str, ...], NotAKey()] = dataclasses.field(default=(), compare=False)

    @property
    def folder(self) -> Path:
        """The folder of the recipe file, from which relative paths in the recipe count."""
        return self.path.parent

    @property
    def train_section(self) -> Train:
        """`train`, of a recipe that trains."""
        assert self.train is not None, "asked of recipes that train"
        return self.train

    def donor(self, name: str) -> DonorEntry:
        """The donor called `name`, which every name inside a loaded recipe is."""
        return next(entry for entry in self.donors if entry.name == name)

    def locate(self, path: KeyPath) -> str:
        """Where `path` was written, as "file:line" or "--set a.b=c"; for what was left out, where its section is."""
        return locate(self.places, path)

    def resolved(self) -> dict[str, Any]:
        """The recipe as plain values with every default filled in; loading them again gives an equal recipe."""
        return plain(self)
