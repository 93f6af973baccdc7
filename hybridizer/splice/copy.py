"""Plan -> safetensors: copies byte ranges, and blends or converts only the tensors that are planned so."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, TypeAlias

from hybridizer.checkpoint.dtypes import DTYPE_BITS, FLOATING
from hybridizer.checkpoint.hashing import read_tensor_chunks
from hybridizer.checkpoint.header import TensorEntry
from hybridizer.checkpoint.layout import OutputTensor, required_bytes
from hybridizer.checkpoint.layout import Source as Bytes
from hybridizer.checkpoint.publish import check_free_space
from hybridizer.checkpoint.writer import WrittenCheckpoint, write_checkpoint
from hybridizer.core.errors import PlanError, Problem
from hybridizer.core.progress import Monitor
from hybridizer.donors.donor import Donor
from hybridizer.plan.origin import ZERO, BlendUse, Convert, Copy, Fresh, Merge
from hybridizer.plan.plan import Plan, PlannedTensor

PLAN_KEY: Final = "hybridizer_plan"  # in the metadata of every weight file: the hash of the plan it was written by
_CHUNK_BYTES: Final = 4 << 20
_RECORD_BYTES: Final = 1024  # of the manifest, for each tensor and each layer


Make: TypeAlias = Callable[[Plan, PlannedTensor, Mapping[str, Donor]], Bytes]


def splice(
    plan: Plan,
    donors: Mapping[str, Donor],
    folder: Path,
    monitor: Monitor,
    trained: Mapping[str, TensorEntry] | None = None,
) -> WrittenCheckpoint:
    """Write the plan's tensors into the existing `folder`, which the caller publishes.

    Those in `trained` (by their name in the output) are taken from there and rounded to the plan's precision.
    Copied tensors are bit-exact. Memory stays constant, except for a blend, which holds one tensor of each source.
    Imports no torch unless something is blended or converted. Raises PlanError for a source other than Copy, Convert,
    Merge and Fresh zeros, before anything is written, and OutputError when the disk is full.
    """
    return write_planned(plan, donors, folder, monitor, trained, make_copied)


def write_planned(
    plan: Plan,
    donors: Mapping[str, Donor],
    folder: Path,
    monitor: Monitor,
    trained: Mapping[str, TensorEntry] | None,
    make: Make,
) -> WrittenCheckpoint:
    """Write the plan's tensors into `folder`: those in `trained` from there, all others as `make` gives their bytes.

    `make` is called for every other tensor before anything is written. Raises OutputError when the disk is full.
    """
    tensors = [_output_tensor(plan, tensor, donors, trained or {}, make) for tensor in plan.tensors]
    check_free_space(folder, required_bytes(tensors) + _companion_bytes(plan, donors[plan.host]))
    with monitor.task("splice", sum(tensor.num_bytes for tensor in tensors), "bytes") as advance:
        return write_checkpoint(
            folder,
            tensors,
            max_shard_bytes=plan.max_shard_bytes,
            metadata={"format": "pt", PLAN_KEY: plan.hash},
            on_progress=advance,
        )


def _companion_bytes(plan: Plan, host: Donor) -> int:
    """At least what tokenizer files, config, card and manifest take beside the weights."""
    records = _RECORD_BYTES * (len(plan.tensors) + len(plan.layers) + 64)
    return records + len(repr(plan.config)) + sum(path.stat().st_size for path in host.tokenizer_files.values())


def _output_tensor(
    plan: Plan, tensor: PlannedTensor, donors: Mapping[str, Donor], trained: Mapping[str, TensorEntry], make: Make
) -> OutputTensor:
    if tensor.name in trained:
        found = trained[tensor.name]
        assert found.shape == tensor.shape, (tensor, found.shape)
        return OutputTensor(tensor.name, tensor.dtype, tensor.shape, in_dtype(found, tensor.dtype))
    return OutputTensor(tensor.name, tensor.dtype, tensor.shape, make(plan, tensor, donors))


def make_copied(plan: Plan, tensor: PlannedTensor, donors: Mapping[str, Donor]) -> Bytes:
    """The bytes of a tensor that is copied, converted or merged. Raises PlanError for any other source."""
    entries = find_entries(tensor, donors)
    match tensor.source:
        case Copy() | Convert():
            return in_dtype(entries[0], tensor.dtype)
        case Merge(blend=number):
            return lambda: _blended(plan.blends[number], tensor, entries, plan.seed)
        case Fresh(init=init) if init == ZERO and tensor.dtype in FLOATING:
            return lambda: _zeros(math.prod(tensor.shape) * DTYPE_BITS[tensor.dtype] // 8)
        case other:
            what = f"the executor '{plan.executor}' cannot make it: {other.describe(plan.blends)}."
            raise PlanError(Problem(f"tensor '{tensor.name}'", what, "Use an executor that can."))


def find_entries(tensor: PlannedTensor, donors: Mapping[str, Donor]) -> list[TensorEntry]:
    """The donor tensors that `tensor` is made from."""
    return [donors[origin.donor].checkpoint.tensors[origin.tensor] for origin in tensor.source.origins]


def in_dtype(entry: TensorEntry, dtype: str) -> TensorEntry | Callable[[], Iterable[memoryview]]:
    """The bytes of a tensor as they are, or rounded to another dtype."""
    return entry if entry.dtype == dtype else lambda: chunks_in_dtype(entry, dtype)


def chunks_in_dtype(entry: TensorEntry, dtype: str) -> Iterator[memoryview]:
    """The bytes of a tensor, as they are or rounded to another dtype, piece by piece."""
    if entry.dtype == dtype:
        return read_tensor_chunks(entry)
    from hybridizer.models.tensors import converted_chunks

    return converted_chunks(entry, dtype)


def _zeros(num_bytes: int) -> Iterator[memoryview]:
    """Zeros of any floating dtype."""
    chunk = memoryview(bytes(min(num_bytes, _CHUNK_BYTES)))
    for start in range(0, num_bytes, _CHUNK_BYTES):
        yield chunk[: num_bytes - start]


def _blended(use: BlendUse, tensor: PlannedTensor, entries: list[TensorEntry], seed: int) -> Iterable[memoryview]:
    from hybridizer.models.tensors import read_tensor, tensor_bytes, torch_dtype
    from hybridizer.splice.blend import blend

    sources = [read_tensor(entry) for entry in entries]
    mixed = blend(use.method, sources, use.parameters, use.per_source, use.base, tensor.name, seed)
    yield tensor_bytes(mixed.to(torch_dtype(tensor.dtype)))
