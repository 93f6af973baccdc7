"""Merge methods of mergekit by name: the parameters of each, known without importing mergekit.

Source of the table: the specifications that mergekit 0.1.5 registers; a test compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hybridizer.core.errors import DidYouMean

REQUIRED = object()  # stands where a parameter has no default
# The range of a parameter, by its name. Outside it mergekit extrapolates (t), or the value is not a share. Weights,
# `lambda`, `r` and `alpha` may be any number: task arithmetic also subtracts.
RANGES: Mapping[str, tuple[float, float]] = {
    "t": (0, 1), "density": (0, 1), "gamma": (0, 1), "select_topk": (0, 1), "epsilon": (0, 1), "eps": (0, 1),
    "tol": (0, 1), "max_iter": (1, math.inf),
}  # fmt: skip


@dataclass(frozen=True)
class Method:
    """What a merge method takes.

    `base`: whether one source must, may or cannot be named as the base; `num_sources` counts the base too, and is
    (least, most or None). `shared` and `per_source` map parameter names to their default, or to REQUIRED; the base
    takes no per-source parameters. `ranges` map them to the least and the greatest value, both allowed.
    """

    base: Literal["required", "optional", "ignored"]
    num_sources: tuple[int, int | None]
    shared: Mapping[str, Any] = field(default_factory=dict)
    per_source: Mapping[str, Any] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=lambda: RANGES)


def _task_vectors(normalize: bool, rescale: bool, **per_source: float) -> Method:
    shared = {"int8_mask": False, "normalize": normalize, "rescale": rescale, "lambda": 1.0}
    return Method("required", (2, None), shared, {"weight": REQUIRED, "density": 1.0, **per_source})


METHODS: Mapping[str, Method] = {
    "linear": Method("ignored", (1, None), {"normalize": True}, {"weight": REQUIRED}),
    "slerp": Method("required", (2, 2), {"t": REQUIRED}),
    "nuslerp": Method("optional", (2, 3), {"nuslerp_row_wise": False, "nuslerp_flatten": True}, {"weight": REQUIRED}),
    "multislerp": Method("optional", (1, None), {"normalize_weights": True, "eps": 1e-8}, {"weight": REQUIRED}),
    "karcher": Method("ignored", (1, None), {"max_iter": 10, "tol": 1e-5}),
    "nearswap": Method("required", (2, 2), {"t": REQUIRED}, ranges={"t": (0, math.inf)}),  # a difference of weights
    "model_stock": Method("required", (3, None), {"filter_wise": False}),
    "arcee_fusion": Method("required", (2, 2)),
    "sce": Method("required", (2, None), {"int8_mask": False, "select_topk": 1.0}),
    "ram": Method("required", (2, None), {"epsilon": 1e-5}),
    "ramplus_tl": Method("required", (2, None), {"r": 0.1, "alpha": 0.2, "epsilon": 1e-5}),
    "task_arithmetic": _task_vectors(normalize=False, rescale=False),
    "ties": _task_vectors(normalize=True, rescale=False),
    "dare_ties": _task_vectors(normalize=False, rescale=True),
    "dare_linear": _task_vectors(normalize=False, rescale=True),
    "breadcrumbs": _task_vectors(normalize=False, rescale=False, gamma=0.01),
    "breadcrumbs_ties": _task_vectors(normalize=False, rescale=False, gamma=0.01),
    "della": _task_vectors(normalize=True, rescale=True, epsilon=0.15),
    "della_linear": _task_vectors(normalize=False, rescale=True, epsilon=0.15),
}


def check_blend(
    method: str, shared: Mapping[str, Any], per_source: Sequence[Mapping[str, Any]], base: int | None
) -> list[tuple[str, str]]:
    """Every problem of a blend by `method` with these parameters, as pairs (what is wrong, what to do).

    `per_source` has one mapping for each source, in order; `base` is the index of the base among them.
    """
    spec = METHODS.get(method)
    if spec is None:
        return [(f"'{method}' is not a merge method.", DidYouMean(method, METHODS))]
    least, most = spec.num_sources
    found: list[tuple[str, str]] = []
    if len(per_source) < least or (most is not None and len(per_source) > most):
        wanted = f"{least}" if most == least else f"{least} to {most}" if most else f"{least} or more"
        found.append((f"'{method}' blends {wanted} sources, {len(per_source)} given.", "Change the list of sources."))
    if spec.base == "required" and base is None:
        found.append((f"'{method}' needs a base, none given.", "Name one source's donor as `base`."))
    if spec.base == "ignored" and base is not None:
        found.append((f"'{method}' does not use a base.", "Remove `base`."))
    found += _check_values(f"'{method}'", shared, spec.shared, spec.ranges)
    for index, parameters in enumerate(per_source):
        if index == base and parameters:
            found.append((f"source {index} is the base of '{method}', which takes no parameters.", "Remove them."))
        elif index != base:
            found += _check_values(f"source {index} of '{method}'", parameters, spec.per_source, spec.ranges)
    return found


def _check_values(
    who: str, given: Mapping[str, Any], known: Mapping[str, Any], ranges: Mapping[str, tuple[float, float]]
) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = [
        (f"{who} has no parameter '{name}'.", DidYouMean(name, known)) for name in given if name not in known
    ]
    for name, default in known.items():
        if default is REQUIRED and name not in given:
            found.append((f"{who} needs the parameter '{name}'.", f"Add `{name}: <number>`."))
        elif name in given and not _fits(given[name], default):
            kind = "true or false" if isinstance(default, bool) else "a number"
            found.append((f"{who} takes {kind} as '{name}', found {given[name]!r}.", "Change the value."))
        elif name in given and (limits := _missed_range(given[name], ranges.get(name))):
            found.append((f"{who} takes {limits} as '{name}', found {given[name]!r}.", "Change the value."))
    return found


def _missed_range(value: float, limits: tuple[float, float] | None) -> str | None:
    """What was expected, if `value` is outside `limits` or not finite; None otherwise."""
    low, high = limits or (-math.inf, math.inf)
    if math.isfinite(value) and low <= value <= high:
        return None
    return "a finite number" if low == -math.inf else f"a number from {low} {f'to {high}' if high < math.inf else 'on'}"


def _fits(value: Any, default: Any) -> bool:
    if isinstance(default, bool):
        return isinstance(value, bool)
    return isinstance(value, (int, float)) and not isinstance(value, bool)
