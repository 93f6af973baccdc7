"""The record of one trace, "hybridizer.trace/1": a contract, because other programs read it.

Every list over layers runs over l = 1..L, and b over 1..L-1. Divergences are in bits. A field `x_ci` is the bootstrap
95% interval over prompts of x, [low, high], and null where x is, or where there is only one prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hybridizer.core.bootstrap import Interval
from hybridizer.core.records import to_jsonable

SCHEMA = "hybridizer.trace/1"


@dataclass(frozen=True)
class RecordedDonor:
    """Which model was traced: the reference as the user wrote it, the fingerprint of its bytes, its family, and L."""

    reference: str
    fingerprint: str
    family: str
    num_layers: int


@dataclass(frozen=True)
class RecordedProbes:
    """Which prompts were traced, and how many."""

    name: str
    sha256: str
    n: int


@dataclass(frozen=True)
class RecordedSettings:
    """Everything besides donor and probes that the numbers depend on.

    `mask_with` is the text of the token that replaced masked ones, `mask_token_id` its id, `mask_chosen_as` why it was
    taken. Where positions were given, `mask_positions` is the sha256 of the lists and `mask_ratio` null. `noise_ratio`
    is null without the layer perturbation, the mask fields without the context perturbation. `tuned_lens` is the key
    of the fitted maps.
    """

    perturb: str
    mask_ratio: float | None
    mask_with: str | None
    mask_token_id: int | None
    mask_chosen_as: str | None
    mask_positions: str | None
    noise_ratio: float | None
    lens: str
    tuned_lens: str | None
    epsilon: float
    tau: float
    p_min: float
    seed: int
    num_resamples: int
    dtype: str


@dataclass(frozen=True)
class LayerFigures:
    """One layer. target_prob: mean of P(l)[t*]. js: mean of JS(l); delta_js: |js(l) - js(l-1)| of those means.

    With `perturb` "layer", js is the divergence of the final distributions when the output of layer l is disturbed;
    with "both", js is the context perturbation and layer_js the layer perturbation. ratio_*: of Ratio(l) over prompts.
    task_particles: the number of prompts whose task particle is here. explained: 1 - mean KL(P(L) || P(l)) /
    mean KL(P(L) || uniform): 1 at the last layer, 0 no better than knowing nothing, negative where the lens misleads,
    null for a model whose answer is always uniform.
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


@dataclass(frozen=True)
class TaskParticle:
    """The median task particle of the n prompts that have one, its relative depth (layer / L), how many have none.

    The ends of `layer_ci` are layers; the median of an even number of prompts may lie half-way between two.
    """

    layer: float | None
    relative_depth: float | None
    layer_ci: Interval | None
    n: int
    num_without: int


@dataclass(frozen=True)
class VulnerableLayer:
    """The layer whose disturbance changes the final distribution most; support: its share of bootstrap samples won."""

    layer: int
    relative_depth: float
    js: float
    js_ci: Interval | None
    support: float


@dataclass(frozen=True)
class BoundaryFigure:
    """S(b): mean delta_js of layers 1..b less that of layers b+1..L."""

    b: int
    s: float
    s_ci: Interval | None


@dataclass(frozen=True)
class BestBoundary:
    """The b with the largest S(b); support: the share of bootstrap samples in which it is this b.

    `s_ci` is that of this b alone and does not know that b was chosen: where support is small, read it with care.
    """

    b: int
    s: float
    s_ci: Interval | None
    support: float


@dataclass(frozen=True)
class TraceRecord:
    """One trace. accuracy: share of the `accuracy_n` prompts with a one-token target whose argmax P(L) is that target.

    target_prob: mean probability of that target at the model's end, over the same prompts. Both are null without
    targets. js_embedding is js(0), of the embedding output. boundary_marks: b at 33%, 50% and 66% of the depth.
    """

    donor: RecordedDonor
    probes: RecordedProbes
    settings: RecordedSettings
    accuracy: float | None
    accuracy_ci: Interval | None
    accuracy_n: int
    target_prob: float | None
    target_prob_ci: Interval | None
    js_embedding: float
    js_embedding_ci: Interval | None
    layers: tuple[LayerFigures, ...]
    task_particle: TaskParticle
    vulnerable_layer: VulnerableLayer | None
    boundary: tuple[BoundaryFigure, ...]
    boundary_marks: dict[str, int]
    best_boundary: BestBoundary | None

    def to_json(self) -> dict[str, Any]:
        """The record as the plain JSON object of the contract, `schema` first."""
        return {"schema": SCHEMA, **to_jsonable(self)}
