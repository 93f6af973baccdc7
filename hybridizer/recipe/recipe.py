"""What a recipe says, as plain frozen values: defaults filled in, names checked, layer ranges counted out.

`hybridizer.recipe.load.load_recipe` makes one from YAML text. What a recipe cannot know without opening a donor (its
depth, its shapes) is left to the plan; `Recipe.locate` gives the plan the line to point at.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from hybridizer.recipe.layers import format_layers
from hybridizer.recipe.tree import KeyPath, locate

Boundary: TypeAlias = float | int | str
ParameterValue: TypeAlias = float | int | bool
Parameters: TypeAlias = tuple[tuple[str, ParameterValue], ...]


AUTO = "auto"
# Names that a boundary may have; each is a function of hybridizer.trace.boundary, by its name there.
STRATEGIES = (AUTO, "knee", "midpoint", "s-maximal", "task-particle")


@dataclass(frozen=True)
class DonorEntry:
    """A donor as the recipe names it: the text of its reference, and what was allowed for it by name.

    `source` is not parsed here; a relative folder in it counts from `Recipe.folder`. `allow` holds what is
    let pass of "pickle", "remote_code", "vocabulary" and "no_tokenizer", sorted. `fingerprint` pins the content, where
    it is given.
    """

    name: str
    source: str
    allow: tuple[str, ...] = ()
    fingerprint: str | None = None


@dataclass(frozen=True)
class Slice:
    """Layers of one donor in the order given, repeats allowed; `layers` is None for all of them."""

    donor: str
    layers: tuple[int, ...] | None = None


@dataclass(frozen=True)
class BlendSource:
    """One side of a blend: as many layers as the other sides (None for all), and this side's own parameters."""

    donor: str
    layers: tuple[int, ...] | None = None
    parameters: Parameters = ()


@dataclass(frozen=True)
class Blend:
    """Layers mixed from several donors: the n-th layer of every source goes into the n-th layer of the blend.

    `method` and the names of the parameters are mergekit's and are not checked here. `base`, for methods that need
    one, is the donor of exactly one of the sources. Parameters are (name, value) pairs sorted by name.
    """

    method: str
    sources: tuple[BlendSource, ...]
    parameters: Parameters = ()
    base: str | None = None


@dataclass(frozen=True)
class Layout:
    """Which donor gives which layer: by the dial (`deep`, `shallow`, `boundary`) or in full (`slices`), never both.

    With the dial `slices` is empty; with slices the three are None. A float boundary is a share of the depth, above
    0 and below 1; an int one is the first layer of the deep side, at least 1; a text is one of STRATEGIES. `deep` may
    be "auto", for the donor that ranks first. `host` is always filled in.
    """

    host: str
    deep: str | None = None
    shallow: str | None = None
    boundary: Boundary | None = None
    slices: tuple[Slice | Blend, ...] = ()

    @property
    def needs_trace(self) -> bool:
        """Whether donors must be traced before the layers can be counted out."""
        return self.deep == AUTO or (isinstance(self.boundary, str) and self.boundary != "midpoint")


@dataclass(frozen=True)
class Trace:
    """How donors are traced; the names are those of hybridizer.trace.settings.TraceSettings.

    `probes` is the name of a built-in set, or a JSON Lines file as the recipe names it; `lens` is "plain" or "tuned".
    """

    probes: str = "antonyms-en"
    perturb: Literal["context", "layer", "both"] = "context"
    mask_ratio: float = 0.3
    mask_with: str = "auto"
    lens: Literal["plain", "tuned"] = "plain"
    tau: float = 0.5
    p_min: float = 0.1
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "float32"


@dataclass(frozen=True)
class Output:
    """How the model is written: `dtype` is "keep" or a torch dtype's name; no shard grows past `max_shard_bytes`."""

    dtype: str = "keep"
    max_shard_bytes: int = 5_000_000_000


@dataclass(frozen=True)
class Recipe:
    """One run, as asked for. Two recipes are equal when they ask for the same, wherever their files lie."""

    name: str
    seed: int
    donors: tuple[DonorEntry, ...]
    layout: Layout
    output: Output
    trace: Trace | None
    train: Train | None
    evaluate: Evaluate | None
    path: Path = field(compare=False)
    places: Mapping[KeyPath, str] = field(compare=False, repr=False)

    @property
    def folder(self) -> Path:
        """The folder of the recipe file, from which relative paths in the recipe count."""
        return self.path.parent

    def donor(self, name: str) -> DonorEntry:
        """The donor called `name`, which every name inside a loaded recipe is."""
        return next(entry for entry in self.donors if entry.name == name)

    def locate(self, path: KeyPath) -> str:
        """Where `path` was written, as "file:line" or "--set a.b=c"; for what was left out, where its section is."""
        return locate(self.places, path)

    def resolved(self) -> dict[str, Any]:
        """The recipe as plain values with every default filled in; loading them again gives an equal recipe."""
        return {
            "name": self.name,
            "seed": self.seed,
            "donors": {entry.name: _donor_values(entry) for entry in self.donors},
            "layout": _layout_values(self.layout),
            "output": {"dtype": self.output.dtype, "max_shard_bytes": self.output.max_shard_bytes},
            **({} if self.trace is None else {"trace": dataclasses.asdict(self.trace)}),
            **({} if self.train is None else {"train": plain(self.train)}),
            **({} if self.evaluate is None else {"evaluate": plain(self.evaluate)}),
        }


def _donor_values(entry: DonorEntry) -> dict[str, Any]:
    pin = {} if entry.fingerprint is None else {"fingerprint": entry.fingerprint}
    return {"source": entry.source, "allow": list(entry.allow), **pin}


def _layout_values(layout: Layout) -> dict[str, Any]:
    if not layout.slices:
        return {"host": layout.host, "deep": layout.deep, "shallow": layout.shallow, "boundary": layout.boundary}
    return {"host": layout.host, "slices": [_slice_values(piece) for piece in layout.slices]}


def _slice_values(piece: Slice | Blend) -> dict[str, Any]:
    if isinstance(piece, Slice):
        return _layers_of(piece)
    blend: dict[str, Any] = {"method": piece.method, "parameters": dict(piece.parameters)}
    if piece.base is not None:
        blend["base"] = piece.base
    blend["sources"] = [_layers_of(source) | {"parameters": dict(source.parameters)} for source in piece.sources]
    return {"blend": blend}


def _layers_of(piece: Slice | BlendSource) -> dict[str, Any]:
    # Left out stays left out: how many layers "all" is, only the donor knows.
    return {"donor": piece.donor} | ({} if piece.layers is None else {"layers": format_layers(piece.layers)})


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

    Tokens, rows and shares are those of hybridizer.data.batches.DataSettings, the rest those of
    hybridizer.train.loop.TrainSettings and its parts, under the same names.
    """

    data: tuple[DataEntry, ...]
    tokens: int
    freeze: str | tuple[int, ...] = "deep"
    embedding: Part = "side"
    final_norm: Part = "side"
    head: Part = "side"
    lora: Lora | None = None
    seq_len: int = 1024
    packed: bool = True
    global_batch_size: int = 8
    micro_batch_size: int = 0
    heldout_ratio: float = 0.02
    optimizer: str = "adamw"
    lr: float = 3e-5
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    schedule: str = "cosine"
    warmup_ratio: float = 0.1
    min_lr_ratio: float = 0.1
    decay_ratio: float = 0.2
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    gradient_checkpointing: bool = False
    compile: bool = False
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
