"""The manifest: what a model folder holds and where each tensor came from. Written last; no manifest, not finished."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridizer.core.errors import CheckpointError, Problem, VerificationError
from hybridizer.core.records import read_record, to_jsonable
from hybridizer.plan.plan import DonorPin, LayerRow, Plan

SCHEMA = "hybridizer.manifest/2"
FILE_NAME = "manifest.json"


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
        donors=plan.donors,
        layers=plan.layers,
        tensors=tensors,
        files=dict(sorted(files.items())),
        tools=tools,
        training=training,
    )


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a model folder. Raises VerificationError when there is none, or when it is damaged."""
    path = folder / FILE_NAME
    if not path.is_file():
        what = f"there is no {FILE_NAME}: this folder is not a finished model of hybridize."
        raise VerificationError(Problem(str(folder), what, "Build it again, or give the model/ folder of a run."))
    try:
        return read_record(path, Manifest, SCHEMA, str(path), "Build it again with this version.")
    except CheckpointError as error:
        raise VerificationError(*error.problems) from None
