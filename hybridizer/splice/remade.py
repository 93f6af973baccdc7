"""Makes the tensors of a native hybrid again, from its plan, its donors and its seeds, and compares them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path

from hybridizer.checkpoint.hashing import hash_chunks, hash_tensor, read_tensor_chunks
from hybridizer.checkpoint.header import TensorEntry
from hybridizer.checkpoint.layout import Source as Bytes
from hybridizer.checkpoint.reader import Checkpoint
from hybridizer.core.errors import Problem, VerificationError
from hybridizer.core.progress import Monitor
from hybridizer.donors.donor import Donor
from hybridizer.plan.manifest import FILE_NAME, Manifest
from hybridizer.plan.origin import ZERO, Copy, Derived, Fitted, Fresh, Join
from hybridizer.plan.plan import Plan, PlannedTensor
from hybridizer.splice.fitted import fitted_tensors, read_fitted
from hybridizer.splice.native import native_maker
from hybridizer.splice.verify import Proof

_LISTED = 8
_DRAWN_BY = ("torch", "transformers")  # other versions may draw other numbers from one seed


def check_made(
    folder: Path,
    manifest: Manifest,
    checkpoint: Checkpoint,
    plan: Plan | None,
    find_donor: Callable[[str], Donor | None],
    monitor: Monitor,
    *,
    load: bool,
) -> Iterable[Proof]:
    """A proof for a native hybrid whose plan is at hand: its tensors are those that the plan makes; none for others.

    Copied tensors are compared elsewhere, and trained ones nowhere. Without `load`, which imports no torch, only what
    is joined and what is zero is compared; new tensors only under the versions that drew them, fitted ones only with
    the fit in the cache. Raises VerificationError with the tensors that differ.
    """
    if plan is None or plan.executor != "native" or manifest.plan_hash not in (plan.hash, plan.spliced.hash):
        return
    donors = {name: donor for name in plan.donors if (donor := find_donor(name)) is not None}
    at_hand = {n for n, donor in donors.items() if donor.fingerprint == manifest.donors[n].fingerprint}
    trained = frozenset(manifest.training["trained"] if manifest.training else ())
    same_versions = all(manifest.tools.get(tool) == metadata.version(tool) for tool in _DRAWN_BY)
    has_fit = bool(fitted_tensors(plan)) and read_fitted(plan) is not None

    def is_compared(tensor: PlannedTensor) -> bool:
        source = tensor.source
        if tensor.name in trained or isinstance(source, Copy):
            return False
        if any(origin.donor not in at_hand for origin in source.origins):
            return False
        if isinstance(source, Fresh) and source.init == ZERO:
            return True
        if isinstance(source, Fresh | Derived):
            return load and same_versions
        if isinstance(source, Fitted):
            return has_fit
        return load or (isinstance(source, Join) and not source.converted)

    chosen = [tensor for tensor in plan.tensors if is_compared(tensor)]
    make, problems = native_maker(plan), []
    with monitor.task("make again", sum(checkpoint.tensors[t.name].num_bytes for t in chosen), "bytes") as advance:
        for tensor in chosen:
            entry = checkpoint.tensors[tensor.name]
            if hash_tensor(entry) != f"sha256:{hash_chunks(_chunks(make(plan, tensor, donors)))}":
                what = f"tensor '{tensor.name}' is not what '{tensor.source.describe(plan.blends)}' gives."
                problems.append(Problem(str(folder / FILE_NAME), what, "Build the model again."))
            advance(entry.num_bytes)
    if problems:
        raise VerificationError(*problems[:_LISTED])
    yield Proof("made again", f"{len(chosen)} tensors that are not copies are what the plan makes, byte for byte")


def _chunks(source: Bytes) -> Iterable[memoryview]:
    if callable(source):
        yield from (memoryview(chunk) for chunk in source())
        return
    for entry in (source,) if isinstance(source, TensorEntry) else source:
        yield from read_tensor_chunks(entry)
