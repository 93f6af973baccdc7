"""Compares what a manifest says about a model's origin with the plan, the weight files and the donors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hybridizer.checkpoint.hashing import same_bytes
from hybridizer.checkpoint.header import TensorEntry, read_header
from hybridizer.checkpoint.reader import Checkpoint
from hybridizer.checkpoint.strict_json import shorten
from hybridizer.core.errors import Problem, VerificationError
from hybridizer.core.progress import Monitor
from hybridizer.core.records import to_jsonable
from hybridizer.donors.donor import Donor
from hybridizer.plan.manifest import FILE_NAME, Manifest, make_manifest
from hybridizer.plan.plan import Plan
from hybridizer.splice.copy import PLAN_KEY
from hybridizer.splice.verify import Proof

_LISTED = 8
_PIN_FIELDS = ("fingerprint", "family", "num_layers")  # not how the user wrote the reference, which may change
_FIX = "Restore the manifest, or build the model again."


def check_plan(folder: Path, manifest: Manifest, checkpoint: Checkpoint, plan: Plan | None, missing: str) -> Proof:
    """Compare the manifest with the plan hash in the weight files and, if given, with the stored `plan`.

    `missing` is why there is no plan. A stored plan of another hash is not compared, since `hybridize plan` may have
    replaced a run's plan. Raises VerificationError with every field that differs.
    """
    where = str(folder / FILE_NAME)
    for path in checkpoint.files:
        written = read_header(path).metadata.get(PLAN_KEY)
        if written is not None and written != manifest.plan_hash:
            what = f"`plan_hash` is {manifest.plan_hash}, and {path.name} was written by plan {written}."
            raise VerificationError(Problem(where, what, _FIX))
    if manifest.training is not None and manifest.training["plan_hash"] != manifest.plan_hash:
        what = f"`training.plan_hash` is {manifest.training['plan_hash']}, and `plan_hash` is {manifest.plan_hash}."
        raise VerificationError(Problem(where, what, _FIX))
    if plan is None:
        return Proof("plan", f"not compared: {missing}")
    same = next((made for made in (plan, plan.spliced) if made.hash == manifest.plan_hash), None)
    if same is None:
        return Proof("plan", f"not compared: plan.json is of another plan ({plan.hash[:19]}...)")
    if (same.train is None) != (manifest.training is None):
        what = f"`training` is {'absent' if manifest.training is None else 'there'}, contrary to the plan."
        raise VerificationError(Problem(where, what, _FIX))
    if same.train is not None and manifest.training is not None:
        for field in ("boundary", "frozen_layers", "frozen_parts"):
            found, planned = manifest.training.get(field), to_jsonable(getattr(same.train, field))
            if found != planned:
                what = f"`training.{field}` is {shorten(found)}, and {shorten(planned)} in the plan."
                raise VerificationError(Problem(where, what, _FIX))
    expected = make_manifest(same, manifest.files, manifest.tools, manifest.training)
    found = [
        f"`{path}` is {ours}, and {theirs} in the plan." for path, ours, theirs in _differences(manifest, expected)
    ]
    if found:
        raise VerificationError(*(Problem(where, what, _FIX) for what in found[:_LISTED]))
    return Proof("plan", f"manifest and plan.json agree: {manifest.plan_hash[:19]}...")


def _differences(manifest: Manifest, expected: Manifest) -> Iterator[tuple[str, str, str]]:
    """(path, value, planned value) of every leaf in which two manifests differ, as texts."""
    ours, theirs = _comparable(manifest), _comparable(expected)
    for path in sorted(ours.keys() | theirs.keys()):
        if path not in ours or path not in theirs or ours[path] != theirs[path]:
            found, planned = (shorten(side[path]) if path in side else "absent" for side in (ours, theirs))
            yield path, found, planned


def _comparable(manifest: Manifest) -> dict[str, Any]:
    donors = {name: {field: getattr(pin, field) for field in _PIN_FIELDS} for name, pin in manifest.donors.items()}
    fields = ("name", "host", "identity_of", "layers", "tensors")
    return dict(_leaves({**{field: to_jsonable(getattr(manifest, field)) for field in fields}, "donors": donors}))


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}.{index}")
    else:
        yield path, value


def check_origins(
    folder: Path,
    manifest: Manifest,
    checkpoint: Checkpoint,
    find_donor: Callable[[str], Donor | None],
    monitor: Monitor,
) -> Proof:
    """Compare every copied tensor byte for byte with the donor tensor that the manifest names as its origin.

    Converted, merged and trained tensors are not compared, and neither are donors that are not on this machine or
    whose content changed since; the result names both. Raises VerificationError with the tensors that differ.
    """
    donors, notes = {}, []
    for name, pin in manifest.donors.items():
        donor = find_donor(name)
        if donor is None:
            notes.append(f"donor '{name}' is not on this machine")
        elif donor.fingerprint != pin.fingerprint:
            notes.append(f"donor '{name}' at {donor.reference} is not the one of the manifest ({donor.fingerprint})")
        else:
            donors[name] = donor
    trained = frozenset(manifest.training["trained"] if manifest.training else ())
    compared, problems = 0, []
    copies = {n: t.origins[0] for n, t in manifest.tensors.items() if t.kind == "copy" and n not in trained}
    with monitor.task("compare with donors", sum(checkpoint.tensors[n].num_bytes for n in copies), "bytes") as advance:
        for name, origin in copies.items():
            donor_name, _, source = origin.partition(":")
            advance(checkpoint.tensors[name].num_bytes)
            if donor_name not in donors:
                continue
            compared += 1
            if what := _compare(checkpoint.tensors[name], donors[donor_name].checkpoint.tensors.get(source)):
                problems.append(
                    Problem(str(folder / FILE_NAME), f"tensor '{name}' {what} '{origin}', its origin.", _FIX)
                )
    if problems:
        raise VerificationError(*problems[:_LISTED])
    left = len(manifest.tensors) - compared
    found = [f"{compared} copied tensors equal their donors' byte for byte"] if compared else []
    found += [f"{left} not compared: {', '.join([*notes, *_made(manifest, trained)])}"] if left else []
    return Proof("origins", "; ".join(found))


def _compare(tensor: TensorEntry, source: TensorEntry | None) -> str | None:
    if source is None:
        return "names a tensor that its donor does not have:"
    return None if same_bytes(tensor, source) else "does not hold the bytes of"


def _made(manifest: Manifest, trained: frozenset[str]) -> list[str]:
    """How tensors that are not copies were made, in words."""
    made = {tensor.kind for name, tensor in manifest.tensors.items() if name not in trained} - {"copy"}
    words = {"convert": "converted", "derived": "derived", "fitted": "fitted", "join": "joined", "merge": "merged"}
    return [
        f"some are {word}" for word in sorted({words.get(k, "new") for k in made} | ({"trained"} if trained else set()))
    ]
