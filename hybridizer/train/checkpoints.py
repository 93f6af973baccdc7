"""Checkpoints of a running training: complete or absent; the last two are kept; any other run refuses them.

    checkpoints/step-00000120/
      tensors.safetensors   masters and optimizer moments of the trained tensors, random states
      state.json            the next step, what the run is (`facts`), running figures; read to accept or refuse

Frozen tensors are not in it: they are the donors'.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from hybridizer.core.errors import CheckpointError, InputError, Problem
from hybridizer.core.files import new_file, new_folder, write_file
from hybridizer.core.records import read_json, to_jsonable, write_json
from hybridizer.train.folder import whole_lines

KEPT = 2
# How large the steps are may change between two starts, with --accept-changes; what is trained on what may not.
CHANGEABLE = ("train.optimizer.lr", "train.optimizer.max_grad_norm", "train.optimizer.weight_decay", "train.schedule.")
# The number of processes may always change: a lost GPU must not end a run. The sums are then taken in another order.
# The loss is computed in larger pieces on a GPU, which is rounding as well.
PROCESSES = "processes"
ROUNDING = (PROCESSES, "train.loss_chunk_bytes")
_NAME = re.compile(r"step-\d{8}")


@dataclass(frozen=True)
class Change:
    """A fact of a run that changed between two starts: its path, joined by dots, and both values."""

    setting: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.setting} is {self.now!r} now and was {self.before!r} there"


@dataclass(frozen=True)
class State:
    """What a run needs to resume at `step` (steps already taken): tensors by name, and figures as plain values.

    `changes` are the settings that had other values when it was written.
    """

    step: int
    tensors: Mapping[str, Tensor]
    figures: Mapping[str, Any]
    changes: tuple[Change, ...] = ()


def write_checkpoint(
    folder: Path, state: State, facts: Mapping[str, Any], details: Mapping[str, Any] | None = None, bad: bool = False
) -> Path:
    """Write `state` as the newest checkpoint in `folder` and delete all but the last KEPT; returns its folder.

    `details` say in words what the hashes in `facts` are of: what a refusal shows. With `bad` the checkpoint gets the
    suffix .bad, from which no run resumes, and none is deleted. A process killed at any moment leaves the older
    checkpoints whole and nothing that looks finished.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / (_name(state.step) + (".bad" if bad else ""))
    record = {"step": state.step, "facts": facts, "details": details or {}, "figures": state.figures}
    with new_folder(final) as partial:
        write_tensors(partial / "tensors.safetensors", state.tensors)
        write_json(partial / "state.json", record)
        shutil.rmtree(final, ignore_errors=True)
    if not bad:
        _prune(folder)
    return final


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write `tensors` as one safetensors file: complete and flushed under its name, or not there.

    Raises the OSError of the file system.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        with new_file(path) as partial:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
    except SafetensorError as error:  # the error number of the system is only in its text
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code), str(path)) from error


def read_checkpoint(
    folder: Path, facts: Mapping[str, Any], accept_changes: bool = False, details: Mapping[str, Any] | None = None
) -> State | None:
    """The newest state in `folder`, or None when there is none.

    Raises InputError naming every fact in which the run that wrote it differs from `facts`, in the words of `details`
    where they differ too, unless all only change rounding, as the number of processes does, or are settings that may
    change between two starts and `accept_changes` is set; CheckpointError when its files are damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    found = _checkpoints(folder)
    if not found:
        return None
    record = read_json(found[-1] / "state.json")
    changes = _changes("", record["facts"], to_jsonable(facts))
    _refuse_other_run(found[-1], changes, accept_changes, _named(record.get("details", {}), to_jsonable(details or {})))
    try:
        tensors = load_file(found[-1] / "tensors.safetensors")
    except (OSError, SafetensorError) as error:
        fix = "Delete this folder; the run resumes from the checkpoint before it, or starts again."
        raise CheckpointError(Problem(str(found[-1]), f"damaged checkpoint: {error}.", fix)) from error
    return State(record["step"], tensors, record["figures"], tuple(changes))


def set_aside(folder: Path, first_step: int) -> None:
    """Rename the checkpoints of `first_step` and later, whose losses turned out bad, to .bad: no run resumes from them.

    A checkpoint is written before the loss of its weights is known.
    """
    for path in _checkpoints(folder):
        if path.name >= _name(first_step):
            bad = path.with_name(f"{path.name}.bad")
            shutil.rmtree(bad, ignore_errors=True)
            path.rename(bad)


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in `folder` that a run may resume from, oldest first."""
    return [int(path.name.removeprefix("step-")) for path in _checkpoints(folder)]


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint in `folder` that a run resumes from, or None."""
    return next(iter(reversed(_checkpoints(folder))), None)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if _NAME.fullmatch(path.name))


def _prune(folder: Path) -> None:
    for path in _checkpoints(folder)[:-KEPT]:
        shutil.rmtree(path)
    for path in folder.glob(".step*.partial"):  # of a process that was killed
        shutil.rmtree(path, ignore_errors=True)


def _refuse_other_run(
    folder: Path, changes: Sequence[Change], accept: bool, named: Mapping[str, Sequence[Change]]
) -> None:
    """Refuse `changes` that must not be; `named` are the differences behind each hash, by the setting of the hash."""
    refused = [change for change in changes if change.setting not in ROUNDING]
    if not refused:
        return
    may = all(change.setting.startswith(CHANGEABLE) for change in refused)
    if may and accept:
        return
    fix = "Restore the setting to resume, or delete the checkpoints folder to start again."
    if may:
        fix = "Restore the setting, or pass --accept-changes to resume with it; or give the recipe another name."
    shown = [inner for change in refused for inner in named.get(change.setting) or [change]]
    raise InputError(*(Problem(str(folder), f"belongs to another run: {change}.", fix) for change in shown))


def _named(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, list[Change]]:
    return {setting: _changes(setting, theirs[setting], ours[setting]) for setting in theirs if setting in ours}


def _changes(path: str, theirs: Any, ours: Any) -> list[Change]:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        keys = sorted({*theirs, *ours})
        return [change for key in keys for change in _changes(f"{path}.{key}", theirs.get(key), ours.get(key))]
    return [] if theirs == ours else [Change(path.removeprefix("."), theirs, ours)]


class MetricsLog:
    """Appends one JSON object per line to `path`, each with its `step`."""

    def __init__(self, path: Path, next_step: int) -> None:
        """Keeps the lines of steps before `next_step` and deletes the rest: those steps are taken again."""
        self._path = path
        kept = [line for line in whole_lines(path) if json.loads(line)["step"] < next_step]
        write_file(path, "".join(kept))

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append the line of `step`."""
        with self._path.open("a") as file:
            file.write(json.dumps(to_jsonable({"step": step, **values})) + "\n")
