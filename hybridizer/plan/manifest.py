"""The manifest: what a model folder holds and where each tensor came from. Written last; no manifest, not finished."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridizer.core.errors import Problem, VerificationError
from hybridizer.core.records import read_json, to_jsonable
from hybridizer.plan.plan import DonorPin, LayerRow, Plan, PlannedTensor

SCHEMA = "hybridizer.manifest/1"
FILE_NAME = "manifest.json"


@dataclass(frozen=True)
class TensorOrigin:
    """An output tensor: its dtype and shape, and the `donor:tensor` texts it was made from."""

    dtype: str
    shape: tuple[int, ...]
    origins: tuple[str, ...]
    method: str


@dataclass(frozen=True)
class Manifest:
    """`files` maps every other file of the folder to its sha256 in hex; `tools` names versions of what wrote them.

    `training` is the record of what trained, None where nothing did. Its `frozen_sha256` maps every frozen tensor to
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
            tuple(f"{origin.donor}:{origin.tensor}" for origin in tensor.origins),
            _method(plan, tensor) + (", trained" if tensor.name in trained else ""),
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


def _method(plan: Plan, tensor: PlannedTensor) -> str:
    return "copy" if tensor.blend is None else plan.blends[tensor.blend].method


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a model folder. Raises VerificationError when there is none, or when it is damaged."""
    path = folder / FILE_NAME
    if not path.is_file():
        what = f"there is no {FILE_NAME}: this folder is not a model that hybridize finished."
        raise VerificationError(Problem(str(folder), what, "Build it again, or give the model/ folder of a run."))
    value = read_json(path)
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise VerificationError(Problem(str(path), f"its schema is not {SCHEMA!r}.", "Build with this version."))
    try:
        return Manifest(
            name=value["name"],
            plan_hash=value["plan_hash"],
            host=value["host"],
            identity_of=value["identity_of"],
            donors={name: DonorPin(**pin) for name, pin in value["donors"].items()},
            layers=tuple(LayerRow(**{**row, "sources": tuple(row["sources"])}) for row in value["layers"]),
            tensors={
                name: TensorOrigin(t["dtype"], tuple(t["shape"]), tuple(t["origins"]), t["method"])
                for name, t in value["tensors"].items()
            },
            files=value["files"],
            tools=value["tools"],
            training=value.get("training"),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise VerificationError(Problem(str(path), f"not a whole manifest: {error!r}.", "Build it again.")) from None
