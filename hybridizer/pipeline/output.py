"""A planned model written into a hidden folder, verified there, and only then given its name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from hybridizer.checkpoint.header import TensorEntry
from hybridizer.checkpoint.publish import begin_output
from hybridizer.core.errors import HybridizerError
from hybridizer.core.progress import Monitor
from hybridizer.donors.donor import Donor
from hybridizer.donors.open import check_unchanged
from hybridizer.plan.manifest import Manifest
from hybridizer.plan.plan import Plan
from hybridizer.splice.executors import find_executor
from hybridizer.splice.export import export
from hybridizer.splice.finite import check_finite
from hybridizer.splice.verify import Proof, verify
from hybridizer.train.training_record import TrainRecord


def write_model(
    plan: Plan,
    donors: Mapping[str, Donor],
    folder: Path,
    monitor: Monitor,
    *,
    replace: bool,
    load: bool,
    record: TrainRecord | None = None,
    trained: Mapping[str, TensorEntry] | None = None,
) -> tuple[Manifest, tuple[Proof, ...]]:
    """Write and verify the model of `plan`, then publish it as `folder`; its manifest and the checks that passed.

    Every tensor comes from its source or, if it is there, from `trained`, with the training's `record`. With `load`
    the model is also loaded, run and made to generate before it is published. When anything fails, the new
    folder is removed, and a model that was under the name before stays there unchanged.
    """
    execute = find_executor(plan)
    with begin_output(folder, replace=replace) as partial, _unpublished(partial, folder):
        written = execute(plan, donors, partial, monitor, trained)
        check_unchanged(donors)
        check_finite(plan, partial, frozenset(trained or ()))
        export(plan, donors, written, partial, record.values() if record else None)
        found = verify(partial, monitor, find_donor=donors.get, load=load, rehash=False)
    monitor.note(f"{'export' if record else 'splice'}: wrote {len(plan.tensors)} tensors to {folder}")
    return found


@contextmanager
def _unpublished(partial: Path, folder: Path) -> Iterator[None]:
    """Let errors about the hidden folder name the one that was to be published, and add that it was not published."""
    try:
        yield
    except HybridizerError as error:
        if not any(str(partial) in problem.where for problem in error.problems):
            raise
        kept = f"{folder} still holds the model that was there" if folder.is_dir() else "Nothing was published"
        raise type(error)(
            *(
                replace(
                    problem,
                    where=problem.where.replace(str(partial), str(folder)),
                    what=f"{problem.what} {kept}.",
                )
                for problem in error.problems
            )
        ) from error
