"""What the functions of the Python API return: one frozen class for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybridizer.evaluate.gate import GateResult
    from hybridizer.pipeline.amounts import RunAmounts
    from hybridizer.plan.cost import Cost, StepTiming
    from hybridizer.plan.manifest import Manifest
    from hybridizer.plan.plan import LayerRow, Plan
    from hybridizer.splice.verify import Proof
    from hybridizer.trace.baselines import LayerScores
    from hybridizer.trace.readings import Readings


@dataclass(frozen=True)
class CheckResult:
    """A recipe in which no problem was found.

    Attributes:
        num_layers: layers of the output model; None while a donor is not fetched yet.
        num_parameters: parameters of the output model, tied tensors counted once; None likewise.
        warnings: what is allowed and may still be a mistake, one sentence each.
        not_fetched: names of the donors that `plan` and `build` fetch first; nothing about them was checked.
    """

    num_layers: int | None
    num_parameters: int | None
    warnings: tuple[str, ...]
    not_fetched: tuple[str, ...]


@dataclass(frozen=True)
class PlanResult:
    """A recipe with every choice made: one source for every output tensor, and what training will cost.

    Attributes:
        plan: everything that decides the bytes of the output model.
        amounts: space on disk, steps, and tokens and epochs of each source.
        cost: parameters, FLOP and peak memory of the training; None where nothing trains.
        time: seconds per step and for the run, measured here; None unless `time=True` was given and something trains.
    """

    plan: Plan
    amounts: RunAmounts
    cost: Cost | None
    time: StepTiming | None

    @property
    def hash(self) -> str:
        """`sha256:<hex>` of the plan: equal for equal recipes and donors, on any machine."""
        return self.plan.hash

    @property
    def layers(self) -> tuple[LayerRow, ...]:
        """One row per output layer, from shallow to deep: its donor layers, method, kind, parameters and dtype."""
        return self.plan.layers

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is allowed and may still be a mistake, one sentence each."""
        return (*self.plan.warnings, *self.amounts.warnings)


@dataclass(frozen=True)
class BuildResult:
    """A finished run.

    Attributes:
        folder: the run's folder, `runs`/<name>.
        model: the model's folder, which `transformers` loads.
        plan: what was built.
        manifest: the sha256 of every file of the model, the origin of every tensor, and the record of the training.
        proofs: the checks that passed, each with its result.
        scores: bits per byte and samples before and after training ("hybridizer.scores/1"); None where nothing trained.
        profile: whether the deep side kept its profile ("hybridizer.profile/2"); None where the recipe traces nothing.
        gate: the limits of the recipe's `evaluate.gate`, each with its verdict: kept, broken or undecided.
    """

    folder: Path
    model: Path
    plan: Plan
    manifest: Manifest
    proofs: tuple[Proof, ...]
    scores: Mapping[str, Any] | None
    profile: Mapping[str, Any] | None
    gate: tuple[GateResult, ...]


@dataclass(frozen=True)
class TraceResult:
    """The trace of one donor.

    Attributes:
        donor: the donor, as it was given.
        record: the figures of every layer with 95% intervals, as the JSON object that `hybridize trace --json` writes.
        readings: numpy arrays with one value per prompt and layer, from which the record is computed.
        baselines: other measures of every layer, where `baselines=True` was given.
    """

    donor: str
    record: Mapping[str, Any]
    readings: Readings
    baselines: tuple[LayerScores, ...]

    @property
    def num_layers(self) -> int:
        """The donor's depth."""
        return int(self.record["donor"]["num_layers"])


@dataclass(frozen=True)
class RankResult:
    """Donors ranked by one side of each, those that can do the task first.

    Attributes:
        donors: the donors, best first, as they were given.
        record: scores, intervals, ties and boundaries, as the JSON object that `hybridize rank --json` writes.
    """

    donors: tuple[str, ...]
    record: Mapping[str, Any]


@dataclass(frozen=True)
class ScanResult:
    """Changes of a model's layers, tried in memory.

    Attributes:
        better: names of the changes that are better than the model as it is, on items that the search did not see.
        record: every model that was tried, the best tested with intervals, as `hybridize scan --json` writes it.
    """

    better: tuple[str, ...]
    record: Mapping[str, Any]


@dataclass(frozen=True)
class EvaluateResult:
    """The effect of training on a model.

    Attributes:
        scores: bits per byte and samples before and after training ("hybridizer.scores/1").
        profile: whether the deep side kept its profile ("hybridizer.profile/2"); None where the recipe traces nothing.
    """

    scores: Mapping[str, Any]
    profile: Mapping[str, Any] | None


@dataclass(frozen=True)
class EvalModelsResult:
    """Models on the same texts and tasks.

    Attributes:
        models: the models, as they were given.
        record: figures, pairs, limits and overlaps, as the JSON object that `hybridize eval --json` writes.
        exit_code: that of the command: 0, 1 where a limit is broken, 3 where one cannot be decided.
    """

    models: tuple[str, ...]
    record: Mapping[str, Any]
    exit_code: int


@dataclass(frozen=True)
class TrialResult:
    """The arms of a recipe's trial.

    Attributes:
        folder: the trial's folder, `runs`/<name>.
        record: arms, figures and pairs ("hybridizer.trial/1"); None where a single arm was run.
        times: seconds and memory of every run ("hybridizer.trial_times/1"); None likewise.
    """

    folder: Path
    record: Mapping[str, Any] | None
    times: Mapping[str, Any] | None


@dataclass(frozen=True)
class VerifyResult:
    """A model folder that agrees with its manifest.

    Attributes:
        manifest: the sha256 of every file, the origin of every tensor, and the record of the training.
        proofs: the checks that passed, each with its result.
    """

    manifest: Manifest
    proofs: tuple[Proof, ...]
