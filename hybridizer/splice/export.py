"""Completes spliced tensors to a deployable folder: config, tokenizer, card and, written last, the manifest."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from hybridizer.checkpoint.hashing import hash_chunks, hash_file
from hybridizer.checkpoint.header import TensorEntry
from hybridizer.checkpoint.writer import WrittenCheckpoint
from hybridizer.core.errors import Problem, RunError
from hybridizer.core.files import write_file
from hybridizer.core.records import write_json
from hybridizer.donors.donor import Donor
from hybridizer.plan.manifest import FILE_NAME, Manifest, make_manifest
from hybridizer.plan.origin import Convert, Copy, Join
from hybridizer.plan.plan import Plan
from hybridizer.splice.card import write_card
from hybridizer.splice.copy import chunks_in_dtype

_TOOLS = ("hybridizer", "torch", "transformers", "safetensors", "mergekit", "gguf")


def export(
    plan: Plan,
    donors: Mapping[str, Donor],
    written: WrittenCheckpoint,
    folder: Path,
    training: Mapping[str, Any] | None = None,
) -> Manifest:
    """Complete `folder`, which holds the tensors, and return the manifest that was written into it last.

    The host's tokenizer, chat template and generation config are copied byte for byte; all files get mode 0644.
    `training` is the record of the training, whose frozen tensors are compared with the donors' here. Raises RunError
    for one that differs.
    """
    if training is not None:
        compared = _count_as_in_donors(plan, donors, training["frozen_sha256"])
        training = {**_without_folders(training), "frozen_as_in_donors": compared}
    write_file(folder / "config.json", json.dumps(plan.config, indent=2, ensure_ascii=False) + "\n")
    for name in plan.tokenizer_files:
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(donors[plan.host].tokenizer_files[name], target)
        target.chmod(0o644)
    write_file(
        folder / "README.md", write_card(plan, {name: donor.license for name, donor in donors.items()}, training)
    )
    names = ["config.json", "README.md", *plan.tokenizer_files, *([written.index] if written.index else [])]
    files = {**{name: hash_file(folder / name) for name in names}, **written.files}
    manifest = make_manifest(plan, files, tool_versions(), training)
    write_json(folder / FILE_NAME, manifest.to_json())
    return manifest


def _without_folders(training: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a training with text files by name alone: their folders are of no use on another machine.

    A recipe has them where it was written that way, as the one in a stored plan is.
    """
    sources = [
        {
            **source,
            "name": _file_name(source["name"]),
            "left_out_at": {reason: [_file_name(p) for p in found] for reason, found in source["left_out_at"].items()},
        }
        for source in training["sources"]
    ]
    return {**training, "sources": sources}


def _file_name(text: str) -> str:
    """A name or `file:line` without the folders of an absolute path."""
    return text.rpartition("/")[2] if text.startswith("/") else text


def _count_as_in_donors(plan: Plan, donors: Mapping[str, Donor], frozen_sha256: Mapping[str, str]) -> int:
    """How many frozen tensors hash in memory, after training, as their donors' do in the plan's dtype.

    Only copied, converted and joined tensors are compared. Raises RunError for one that differs.
    """
    compared = 0
    for tensor in plan.tensors:
        if tensor.name not in frozen_sha256 or not isinstance(tensor.source, Copy | Convert | Join):
            continue
        origins = tensor.source.origins
        entries = [donors[origin.donor].checkpoint.tensors[origin.tensor] for origin in origins]
        if _hash_as(entries, tensor.dtype) != frozen_sha256[tensor.name]:
            names = " + ".join(f"'{entry.name}'" for entry in entries)
            what = f"frozen, and differs from {names} of the donor '{origins[0].donor}'."
            fix = "The spliced model or the donor changed during the run: build again under another name."
            raise RunError(Problem(tensor.name, what, fix))
        compared += 1
    return compared


def _hash_as(entries: Sequence[TensorEntry], dtype: str) -> str:
    return f"sha256:{hash_chunks(chunk for entry in entries for chunk in chunks_in_dtype(entry, dtype))}"


def tool_versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect the output; "absent" for one that is not installed."""
    versions = {"python": platform.python_version()}
    for tool in _TOOLS:
        try:
            versions[tool] = metadata.version(tool)
        except metadata.PackageNotFoundError:
            versions[tool] = "absent"
    return versions
