"""Checkpoints of a running training: complete or not there, the last two kept, refused by any other run.

    checkpoints/step-00000120/
      tensors.safetensors   masters and optimizer moments of the trained tensors, random states
      state.json            the next step, what the run is (`facts`), running figures; read to accept or refuse

Frozen tensors are not in it: they are the donor's.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from hybridizer.durable import flush_folder
from hybridizer.errors import CheckpointError, InputError, Problem
from hybridizer.records import read_json, to_jsonable, write_json

KEPT = 2
_NAME = re.compile(r"step-\d{8}")


@dataclass(frozen=True)
class State:
    """All that a run needs to go on from `step` (steps already taken): tensors by name, and figures as plain values."""

    step: int
    tensors: Mapping[str, Tensor]
    figures: Mapping[str, Any]


def write_checkpoint(folder: Path, state: State, facts: Mapping[str, Any]) -> Path:
    """Write `state` as the newest checkpoint in `folder` and drop all but the last KEPT; returns its folder.

    A process killed at any moment leaves the older checkpoints whole and nothing that looks finished.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".step.", suffix=".partial", dir=folder))
    try:
        write_tensors(partial / "tensors.safetensors", state.tensors)
        write_json(partial / "state.json", {"step": state.step, "facts": facts, "figures": state.figures})
        final = folder / f"step-{state.step:08d}"
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        flush_folder(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _prune(folder)
    return final


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write `tensors` as one safetensors file: complete and flushed under its name, or not there.

    Raises OSError as the file system gives it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    partial = path.with_name(f".{path.name}.partial")
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
    except SafetensorError as error:  # the number of what the system said is in its text alone
        partial.unlink(missing_ok=True)
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code), str(partial)) from error
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.chmod(0o644)
    partial.replace(path)
    flush_folder(path.parent)


def read_checkpoint(folder: Path, facts: Mapping[str, Any]) -> State | None:
    """The newest state in `folder`, or None when there is none.

    Raises InputError naming every fact in which the run that wrote it differs from `facts`, and CheckpointError when
    its files are damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    found = _checkpoints(folder)
    if not found:
        return None
    record = read_json(found[-1] / "state.json")
    _refuse_other_run(found[-1], record["facts"], to_jsonable(facts))
    try:
        tensors = load_file(found[-1] / "tensors.safetensors")
    except (OSError, SafetensorError) as error:
        fix = "Delete this folder; the run goes on from the checkpoint before it, or from the start."
        raise CheckpointError(Problem(str(found[-1]), f"damaged checkpoint: {error}.", fix)) from error
    return State(record["step"], tensors, record["figures"])


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if _NAME.fullmatch(path.name))


def _prune(folder: Path) -> None:
    for path in _checkpoints(folder)[:-KEPT]:
        shutil.rmtree(path)
    for path in folder.glob(".step.*.partial"):  # of a process that was killed
        shutil.rmtree(path, ignore_errors=True)


def _refuse_other_run(folder: Path, theirs: Any, ours: Any) -> None:
    differences = list(_differences("", theirs, ours))
    if differences:
        fix = "Restore the setting to go on, or remove the checkpoints folder to start anew."
        raise InputError(*(Problem(str(folder), f"belongs to another run: {text}.", fix) for text in differences))


def _differences(path: str, theirs: Any, ours: Any) -> list[str]:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        keys = sorted({*theirs, *ours})
        return [text for key in keys for text in _differences(f"{path}.{key}", theirs.get(key), ours.get(key))]
    return [] if theirs == ours else [f"{path.removeprefix('.')} is {ours!r} now and was {theirs!r} there"]
