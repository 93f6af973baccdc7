"""What a trace measures on each prompt: every figure of its record is computed from these readings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import NDArray

from hybridizer.core.bootstrap import Clusters


@dataclass(frozen=True)
class Reading:
    """One prompt. Sequences run over the L+1 states: the embedding output, then the outputs of layers 0..L-1.

    Divergences are in bits. `target` is t*, the most probable next token of the model, `target_prob` its probability
    through the lens at each state. `js` is the context perturbation, `layer_js` the layer perturbation, None if not
    measured; `js_second` is `js` with the second mask token. `tuned_js`, `tuned_js_second` and `tuned_kl` are those of
    the tuned lens where it is read besides the plain one. `kl` is KL(P(L) || P(s)) of each state s, `kl_uniform`
    KL(P(L) || uniform). `hit` and `answer_prob` are about the probe's own target: whether t* is it, and its probability
    at the model's end; None without one.
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
    js_second: tuple[float, ...] | None = None
    tuned_js: tuple[float, ...] | None = None
    tuned_js_second: tuple[float, ...] | None = None
    tuned_kl: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Readings:
    """Readings in the order of the probes, over the L+1 states.

    `hit` and `answer_prob` are NaN where a prompt has no answer. `clusters` numbers the clusters of prompts that are
    not independent, None where all are (core/bootstrap.py). See sensitivity.py for how states are counted.
    """

    target_prob: Float64[np.ndarray, "prompts states"]
    js: Float64[np.ndarray, "prompts states"] | None
    layer_js: Float64[np.ndarray, "prompts states"] | None
    kl: Float64[np.ndarray, "prompts states"]
    kl_uniform: Float64[np.ndarray, "prompts"]
    hit: Float64[np.ndarray, "prompts"]
    answer_prob: Float64[np.ndarray, "prompts"]
    js_second: Float64[np.ndarray, "prompts states"] | None = None
    tuned_js: Float64[np.ndarray, "prompts states"] | None = None
    tuned_js_second: Float64[np.ndarray, "prompts states"] | None = None
    tuned_kl: Float64[np.ndarray, "prompts states"] | None = None
    clusters: Int64[np.ndarray, "prompts"] | None = None

    @property
    def num_prompts(self) -> int:
        """n, the number of prompts."""
        return len(self.target_prob)

    @property
    def num_layers(self) -> int:
        """L, the number of layers."""
        return int(self.target_prob.shape[1]) - 1


class ReadingsTable:
    """The readings of `num_prompts` prompts, filled in any order: 4 bytes per number, where a Reading takes 32.

    Nothing is lost: all that is measured is float32 (divergence.py).
    """

    def __init__(self, num_prompts: int) -> None:
        """An empty table."""
        self._columns: dict[str, NDArray[np.float32]] = {}
        self._filled = np.zeros(num_prompts, dtype=np.bool_)

    @property
    def finished(self) -> frozenset[int]:
        """The indices of the prompts that have been read."""
        return frozenset(np.flatnonzero(self._filled).tolist())

    def add(self, readings: Sequence[Reading]) -> None:
        """Fill the rows of these prompts, each of which must be empty."""
        for reading in readings:
            assert not self._filled[reading.index], f"prompt {reading.index} was read twice"
            self._filled[reading.index] = True
            for name in _COLUMNS:
                value = getattr(reading, name)
                if value is not None:
                    self._column(name, np.shape(value))[reading.index] = value

    def stack(self, clusters: Clusters | None = None) -> Readings:
        """The table, emptied, as Readings of prompts in these clusters. Every prompt must have been read."""
        assert self._filled.all(), "a prompt was never read"
        unknown = np.full(len(self._filled), np.nan)
        optional: dict[str, Any] = {"js": None, "layer_js": None, "hit": unknown, "answer_prob": unknown}
        for name in list(self._columns):  # one at a time, so that both forms of a column exist of one alone
            optional[name] = self._columns.pop(name).astype(np.float64)
        return Readings(**optional, clusters=clusters)

    def _column(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        if name not in self._columns:
            self._columns[name] = np.full((len(self._filled), *shape), np.nan, np.float32)
        return self._columns[name]


_COLUMNS = tuple(field.name for field in fields(Readings) if field.name != "clusters")
