"""Executors turn a plan into tensors: one for each kind of hybrid, by the name in the plan.

To add one: write its function in a module of its own here, add it to EXECUTORS, let a planner name it, and test it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol

from hybridizer.checkpoint.header import TensorEntry
from hybridizer.checkpoint.writer import WrittenCheckpoint
from hybridizer.core.errors import DidYouMean, PlanError, Problem
from hybridizer.core.progress import Monitor
from hybridizer.donors.donor import Donor
from hybridizer.plan.plan import Plan
from hybridizer.splice.copy import splice
from hybridizer.splice.native import splice_native


class Executor(Protocol):
    """Writes the plan's tensors into a folder. Raises PlanError for a source of a kind that it cannot make.

    `trained` holds tensors of the output, by name, that replace those of the plan.
    """

    def __call__(
        self,
        plan: Plan,
        donors: Mapping[str, Donor],
        folder: Path,
        monitor: Monitor,
        trained: Mapping[str, TensorEntry] | None = None,
    ) -> WrittenCheckpoint: ...


EXECUTORS: Final[Mapping[str, Executor]] = MappingProxyType({"copy": splice, "native": splice_native})


def find_executor(plan: Plan) -> Executor:
    """The executor that `plan` names. Raises PlanError for an unknown name."""
    if plan.executor not in EXECUTORS:
        what = f"no executor '{plan.executor}', which this plan names."
        raise PlanError(Problem(f"plan '{plan.name}'", what, DidYouMean(plan.executor, EXECUTORS)))
    return EXECUTORS[plan.executor]
