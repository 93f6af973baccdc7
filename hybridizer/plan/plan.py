"""The plan: one source for every output tensor, a use or a reason for every donor tensor. Printed, hashed, then run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from hybridizer.core.errors import CheckpointError, Problem
from hybridizer.core.records import content_hash, read_record, to_jsonable
from hybridizer.families.target import Served
from hybridizer.plan.origin import BlendUse, Source
from hybridizer.recipe.objective import NEXT_TOKEN

SCHEMA = "hybridizer.plan/2"


@dataclass(frozen=True)
class DonorPin:
    """What a plan records of a donor: the user's name for it, and its content. Only the fingerprint is in the hash."""

    reference: str
    revision: str | None
    fingerprint: str | None
    family: str
    num_layers: int


@dataclass(frozen=True)
class PlannedTensor:
    """An output tensor: its name, safetensors dtype and shape, and the one source it is made from."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: Source


@dataclass(frozen=True)
class LayerRow:
    """One output layer, for tables. `sources` are `donor@fingerprint layer` texts, `parameters` a count."""

    layer: int
    sources: tuple[str, ...]
    method: str
    kind: str
    parameters: int
    dtype: str


@dataclass(frozen=True)
class Evidence:
    """The reasons for the layout: a sentence per choice made from traces, warnings, the ranking as JSON.

    `swap` is the choice of the layers whose attention is replaced, with the score of each layer where it has one.
    """

    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    ranking: Mapping[str, Any] | None = None
    swap: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Plan:
    """Everything that decides the output's bytes, and nothing about where files lie.

    `identity_of` names the donor whose logits the output computes; None for a new model. `unused` gives,
    for every donor, its tensors that are left out and why. `config` is the output's config.json; `tokenizer_files` are
    the files taken over from the host, by name, with their sha256. `executor` is the key of the one in
    hybridizer.splice.executors that makes the tensors. `train` says what trains afterwards. `served_by` says what runs
    the model, where layers were put into another family.
    """

    name: str
    host: str
    seed: int
    executor: str
    identity_of: str | None
    donors: Mapping[str, DonorPin]
    layers: tuple[LayerRow, ...]
    tensors: tuple[PlannedTensor, ...]
    blends: tuple[BlendUse, ...]
    unused: Mapping[str, Mapping[str, str]]
    config: Mapping[str, Any]
    tokenizer_files: Mapping[str, str]
    max_shard_bytes: int
    warnings: tuple[str, ...] = ()
    evidence: Evidence = Evidence()
    train: TrainPlan | None = None
    served_by: tuple[Served, ...] = ()

    @property
    def spliced(self) -> Plan:
        """The plan of the model before training; this one where nothing trains."""
        return replace(self, train=None)

    def up_to(self, num_stages: int) -> Plan:
        """The plan that ends after the first `num_stages` stages of a training that has stages."""
        return replace(self, train=self.train.up_to(num_stages)) if self.train and num_stages else self.spliced

    @property
    def train_plan(self) -> TrainPlan:
        """`train`, of a plan that trains."""
        assert self.train is not None, "asked of plans that train"
        return self.train

    @cached_property
    def hash(self) -> str:
        """`sha256:<hex>` over all but names a user may change freely: equal for equal recipes and donors, anywhere."""
        content = self._as_jsonable()
        for free in ("name", "warnings", "layers", "evidence", "served_by"):
            del content[free]
        if self.train is None:
            del content["train"]
        else:
            del content["train"]["notes"]
            for stage in content["train"].get("stages", ()):
                del stage["name"], stage["notes"]
        content["donors"] = {name: pin.fingerprint for name, pin in self.donors.items()}
        content["unused"] = {name: sorted(tensors) for name, tensors in self.unused.items()}
        return content_hash(content)

    @property
    def num_parameters(self) -> int:
        """Parameters of the output, tied tensors counted once."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON values, with its schema and hash."""
        return {"schema": SCHEMA, "hash": self.hash, **self._as_jsonable()}

    def _as_jsonable(self) -> dict[str, Any]:
        value: dict[str, Any] = to_jsonable(replace(self, config=_encode_infinities(self.config)))
        if self.train is not None and not self.train.stages:
            del value["train"]["stages"]  # as in plans of versions without stages
        if self.evidence.swap is None:
            del value["evidence"]["swap"]  # as in plans of versions without it
        return value


