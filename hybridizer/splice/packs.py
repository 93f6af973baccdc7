"""Shallow packs: what a training changed in a model, alone, and the model again from its base and a pack.

A pack is a folder: `pack.safetensors` with every tensor that differs from the base's, `headers/` with the headers of
the model's weight files as they are, `files/` with the small files that the base does not have, and `pack.json`,
written last, with the base's fingerprint and the sha256 of every file of the model. Base and pack together give the
model's folder bit for bit. Models that were trained from one base with the same frozen layers need the base once and a
pack each.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from hybridizer.checkpoint.copy import write_all
from hybridizer.checkpoint.hashing import hash_chunks, hash_file, hash_files, hash_tensor, same_bytes
from hybridizer.checkpoint.header import LENGTH_BYTES, MAX_HEADER_BYTES, TensorEntry, parse_header, read_header
from hybridizer.checkpoint.layout import OutputTensor
from hybridizer.checkpoint.publish import begin_output, check_free_space
from hybridizer.checkpoint.reader import open_checkpoint
from hybridizer.checkpoint.writer import write_shard, write_tensors
from hybridizer.core.errors import CheckpointError, DonorError, InputError, Problem, VerificationError
from hybridizer.core.progress import Monitor
from hybridizer.core.records import read_record, to_jsonable, write_json
from hybridizer.donors.donor import Donor
from hybridizer.plan.manifest import FILE_NAME, read_manifest
from hybridizer.splice.copy import in_dtype

SCHEMA = "hybridizer.pack/1"
RECORD_NAME, TENSORS_NAME, HEADERS, FILES = "pack.json", "pack.safetensors", "headers", "files"
FLOATING: Final = frozenset({"F64", "F32", "F16", "BF16"})
_AGAIN: Final = "Make the pack again from the model."
_BUILD: Final = "Build the model again."


@dataclass(frozen=True)
class Pack:
    """What a pack holds and needs.

    `base` is the fingerprint of the base and `base_reference` what it was called; `files` maps every file of the model
    to its sha256, `weights` those that hold tensors to their sizes in bytes. `tensors` are the names in
    `pack.safetensors`, whose sha256 is `tensors_sha256`; all other tensors are the base's of the same name, converted
    where the model has another dtype.
    """

    model: str
    base: str
    base_reference: str
    files: Mapping[str, str]
    weights: Mapping[str, int]
    tensors: tuple[str, ...]
    tensors_sha256: str
    pack_bytes: int
    shared_bytes: int


def make_pack(model: Path, base: Donor, out: Path, monitor: Monitor) -> Pack:
    """Write the pack of the finished model in the folder `model` on `base` to the new folder `out`.

    `base` is open with its fingerprint. Raises VerificationError for a folder without a manifest or one whose files
    differ from it, DonorError for a base that shares no tensor with the model, OutputError if `out` is occupied.
    """
    assert base.fingerprint is not None, "a base is pinned by its fingerprint"
    manifest = read_manifest(model)
    checkpoint = open_checkpoint(model)
    num_bytes = sum(entry.num_bytes for entry in checkpoint.tensors.values())
    with monitor.task("compare with the base", num_bytes, "bytes") as advance:
        changed = _find_changed(checkpoint.tensors, base.checkpoint.tensors, advance)
    packed = sum(entry.num_bytes for entry in changed)
    if packed == num_bytes:
        what = f"no tensor of {model} is equal to one of this base."
        raise DonorError(Problem(base.reference, what, "Give the model that the training started from."))
    weights = {path.name: path.stat().st_size for path in checkpoint.files}
    files = {**manifest.files, FILE_NAME: hash_file(model / FILE_NAME)}
    _check_files(model, files, monitor)
    with begin_output(out) as folder:
        check_free_space(folder, packed)
        (folder / HEADERS).mkdir()
        for name in weights:
            (folder / HEADERS / name).write_bytes(_raw_header(model / name))
        with monitor.task("write the pack", packed, "bytes") as advance, (folder / TENSORS_NAME).open("xb") as file:
            tensors = [OutputTensor(entry.name, entry.dtype, entry.shape, entry) for entry in changed]
            write_shard(file.fileno(), tensors, {"format": "pt"}, advance)
        for name in sorted(files.keys() - weights.keys()):
            if not _base_has(base, name, files[name]):
                _copy(model / name, folder / FILES / name)
        pack = Pack(
            model=manifest.name,
            base=base.fingerprint,
            base_reference=base.reference,
            files=files,
            weights=weights,
            tensors=tuple(entry.name for entry in changed),
            tensors_sha256=hash_file(folder / TENSORS_NAME),
            pack_bytes=packed,
            shared_bytes=num_bytes - packed,
        )
        write_json(folder / RECORD_NAME, {"schema": SCHEMA, **to_jsonable(pack)})
    return pack


def read_pack(folder: Path) -> Pack:
    """The record of the pack in `folder`. Raises CheckpointError for one that is missing, damaged or contradictory."""
    path = folder / RECORD_NAME
    if not path.is_file():
        what = f"there is no {RECORD_NAME}: this folder is not a finished pack."
        raise CheckpointError(Problem(str(folder), what, "Give the folder that `hybridize pack` wrote."))
    pack = read_record(path, Pack, SCHEMA, str(path), _AGAIN)
    for name in (*pack.files, *pack.weights):
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or name not in pack.files:
            raise CheckpointError(Problem(str(path), f"it names the file {name!r}, which no model holds.", _AGAIN))
    return pack


def graft(base: Donor, folder: Path, out: Path, monitor: Monitor, *, replace: bool = False) -> Pack:
    """Write the model that `base`, open with its fingerprint, and the pack in `folder` make, to `out`; its pack.

    The folder appears under its name after the sha256 of every file was compared with the pack's record. Raises
    DonorError for another base than the pack was made on, CheckpointError for a damaged pack, VerificationError for a
    file that does not come out as recorded, OutputError if `out` is occupied.
    """
    pack = read_pack(folder)
    check_base(base, pack)
    raw = {name: _read_header(folder / HEADERS / name) for name in pack.weights}
    sources = locate_tensors(base, folder, pack)
    total = sum(tensor.num_bytes for tensors in sources.values() for tensor in tensors)
    with begin_output(out, replace=replace) as partial:
        check_free_space(partial, total)
        with monitor.task("graft", total, "bytes") as advance:
            for name, tensors in sources.items():
                _write_weights(partial / name, raw[name], tensors, advance)
        for name in sorted(pack.files.keys() - pack.weights.keys()):
            stored = folder / FILES / name
            _copy(stored if stored.is_file() else _base_file(base, name), partial / name)
        try:
            _check_files(partial, pack.files, monitor)
        except VerificationError as error:
            damaged = hash_file(folder / TENSORS_NAME) != pack.tensors_sha256
            found = f"the pack's {TENSORS_NAME} is damaged" if damaged else "pack or base changed"
            problems = (Problem(str(out / p.where), p.what, f"{found}; nothing was written.") for p in error.problems)
            raise VerificationError(*problems) from None
    return pack


def check_base(base: Donor, pack: Pack) -> None:
    """Return if `pack` was made on `base`, which is open with its fingerprint. Raises DonorError for another one."""
    if base.fingerprint != pack.base:
        what = f"the pack is for '{pack.base_reference}', {pack.base}; this base is {base.fingerprint}."
        raise DonorError(Problem(base.reference, what, "Give the base that the pack was made on."))


def locate_tensors(base: Donor, folder: Path, pack: Pack) -> dict[str, list[OutputTensor]]:
    """The tensors of each weight file of the model, from `base` or from the pack, in the order of their bytes.

    Raises CheckpointError for damaged headers, InputError for tensors that neither side has in that dtype and shape.
    """
    packed = read_header(folder / TENSORS_NAME).tensors
    found = {}
    for name, num_bytes in pack.weights.items():
        path = folder / HEADERS / name
        header = parse_header(path, _read_header(path)[LENGTH_BYTES:], num_bytes).tensors
        found[name] = _locate(header, packed, base, folder)
    return found


def _find_changed(
    ours: Mapping[str, TensorEntry], theirs: Mapping[str, TensorEntry], advance: Callable[[int], None]
) -> list[TensorEntry]:
    changed = []
    for name, entry in ours.items():
        if name not in theirs or not _is_made_from(entry, theirs[name]):
            changed.append(entry)
        advance(entry.num_bytes)
    return sorted(changed, key=lambda entry: (entry.file.name, entry.begin))


def _is_made_from(entry: TensorEntry, base: TensorEntry) -> bool:
    """Whether the bytes of `entry` are those of `base`, converted where the dtypes differ."""
    if entry.dtype == base.dtype or not _converts(base, entry):
        return same_bytes(entry, base)
    from hybridizer.models.tensors import converted_chunks

    return hash_tensor(entry) == f"sha256:{hash_chunks(converted_chunks(base, entry.dtype))}"


def _converts(entry: TensorEntry, wanted: TensorEntry) -> bool:
    """Whether a tensor of the base can be converted to the dtype that the model has."""
    return entry.shape == wanted.shape and {entry.dtype, wanted.dtype} <= FLOATING


def _raw_header(path: Path) -> bytes:
    """The first bytes of a safetensors file, up to its data."""
    with path.open("rb") as file:
        length = file.read(LENGTH_BYTES)
        return length + file.read(int.from_bytes(length, "little"))


def _read_header(path: Path) -> bytes:
    """The bytes of a header that a pack keeps. Raises CheckpointError where there is none, or not a whole one."""
    if not path.is_file() or path.stat().st_size > MAX_HEADER_BYTES + LENGTH_BYTES:
        raise CheckpointError(Problem(str(path), "the header of a weight file was expected here.", _AGAIN))
    raw = path.read_bytes()
    if len(raw) != LENGTH_BYTES + int.from_bytes(raw[:LENGTH_BYTES], "little"):
        raise CheckpointError(Problem(str(path), "it does not have the length that it announces.", _AGAIN))
    return raw


def _locate(
    header: Mapping[str, TensorEntry], packed: Mapping[str, TensorEntry], base: Donor, folder: Path
) -> list[OutputTensor]:
    """The tensors of `header` with the source of each, in the same order. Raises InputError where one has none."""
    found, problems = [], []
    for name, wanted in header.items():
        entry = packed.get(name) or base.checkpoint.tensors.get(name)
        is_same = entry is not None and (entry.dtype, entry.shape) == (wanted.dtype, wanted.shape)
        if entry is not None and (is_same or (name not in packed and _converts(entry, wanted))):
            found.append(OutputTensor(name, wanted.dtype, wanted.shape, in_dtype(entry, wanted.dtype)))
        else:
            have = "nothing of that name" if entry is None else f"{entry.dtype} of shape {list(entry.shape)}"
            what = f"the model has {wanted.dtype} of shape {list(wanted.shape)}, pack and base have {have}."
            problems.append(Problem(f"{folder}: tensor {name}", what, _AGAIN))
    if problems:
        raise InputError(*problems[:20])
    return found


def _write_weights(path: Path, header: bytes, tensors: list[OutputTensor], advance: Callable[[int], None]) -> None:
    with path.open("xb", buffering=0) as file:
        write_all(file.fileno(), header)
        write_tensors(file.fileno(), tensors, advance)
        os.fchmod(file.fileno(), 0o644)


def _base_file(base: Donor, name: str) -> Path:
    return base.tokenizer_files.get(name, base.folder / name)


def _base_has(base: Donor, name: str, sha256: str) -> bool:
    path = _base_file(base, name)
    return path.is_file() and hash_file(path) == sha256


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o644)


def _check_files(folder: Path, files: Mapping[str, str], monitor: Monitor) -> None:
    """Raise VerificationError for every file of `folder` whose sha256 is not the one in `files`."""
    present = {name: folder / name for name in sorted(files) if (folder / name).is_file()}
    lost = [Problem(name, "it is missing.", _BUILD) for name in sorted(files.keys() - present.keys())]
    num_bytes = sum(path.stat().st_size for path in present.values())
    changed = []
    with monitor.task("verify", num_bytes, "bytes") as advance:
        for name, found in hash_files(present):
            if found != files[name]:
                changed.append(Problem(name, "its content is not what the manifest records.", _BUILD))
            advance(present[name].stat().st_size)
    if problems := [*lost, *changed]:
        raise VerificationError(*problems)
