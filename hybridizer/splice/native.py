"""Plan of another family's model -> safetensors: a donor's tensors moved into its places, and new ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from hybridizer.checkpoint.header import TensorEntry
from hybridizer.checkpoint.layout import Source as Bytes
from hybridizer.checkpoint.writer import WrittenCheckpoint
from hybridizer.core.errors import PlanError, Problem
from hybridizer.core.progress import Monitor
from hybridizer.donors.donor import Donor
from hybridizer.plan.origin import ZERO, Affine, Derived, Fitted, Fresh, Join, Spread
from hybridizer.plan.plan import Plan, PlannedTensor
from hybridizer.splice.copy import Make, chunks_in_dtype, find_entries, in_dtype, make_copied, write_planned
from hybridizer.splice.fitted import mixer_shapes, place_of, read_fitted

if TYPE_CHECKING:
    from torch import Tensor


def splice_native(
    plan: Plan,
    donors: Mapping[str, Donor],
    folder: Path,
    monitor: Monitor,
    trained: Mapping[str, TensorEntry] | None = None,
) -> WrittenCheckpoint:
    """Write the plan's tensors into the existing `folder`, which the caller publishes; `trained` as in `splice`.

    Copied and joined tensors are byte ranges of the donors' files. New tensors are made a layer at a time, by the
    family's own initialiser: memory stays that of two layers. Raises PlanError for a source of another kind, before
    anything is written.
    """
    return write_planned(plan, donors, folder, monitor, trained, native_maker(plan))


def native_maker(plan: Plan) -> Make:
    """What gives the bytes of each tensor of `plan`; one new layer is kept between calls, and what was fitted."""
    layers, derived, fitted = _FreshLayers(plan), _DerivedMixers(plan), cache(lambda: _read_fitted(plan))

    def make(plan: Plan, tensor: PlannedTensor, donors: Mapping[str, Donor]) -> Bytes:
        match tensor.source:
            case Fresh(init=init, seed=seed) if init != ZERO:
                return lambda: layers.read(tensor, seed)
            case Derived():
                return lambda: derived.read(tensor, donors)
            case Fitted():
                return in_dtype(fitted()[tensor.name], tensor.dtype)
            case Join() | Affine() | Spread():
                return _moved(tensor, donors)
            case _:
                return make_copied(plan, tensor, donors)

    return make


def _moved(tensor: PlannedTensor, donors: Mapping[str, Donor]) -> Bytes:
    """The bytes of a tensor that is joined, scaled or spread."""
    source, entries = tensor.source, find_entries(tensor, donors)
    if isinstance(source, Affine):
        return lambda: affine_chunks(entries[0], tensor.dtype, source.factor, source.shift)
    if isinstance(source, Spread):
        return lambda: _spread(entries[0], tensor, source.rows)
    return _joined(entries, tensor.dtype)


def _read_fitted(plan: Plan) -> Mapping[str, TensorEntry]:
    fitted = read_fitted(plan)
    if fitted is None:
        what = "its mixers were not fitted, or the cache was emptied since."
        raise PlanError(Problem(f"plan '{plan.name}'", what, "Build it again from its recipe or plan.json."))
    return fitted


def _joined(entries: Sequence[TensorEntry], dtype: str) -> tuple[TensorEntry, ...] | Callable[[], Iterable[memoryview]]:
    if all(entry.dtype == dtype for entry in entries):
        return tuple(entries)
    return lambda: (chunk for entry in entries for chunk in chunks_in_dtype(entry, dtype))


def affine_chunks(entry: TensorEntry, dtype: str, factor: float, shift: float) -> Iterator[memoryview]:
    """The bytes of a tensor times `factor` plus `shift`, computed in float32, a few megabytes at a time."""
    import torch

    from hybridizer.models.tensors import converted_chunks, tensor_bytes, torch_dtype

    for chunk in converted_chunks(entry, "F32"):
        values = torch.frombuffer(bytearray(chunk), dtype=torch.float32) * factor + shift
        yield tensor_bytes(values.to(torch_dtype(dtype)))


def _spread(entry: TensorEntry, tensor: PlannedTensor, rows: int) -> Iterator[memoryview]:
    """The bytes of `entry`, each group of `rows` rows followed by as many bytes of zeros."""
    group = entry.num_bytes // entry.shape[0] * rows
    for begin in range(entry.begin, entry.end, group):
        shape = (rows, *entry.shape[1:])
        piece = replace(entry, shape=shape, begin=begin, end=begin + group)
        whole = b"".join(chunks_in_dtype(piece, tensor.dtype))
        yield memoryview(whole)
        yield memoryview(bytes(len(whole)))


class _FreshLayers:
    """New layers of a plan, made when the first of their tensors is written; the last one is kept."""

    def __init__(self, plan: Plan) -> None:
        self._config = plan.config
        self._new: dict[str, dict[str, tuple[int, ...]]] = {}
        self._with_donor = set[str]()
        for tensor in plan.tensors:
            layer, suffix = place_of(tensor)
            if isinstance(tensor.source, Fresh):
                self._new.setdefault(layer, {})[suffix] = tensor.shape
            else:
                self._with_donor.add(layer)
        self._made: tuple[tuple[str, int], dict[str, Tensor]] | None = None

    def read(self, tensor: PlannedTensor, seed: int) -> Iterator[memoryview]:
        """The bytes of a planned tensor of a new layer."""
        from hybridizer.models.fresh import fresh_layer
        from hybridizer.models.tensors import tensor_bytes, torch_dtype

        layer, suffix = place_of(tensor)
        if self._made is None or self._made[0] != (layer, seed):
            mixer_only = layer in self._with_donor
            found = fresh_layer(self._config, int(layer), seed, self._new[layer], mixer_only=mixer_only)
            self._made = ((layer, seed), found)
        made = self._made[1][suffix]
        assert tuple(made.shape) == tensor.shape, (tensor, made.shape)
        yield tensor_bytes(made.to(torch_dtype(tensor.dtype)))


class _DerivedMixers:
    """Mixers that are derived from the attention they replace; the last one is kept."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._made: tuple[str, dict[str, Tensor]] | None = None

    def read(self, tensor: PlannedTensor, donors: Mapping[str, Donor]) -> Iterator[memoryview]:
        """The bytes of a planned tensor of such a mixer."""
        from hybridizer.mixers.make import make_mixer_tensors
        from hybridizer.models.tensors import read_tensor, tensor_bytes, torch_dtype

        layer, suffix = place_of(tensor)
        source = tensor.source
        assert isinstance(source, Derived)
        if self._made is None or self._made[0] != layer:
            entries = find_entries(tensor, donors)
            attention = {entry.name: read_tensor(entry).float() for entry in entries}
            shape, heads = mixer_shapes(self._plan)
            seed = source.seed + int(layer)  # as a fit draws it
            made = make_mixer_tensors(source.mixer, "attention", shape, seed, attention, heads)
            self._made = (layer, made)
        yield tensor_bytes(self._made[1][suffix].to(torch_dtype(tensor.dtype)))
