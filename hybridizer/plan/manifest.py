"""The manifest: what a model folder holds and where each tensor came from. Written last; no manifest, not finished."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from hybridizer.checkpoint.dtypes import DTYPE_BITS
from hybridizer.checkpoint.strict_json import parse_object, shorten
from hybridizer.core.errors import CheckpointError, Problem, VerificationError
from hybridizer.core.records import read_record, to_jsonable
from hybridizer.plan.plan import DonorPin, LayerRow, Plan

SCHEMA = "hybridizer.manifest/2"
FILE_NAME = "manifest.json"
_REBUILD: Final = "Build it again with this version."
_LAYER_SOURCE: Final = re.compile(r".+@\S+ \d{1,9}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class TensorOrigin:
    """An output tensor: its dtype and shape, the `donor:tensor` names it was made from, and how it was made.

    `kind` is that of its source in the plan, such as "copy"; `method` is the same in words, training included.
    """

    dtype: str
    shape: tuple[int, ...]
    kind: str
    origins: tuple[str, ...]
    method: str

    def __str__(self) -> str:
        """How it was made and from what, for a reader."""
        return " of ".join(text for text in (self.method, " + ".join(self.origins)) if text)


@dataclass(frozen=True)
class Manifest:
    """`files` maps every other file of the folder to its sha256 in hex; `tools` are versions of packages.

    `training` is the record of the training, None without one. Its `frozen_sha256` maps every frozen tensor to
    the hash that it had before the first step, after the last, and in its donor.
    """

    name: str
    plan_hash: str
    host: str
    identity_of: str | None
    donors: Mapping[str, DonorPin]
    layers: tuple[LayerRow, ...]
    tensors: Mapping[str, TensorOrigin]
    files: Mapping[str, str]
    tools: Mapping[str, str]
    training: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The manifest as plain JSON values, with its schema."""
        return {"schema": SCHEMA, **to_jsonable(self)}


def make_manifest(
    plan: Plan, files: Mapping[str, str], tools: Mapping[str, str], training: Mapping[str, Any] | None = None
) -> Manifest:
    """The manifest of a model folder that was written from `plan` and holds `files` (name to sha256).

    `training` is the record of a training, whose `trained` tensors come from their origins by it.
    """
    trained = frozenset(training["trained"] if training else ())
    tensors = {
        tensor.name: TensorOrigin(
            tensor.dtype,
            tensor.shape,
            tensor.source.kind,
            tuple(f"{origin.donor}:{origin.tensor}" for origin in tensor.source.origins),
            tensor.source.describe(plan.blends) + (", trained" if tensor.name in trained else ""),
        )
        for tensor in plan.tensors
    }
    return Manifest(
        name=plan.name,
        plan_hash=plan.hash,
        host=plan.host,
        identity_of=None if training else plan.identity_of,
        donors={name: without_folders(pin) for name, pin in plan.donors.items()},
        layers=plan.layers,
        tensors=tensors,
        files=dict(sorted(files.items())),
        tools=tools,
        training=training,
    )


def without_folders(pin: DonorPin) -> DonorPin:
    """`pin` with an absolute path, or one in a home folder, as the name at its end: the rest is a machine's own.

    What a donor is, its fingerprint says; where it is, the recipe in the run's folder.
    """
    path = pin.reference.removeprefix("folder:")
    return replace(pin, reference=PurePosixPath(path).name or "/") if path.startswith(("/", "~")) else pin


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a model folder. Raises VerificationError when there is none, or when it is damaged.

    Every field has its type, every name that refers to a donor or a layer is there, and the record of a training has
    the keys that are read, so that readers need no checks of their own.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        what = f"there is no {FILE_NAME}: this folder is not a finished model of hybridize."
        raise VerificationError(Problem(str(folder), what, "Build it again, or give the model/ folder of a run."))
    try:
        value = parse_object(path.read_bytes(), str(path), _REBUILD)
        manifest = read_record(value, Manifest, SCHEMA, str(path), _REBUILD)
    except CheckpointError as error:
        raise VerificationError(*error.problems) from None
    except RecursionError:
        raise VerificationError(Problem(str(path), "JSON nested too deep for a manifest.", _REBUILD)) from None
    except OSError as error:
        raise VerificationError(
            Problem(str(path), f"cannot be read: {error.strerror}.", "Check permissions.")
        ) from None
    if fault := next(_find_faults(manifest), None):
        raise VerificationError(Problem(str(path), fault, _REBUILD))
    return manifest


@dataclass(frozen=True)
class _SourceRecord:
    name: str
    tokens_taken: int
    epochs: float
    left_out: dict[str, int]


@dataclass(frozen=True)
class _TrainingRecord:
    """The keys that are read from the record of a training, which has more."""

    plan_hash: str
    steps: int
    tokens: int
    seconds: float
    first_loss: float
    last_loss: float
    stopped_by: str
    dtype: str
    device: str
    trained: tuple[str, ...]
    frozen_sha256: dict[str, str]
    frozen_as_in_donors: int
    packing: float
    unreached: tuple[str, ...]
    changes: tuple[Mapping[str, Any], ...]
    sources: tuple[_SourceRecord, ...]


def _find_faults(manifest: Manifest) -> Iterator[str]:
    """Contradictions inside a manifest, one sentence each."""
    for key, donor in (("host", manifest.host), ("identity_of", manifest.identity_of)):
        if donor is not None and donor not in manifest.donors:
            yield f"`{key}` is {shorten(donor)}, which is not one of the donors."
    if not manifest.layers or not manifest.tensors:
        yield "it names no layer or no tensor."
    for number, row in enumerate(manifest.layers):
        if row.layer != number:
            yield f"`layers.{number}.layer` is {shorten(row.layer)}."
        if not all(_LAYER_SOURCE.fullmatch(source) for source in row.sources):
            yield f"`layers.{number}.sources` are {shorten(row.sources)}, not of the form 'donor@fingerprint layer'."
    for name, tensor in manifest.tensors.items():
        yield from _find_tensor_faults(name, tensor, manifest.donors)
    for name, sha256 in manifest.files.items():
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts:
            yield f"`files` names {shorten(name)}, which is not inside the folder."
        if not _SHA256.fullmatch(sha256):
            yield f"`files.{shorten(name)}` is {shorten(sha256)}, not a sha256."
    if manifest.training is not None:
        try:
            TypeAdapter(_TrainingRecord).validate_json(json.dumps(manifest.training), strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            yield f"`training.{'.'.join(str(step) for step in first['loc'])}`: {first['msg']}."


def _find_tensor_faults(name: str, tensor: TensorOrigin, donors: Mapping[str, DonorPin]) -> Iterator[str]:
    where = f"`tensors.{shorten(name)}`"
    if tensor.dtype not in DTYPE_BITS or any(size < 0 for size in tensor.shape):
        yield f"{where} is of dtype {shorten(tensor.dtype)} and shape {shorten(tensor.shape)}."
    if tensor.kind in ("copy", "convert") and len(tensor.origins) != 1:
        yield f"{where} has {len(tensor.origins)} origins, and a {tensor.kind} has one."
    for origin in tensor.origins:
        if origin.partition(":")[0] not in donors:
            yield f"{where} is from {shorten(origin)}, which names none of the donors."