def donor_layers(rows: Sequence[LayerRow]) -> list[tuple[int, ...]]:
    """For each source of a run of similar rows, its donor layers in order."""
    columns = zip(*(row.sources for row in rows), strict=True)
    return [tuple(int(source.rpartition(" ")[2]) for source in column) for column in columns]


def read_plan(value: Mapping[str, Any], where: str) -> Plan:
    """The plan that `to_json` wrote. Raises CheckpointError when it is of another schema, damaged, or was edited."""
    fields = {key: item for key, item in value.items() if key != "hash"}
    if isinstance(fields.get("train"), dict):
        fields["train"] = {"stages": [], **fields["train"]}
    if isinstance(fields.get("evidence"), dict):
        fields["evidence"] = {"swap": None, **fields["evidence"]}
    plan = read_record(fields, Plan, SCHEMA, where, "Plan again with this version.")
    plan = replace(plan, config=_decode_infinities(plan.config))
    if plan.hash != value.get("hash"):
        what = f"its content hashes to {plan.hash}, and its `hash` is {value.get('hash')}."
        raise CheckpointError(Problem(where, what, "The file was edited or damaged; plan again."))
    return plan


# Not transformers' own key "__float__": a config.json that writes it must come back as it was written.
_NONFINITE = "__nonfinite__"


def _encode_infinities(value: Any) -> Any:
    """Infinities and NaN, which some config.json hold and JSON does not know, as objects of one key."""
    if isinstance(value, Mapping):
        return {key: _encode_infinities(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encode_infinities(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {_NONFINITE: {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")}
    return value


def _decode_infinities(value: Any) -> Any:
    if isinstance(value, Mapping):
        if value.keys() == {_NONFINITE}:
            return float(value[_NONFINITE])
        return {key: _decode_infinities(item) for key, item in value.items()}
    return [_decode_infinities(item) for item in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class DataPin:
    """One source of training text as it is in the hash: its settings, and the sha256 of each of its files in order.

    A hub dataset has no files; its commit is among the settings, as `content`.
    """

    settings: Mapping[str, Any]
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class StagePlan:
    """One stage of a training: what is frozen in it, and its settings. Its `name` and `notes` are for the reader."""

    name: str
    frozen_layers: tuple[int, ...]
    frozen_parts: tuple[str, ...]
    settings: Mapping[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainPlan:
    """Which layers and parts (embedding, final norm, head) stay frozen in a model of `boundary` shallow layers.

    `settings` are the recipe's, without what may change between two starts of a run. `notes` are for the reader. Of a
    training with `stages` the frozen layers and parts are those that no stage trains, and the settings are the stages'.
    """

    boundary: int
    frozen_layers: tuple[int, ...]
    frozen_parts: tuple[str, ...]
    settings: Mapping[str, Any]
    data: tuple[DataPin, ...]
    notes: tuple[str, ...] = ()
    stages: tuple[StagePlan, ...] = ()

    @property
    def loss_of(self) -> str:
        """What the losses of the log are: those of next tokens in nats, or those of the objectives with a teacher."""
        kinds = [next(iter(one.settings.get("objective") or {NEXT_TOKEN: None})) for one in self.as_stages()]
        if {*kinds} == {NEXT_TOKEN}:
            return "in nats per token"
        names = list(dict.fromkeys(kinds))
        return f"of the objective{'s' if len(names) > 1 else ''} {', '.join(names)}"

    def as_stages(self) -> tuple[TrainPlan, ...]:
        """A training of its own for each stage, in order; this one alone where it has none."""
        return tuple(self.stage(index) for index in range(len(self.stages))) or (self,)

    def stage(self, index: int) -> TrainPlan:
        """The stage `index`, from 0, as a training of its own."""
        one = self.stages[index]
        return TrainPlan(self.boundary, one.frozen_layers, one.frozen_parts, one.settings, self.data, one.notes)

    def up_to(self, num_stages: int) -> TrainPlan:
        """The first `num_stages` stages, at least one."""
        stages = self.stages[:num_stages]
        return replace(self, **never_trained(stages), stages=stages)


def never_trained(stages: Sequence[StagePlan]) -> dict[str, Any]:
    """`frozen_layers` and `frozen_parts` that are frozen in each of `stages`."""
    layers, parts = ([getattr(stage, f"frozen_{kind}") for stage in stages] for kind in ("layers", "parts"))
    return {
        "frozen_layers": tuple(layer for layer in layers[0] if all(layer in frozen for frozen in layers)),
        "frozen_parts": tuple(part for part in parts[0] if all(part in frozen for frozen in parts)),
    }
