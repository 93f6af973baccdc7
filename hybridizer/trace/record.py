"""The record of one trace, "hybridizer.trace/3": a stable format that other programs read.

Layers are counted from 0: `layers[l]` is layer l, 0..L-1, with the figures of its output; the embedding output, which
comes before layer 0, is a field of its own. A boundary b, 1..L-1, is the first deep layer. (The papers count layers
1..L; see sensitivity.py.) Divergences are in bits. A field `x_ci` is the bootstrap 95% interval over prompts of x,
[low, high], and null where x is, or where there is only one prompt; prompts that name a cluster are drawn by cluster.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from hybridizer.core.bootstrap import Interval
from hybridizer.core.errors import CheckpointError, Problem
from hybridizer.core.records import read_json, to_jsonable
from hybridizer.trace.readings import Readings

if TYPE_CHECKING:  # baselines need torch
    from hybridizer.trace.baselines import LayerScores

SCHEMA = "hybridizer.trace/3"


@dataclass(frozen=True)
class RecordedDonor:
    """Which model was traced: the reference as the user wrote it, the fingerprint of its bytes, its family, and L."""

    reference: str
    fingerprint: str
    family: str
    num_layers: int


@dataclass(frozen=True)
class RecordedProbes:
    """Which prompts were traced, how many, and how many independent clusters they are: n where none is named."""

    name: str
    sha256: str
    n: int
    num_clusters: int


@dataclass(frozen=True)
class RecordedSettings:
    """Everything besides donor and probes that the numbers depend on.

    `mask_with` is the text of the token that replaced masked ones, `mask_token_id` its id, `mask_chosen_as` why it was
    taken; `second_mask_with` and `second_mask_token_id` are those of the second run. Where positions were given,
    `mask_positions` is the sha256 of the lists and `mask_ratio` null. `noise_ratio` is null without the layer
    perturbation, the mask fields without the context perturbation. `lens` is the one behind the figures,
    `licence_lenses` those that the licence was evaluated with. `tuned_lens` is the key of the fitted maps.
    """

    perturb: str
    mask_ratio: float | None
    mask_with: str | None
    mask_token_id: int | None
    mask_chosen_as: str | None
    second_mask_with: str | None
    second_mask_token_id: int | None
    mask_positions: str | None
    noise_ratio: float | None
    lens: str
    licence_lenses: tuple[str, ...]
    tuned_lens: str | None
    epsilon: float
    tau: float
    p_min: float
    seed: int
    num_resamples: int
    dtype: str


@dataclass(frozen=True)
class EmbeddingFigures:
    """The embedding output, what enters layer 0; the fields are those of LayerFigures."""

    target_prob: float
    target_prob_ci: Interval | None
    js: float
    js_ci: Interval | None
    layer_js: float | None
    layer_js_ci: Interval | None
    explained: float | None
    explained_ci: Interval | None


@dataclass(frozen=True)
class LayerFigures:
    """One layer. target_prob: mean probability of t* through the lens at its output. js: mean JS there.

    delta_js: |js of its output - js of its input|, of those means; the input of layer 0 is the embedding output.
    With `perturb` "layer", js is the divergence of the final distributions when the output of the layer is disturbed;
    with "both", js is the context perturbation and layer_js the layer perturbation. ratio_*: of the change ratio over
    prompts. task_particles: the number of prompts whose task particle is here. explained: 1 - mean KL(final || here) /
    mean KL(final || uniform): 1 at the last layer, 0 no better than knowing nothing, negative where the lens misleads,
    null for a model whose answer is always uniform. blind: whether the lens explains under 10% here.
    """

    layer: int
    target_prob: float
    target_prob_ci: Interval | None
    ratio_median: float
    ratio_mean: float
    js: float
    js_ci: Interval | None
    delta_js: float
    delta_js_ci: Interval | None
    task_particles: int
    layer_js: float | None
    layer_js_ci: Interval | None
    explained: float | None
    explained_ci: Interval | None
    blind: bool


@dataclass(frozen=True)
class TaskParticle:
    """The median task particle of the n prompts that have one, its relative depth, how many prompts have none.

    relative_depth: of its output, (layer + 1) / L, so that the last layer is at 1. The ends of `layer_ci` are layers;
    the median of an even number of prompts may lie half-way between two.
    """

    layer: float | None
    relative_depth: float | None
    layer_ci: Interval | None
    n: int
    num_without: int


@dataclass(frozen=True)
class VulnerableLayer:
    """The layer whose disturbance changes the final distribution most; relative_depth is (layer + 1) / L.

    support: the share of bootstrap samples in which it is this layer.
    """

    layer: int
    relative_depth: float
    js: float
    js_ci: Interval | None
    support: float


@dataclass(frozen=True)
class BoundaryFigure:
    """S(b): mean delta_js of layers 0..b-1 minus that of layers b..L-1; b is the first deep layer.

    `s` is the paper's plain figure, made of absolute values, which noise makes too large; its `s_ci` covers the true
    value in 0 to 97% of simulated traces. `s_debiased` estimates the same without that bias except 0.15 errors of a
    layer, which its interval allows for: it covers the true value in about 95% (scripts/coverage.py). deep_stability:
    1 - mean delta_js of layers b..L-1, debiased too.
    """

    b: int
    s: float
    s_ci: Interval | None
    s_debiased: float
    s_debiased_ci: Interval | None
    deep_stability: float
    deep_stability_ci: Interval | None


@dataclass(frozen=True)
class SettingScores:
    """S(b) under one setting: a mask token, a lens, and the prompts of one template, or all of them (null).

    `s` has the debiased S(b) of b = 1..L-1, over the layers that are not `blind_layers`; null where a side has none.
    `s_error` is its standard error, null for a single cluster, `s_bias` the most that debiasing may have left. An
    interval is s +- (a critical value times s_error + s_bias): `critical` for a b that was given; `critical_inner` for
    one that was searched for among those with a quarter of the layers or more on each side, `critical_all` among all,
    both by the max-statistic of the bootstrap.
    """

    mask: str
    lens: str
    template: str | None
    n: int
    num_clusters: int
    blind_layers: tuple[int, ...]
    s: tuple[float | None, ...]
    s_error: tuple[float | None, ...]
    s_bias: tuple[float | None, ...]
    critical: float
    critical_inner: float
    critical_all: float


@dataclass(frozen=True)
class BestBoundary:
    """The b with the largest debiased S(b), `s`; support: the share of bootstrap samples in which it is this b.

    `s_ci` is that of this b alone and does not account for the choice of b: where support is small, it is too narrow.
    """

    b: int
    s: float
    s_ci: Interval | None
    support: float


@dataclass(frozen=True)
class TraceRecord:
    """One trace. accuracy: the share of the `accuracy_n` prompts with a one-token target that are answered with it.

    target_prob: mean probability of that target at the model's end, over the same prompts. Both are null without
    targets. `boundary` has every b, 1..L-1; boundary_marks: b at 33%, 50% and 66% of the depth. licence_settings: what
    the licence to freeze deep is judged by (licence.py); empty without the context perturbation. `accuracy_ci` is
    Wilson's interval.
    """

    donor: RecordedDonor
    probes: RecordedProbes
    settings: RecordedSettings
    accuracy: float | None
    accuracy_ci: Interval | None
    accuracy_n: int
    target_prob: float | None
    target_prob_ci: Interval | None
    embedding: EmbeddingFigures
    layers: tuple[LayerFigures, ...]
    task_particle: TaskParticle
    vulnerable_layer: VulnerableLayer | None
    boundary: tuple[BoundaryFigure, ...]
    boundary_marks: dict[str, int]
    best_boundary: BestBoundary | None
    licence_settings: tuple[SettingScores, ...]

    def to_json(self) -> dict[str, Any]:
        """The record as the plain JSON object of the contract, `schema` first."""
        return {"schema": SCHEMA, **to_jsonable(self)}


@dataclass(frozen=True)
class TraceRun:
    """One traced donor: its name, its record, the readings that every other figure can be computed from.

    `baselines` are other measures of its layers, where they were requested.
    """

    donor: str
    record: TraceRecord
    readings: Readings
    baselines: tuple[LayerScores, ...] = ()


def read_trace_record(path: Path) -> TraceRecord:
    """The record in a file, as `to_json` gives it. Raises CheckpointError for another schema and a damaged record."""
    value = read_json(path)
    schema = value.pop("schema", None) if isinstance(value, dict) else None
    if schema != SCHEMA:
        raise _refusal(path, f"its schema is {schema!r}, not '{SCHEMA}'")
    try:
        record = TypeAdapter(TraceRecord).validate_json(json.dumps(value, allow_nan=False), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise _refusal(path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except ValueError as error:
        raise _refusal(path, str(error)) from None
    for what in _disorder(record, value):
        raise _refusal(path, what)
    return record


def _disorder(record: TraceRecord, value: Any) -> Iterator[str]:
    num_layers = record.donor.num_layers
    if to_jsonable(record) != value:
        yield "it has fields that a trace record does not have"
    if [row.layer for row in record.layers] != list(range(num_layers)):
        yield f"its layers are not numbered 0..{num_layers - 1} in order"
    if [row.b for row in record.boundary] != list(range(1, num_layers)):
        yield f"its boundaries are not numbered 1..{num_layers - 1} in order"
    rows = [column for row in record.licence_settings for column in (row.s, row.s_error, row.s_bias)]
    if any(len(column) != num_layers - 1 for column in rows):
        yield f"a setting of its licence does not have boundaries 1..{num_layers - 1}"


def _refusal(path: Path, what: str) -> CheckpointError:
    return CheckpointError(Problem(str(path), f"not a trace record: {what}.", "Trace the donor again."))
