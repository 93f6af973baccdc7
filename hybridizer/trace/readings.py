"""What a trace measures on each prompt: every figure of its record is computed from these readings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from hybridizer.core.bootstrap import Array


@dataclass(frozen=True)
class Reading:
    """One prompt. Sequences run over the L+1 states: the embedding output, then the outputs of layers 0..L-1.

    Divergences are in bits. `target` is t*, the most probable next token of the model, `target_prob` its probability
    through the lens at each state. `js` is the context perturbation, `layer_js` the layer perturbation, None if not
    measured. `kl` is KL(P(L) || P(s)) of each state s, `kl_uniform` KL(P(L) || uniform). `hit` and `answer_prob` are
    about the probe's own target: whether t* is it, and its probability at the model's end; None without one.
    """

    index: int
    target: int
    target_prob: tuple[float, ...]
    js: tuple[float, ...] | None
    layer_js: tuple[float, ...] | None
    kl: tuple[float, ...]
    kl_uniform: float
    hit: bool | None
    answer_prob: float | None


@dataclass(frozen=True)
class Readings:
    """Readings in the order of the probes, over the L+1 states.

    `hit` and `answer_prob` are NaN where a prompt has no answer. See sensitivity.py for how states are counted.
    """

    target_prob: Float64[np.ndarray, "prompts states"]
    js: Float64[np.ndarray, "prompts states"] | None
    layer_js: Float64[np.ndarray, "prompts states"] | None
    kl: Float64[np.ndarray, "prompts states"]
    kl_uniform: Float64[np.ndarray, "prompts"]
    hit: Float64[np.ndarray, "prompts"]
    answer_prob: Float64[np.ndarray, "prompts"]

    @property
    def num_prompts(self) -> int:
        """n, the number of prompts."""
        return len(self.target_prob)

    @property
    def num_layers(self) -> int:
        """L, the number of layers."""
        return int(self.target_prob.shape[1]) - 1


def stack_readings(readings: Sequence[Reading]) -> Readings:
    """The readings of all prompts, sorted by index, as arrays."""
    ordered = sorted(readings, key=lambda reading: reading.index)
    assert [reading.index for reading in ordered] == list(range(len(ordered))), "a prompt was read twice or never"

    def column(name: str) -> Array:
        return np.array([getattr(reading, name) for reading in ordered], dtype=np.float64)  # None becomes NaN

    return Readings(
        target_prob=column("target_prob"),
        js=None if ordered[0].js is None else column("js"),
        layer_js=None if ordered[0].layer_js is None else column("layer_js"),
        kl=column("kl"),
        kl_uniform=column("kl_uniform"),
        hit=column("hit"),
        answer_prob=column("answer_prob"),
    )
