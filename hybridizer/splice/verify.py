"""Proves that a model folder agrees with its manifest, loads, and computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridizer.checkpoint.hashing import hash_files, hash_tensor
from hybridizer.checkpoint.reader import Checkpoint, open_checkpoint
from hybridizer.core.errors import CheckpointError, Problem, VerificationError
from hybridizer.core.progress import Monitor
from hybridizer.donors.donor import Donor
from hybridizer.donors.files import read_object
from hybridizer.families.reading import read_structure
from hybridizer.families.structure import Structure
from hybridizer.plan.identity import METHOD
from hybridizer.plan.manifest import FILE_NAME, Manifest, read_manifest
from hybridizer.recipe.layers import format_layers

PROMPT = "What is the capital of France?"
_NUM_PROBE_TOKENS = 24
# By how much two orders of summation may differ, as a share of the largest logit. A family that joins two matrices of
# its donor may sum in another order, if the kernels do; where it was tried the logits were equal bit for bit.
_ROUNDING = {"torch.float32": 1e-5, "torch.bfloat16": 2**-6, "torch.float16": 2**-9}


@dataclass(frozen=True)
class Proof:
    """One check that passed, with its result."""

    check: str
    found: str


def verify(
    folder: Path,
    monitor: Monitor,
    *,
    find_donor: Callable[[str], Donor | None],
    load: bool = True,
    rehash: bool = True,
    check_provenance: Callable[[Manifest, Checkpoint], Iterable[Proof]] | None = None,
) -> tuple[Manifest, tuple[Proof, ...]]:
    """The manifest of the model in `folder` and every check that passed.

    `find_donor` returns the donor of a name in the manifest, or None if it is not on this machine; it is called for an
    identity splice, whose logits are compared with the donor's bit for bit. `check_provenance` adds checks of what the
    manifest says about the model's origin. Without `load` no torch is imported, and checks that need the model in
    memory are left out. Without `rehash` files are not read again: for the run that has just written and hashed them.
    Raises VerificationError with what failed.
    """
    manifest = read_manifest(folder)
    proofs = [_check_files(folder, manifest, monitor, rehash)]
    try:
        checkpoint = open_checkpoint(folder)
        structure = _read_structure(folder, checkpoint)
    except CheckpointError as error:
        raise VerificationError(*error.problems) from error
    if manifest.training is not None:
        proofs.append(_check_frozen(folder, checkpoint, manifest.training))
    proofs.append(_check_tensors(folder, checkpoint, manifest))
    proofs.append(_check_structure(folder, structure, manifest))
    if check_provenance is not None:
        proofs += check_provenance(manifest, checkpoint)
    if load:
        proofs += _check_loaded(folder, structure, manifest, find_donor)
    return manifest, tuple(proofs)


def _read_structure(folder: Path, checkpoint: Checkpoint) -> Structure:
    shapes = {name: entry.shape for name, entry in checkpoint.tensors.items()}
    return read_structure(read_object(folder / "config.json"), shapes, where=str(folder))


def _fail(where: Path | str, what: str, fix: str = "Build it again.") -> VerificationError:
    return VerificationError(Problem(str(where), what, fix))


def _check_files(folder: Path, manifest: Manifest, monitor: Monitor, rehash: bool) -> Proof:
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {FILE_NAME}
    lost, foreign = sorted(manifest.files.keys() - present), sorted(present - manifest.files.keys())
    if lost:
        raise _fail(folder, f"{len(lost)} files of the manifest are missing: {', '.join(lost[:5])}.")
    if foreign:
        fix = "Move them out: a loader may prefer them to the model's own files."
        raise _fail(folder, f"{len(foreign)} files are not in the manifest: {', '.join(foreign[:5])}.", fix)
    num_bytes = sum((folder / name).stat().st_size for name in manifest.files)
    if not rehash:
        return Proof("files", f"{len(manifest.files)} files, {num_bytes:,} bytes: hashed when they were written")
    with monitor.task("re-hash", num_bytes, "bytes") as advance:
        for name, found in hash_files({name: folder / name for name in manifest.files}):
            expected = manifest.files[name]
            if found != expected:
                raise _fail(
                    folder / name, f"its content hashes to {found[:16]}..., in the manifest it is {expected[:16]}...."
                )
            advance((folder / name).stat().st_size)
    return Proof("files", f"{len(manifest.files)} files, {num_bytes:,} bytes: every sha256 agrees with the manifest")


def _check_tensors(folder: Path, checkpoint: Checkpoint, manifest: Manifest) -> Proof:
    found = {name: (entry.dtype, entry.shape) for name, entry in checkpoint.tensors.items()}
    expected = {name: (tensor.dtype, tensor.shape) for name, tensor in manifest.tensors.items()}
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise _fail(folder, f"tensor '{name}' is {found.get(name)}, and {expected.get(name)} in the manifest.")
    origins = {origin.partition(":")[0] for tensor in manifest.tensors.values() for origin in tensor.origins}
    new = sum(not tensor.origins for tensor in manifest.tensors.values())
    others = f", and {new} new ones" if new else ""
    return Proof("tensors", f"{len(found) - new} tensors, each with its origin in {', '.join(sorted(origins))}{others}")


def _check_frozen(folder: Path, checkpoint: Checkpoint, training: Mapping[str, Any]) -> Proof:
    frozen_sha256 = training["frozen_sha256"]
    for name, expected in frozen_sha256.items():
        if name not in checkpoint.tensors or hash_tensor(checkpoint.tensors[name]) != expected:
            raise _fail(folder, f"the frozen tensor '{name}' changed in training.")
    compared = training["frozen_as_in_donors"]
    found = f"{len(frozen_sha256)} tensors hash as before training, {compared} of them as in their donors"
    return Proof("frozen", found)


def _check_structure(folder: Path, structure: Structure, manifest: Manifest) -> Proof:
    expected = tuple(row.kind for row in manifest.layers)
    if len(structure.kinds) != len(expected):
        what = f"{len(structure.kinds)} layers in the config, {len(expected)} in the manifest."
        raise _fail(folder / "config.json", what)
    if structure.kinds != expected:
        first = next(i for i, kind in enumerate(expected) if structure.kinds[i] != kind)
        what = f"layer {first} is '{structure.kinds[first]}' by the config, '{expected[first]}' by the manifest."
        raise _fail(folder / "config.json", what)
    ties = "head tied to the embeddings" if structure.tied else "separate head and embeddings"
    return Proof("config", f"{structure.num_layers} layers of {structure.family}, per-layer settings in order, {ties}")


def _check_loaded(
    folder: Path, structure: Structure, manifest: Manifest, find_donor: Callable[[str], Donor | None]
) -> Iterator[Proof]:
    from hybridizer.models.check import compute_logits, copy_tensors_, generate_text, load_reporting

    remote_code = any(name.endswith(".py") for name in manifest.files)
    loaded = load_reporting(folder, remote_code=remote_code)
    for kind in ("missing", "unexpected", "mismatched"):
        names = getattr(loaded, kind)
        if names:
            raise _fail(folder, f"transformers finds {len(names)} tensors {kind}: {', '.join(names[:5])}.")
    yield Proof("loads", f"{type(loaded.model).__name__}: no tensor missing, unexpected or of another shape")
    if manifest.identity_of is not None:
        copy_tensors_(loaded.model)
    num_ids = structure.shapes[structure.embedding[0]][0]
    ids = [(1 + 37 * i % (num_ids - 1)) if num_ids > 1 else 0 for i in range(_NUM_PROBE_TOKENS)]
    logits = compute_logits(loaded.model, ids, folder)
    if not bool(logits.isfinite().all()):
        raise _fail(folder, "its logits are not all finite.", "Scan the donors: hybridize check RECIPE --deep-check")
    yield Proof("computes", f"finite logits over {len(ids)} tokens")
    returning = [row.layer for row in manifest.layers if row.method == METHOD]
    if returning and manifest.training is None:
        yield _check_returning(folder, loaded.model, returning, ids)
    if manifest.identity_of is not None:
        yield _check_identity(folder, structure, manifest, ids, logits, find_donor(manifest.identity_of))
    text = generate_text(folder, loaded.model, PROMPT, 24, remote_code=remote_code)
    if text is not None:
        yield Proof("generates", f"{PROMPT!r} -> {text!r}")


def _check_returning(folder: Path, model: Any, layers: list[int], ids: list[int]) -> Proof:
    from hybridizer.models.check import input_gaps

    gaps = input_gaps(model, layers, ids, folder)
    changed = {layer: gap for layer, gap in gaps.items() if gap != 0}
    if changed:
        found = ", ".join(f"layer {layer} by up to {gap:.3g}" for layer, gap in changed.items())
        raise _fail(folder, f"identity layers change their input: {found}.", "Delete `as: identity`, and report it.")
    numbers = format_layers(layers)
    return Proof("identity layers", f"layers {numbers} return their input bit for bit over {len(ids)} tokens")


def _check_identity(
    folder: Path, structure: Structure, manifest: Manifest, ids: list[int], logits: Any, donor: Donor | None
) -> Proof:
    from hybridizer.models.check import compute_logits, copy_tensors_, load_reporting

    name = manifest.identity_of
    if donor is None:
        return Proof("identity", f"not compared: the donor '{name}' is not on this machine")
    if donor.fingerprint != manifest.donors[donor.name].fingerprint:
        return Proof("identity", f"not compared: the donor '{name}' at {donor.reference} has changed since")
    model = load_reporting(donor.folder, remote_code="remote_code" in donor.allow).model
    copy_tensors_(model)
    expected = compute_logits(model, ids, donor.folder)
    if not bool((logits == expected).all()):
        apart = float((logits - expected).abs().max())
        moved = manifest.donors[donor.name].family != structure.family
        if moved and apart <= _ROUNDING[str(logits.dtype)] * float(expected.abs().max()):
            how = "the same sums in another order"
            return Proof("identity", f"logits equal those of '{name}' except for differences up to {apart:.3g}: {how}")
        raise _fail(folder, f"an identity splice of '{name}' whose logits differ by up to {apart:.3g}.")
    return Proof("identity", f"logits equal those of '{name}' bit for bit")
