"""The files of a training, and what each one means.

    training/
      checkpoints/          states that the run resumes from; see train/checkpoints.py
      log.jsonl             one line per step
      curve.jsonl           one line per held-out text and measured step, where the recipe has `evaluate.every`
      best-*.safetensors    the trained tensors of the best measured step, in float32, where `evaluate.keep` is best
      masters.safetensors   what the loop leaves: the trained tensors in float32, under their names in the model as it
                            ran, adapters included; gone as soon as trained.safetensors is there
      trained.safetensors   the result: the trained tensors in float32, under their names in the output, adapters merged
      training.json         the record of the result, written last, with the hash of trained.safetensors

A training with stages has these files in a folder for each stage; see train/stages.py.

In folders of earlier versions trained.safetensors held the masters for a moment, between the loop and the record.
Beside a record it is always the result, and without one it is not read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hybridizer.core.files import write_file

CHECKPOINTS, LOG, CURVE = "checkpoints", "log.jsonl", "curve.jsonl"
MASTERS, TRAINED, RECORD = "masters.safetensors", "trained.safetensors", "training.json"


def whole_lines(path: Path) -> list[str]:
    """The complete lines of `path`, none where there is no file: a killed process may have left half a line."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith("\n")]


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl in `folder`, one per step, oldest first; empty where there is none."""
    return [json.loads(line) for line in whole_lines(folder / LOG)]


def read_curve(folder: Path) -> list[dict[str, Any]]:
    """The lines of curve.jsonl in `folder`, see train/curve.py; empty where there is none."""
    return [json.loads(line) for line in whole_lines(folder / CURVE)]


def stage_folder(folder: Path, number: int) -> Path:
    """The folder of the stage `number`, from 1, of the training in `folder`."""
    return folder / f"stage-{number}"


def join_logs(folder: Path, num_stages: int) -> None:
    """Write the logs of the stages of the training in `folder` as one: each line with its `stage`, counts continued."""
    lines: list[dict[str, Any]] = []
    counted = ("step", "tokens", "seconds")
    for number in range(1, num_stages + 1):
        stage = read_log(stage_folder(folder, number))
        before = {key: lines[-1][key] if lines else 0 for key in counted} | {"step": len(lines)}
        lines += [{"stage": number, **line, **{key: line[key] + before[key] for key in counted}} for line in stage]
    write_file(folder / LOG, "".join(json.dumps(line) + "\n" for line in lines))


def join_curves(folder: Path, num_stages: int) -> None:
    """Write the curves of the stages of the training in `folder` as one, as `join_logs` does with logs.

    A later stage starts with the model that the one before it ended with, which is
    not written twice.
    """
    lines: list[dict[str, Any]] = []
    counted = ("step", "tokens", "flop", "seconds")
    for number in range(1, num_stages + 1):
        stage = read_curve(stage_folder(folder, number))
        before = {key: lines[-1][key] if lines else 0 for key in counted}
        own = [line for line in stage if line["step"] or number == 1]
        lines += [{"stage": number, **line, **{key: line[key] + before[key] for key in counted}} for line in own]
    if lines:
        write_file(folder / CURVE, "".join(json.dumps(line) + "\n" for line in lines))


def has_progress(folder: Path) -> bool:
    """Whether the training in `folder` has checkpoints, or stages that have ended."""
    patterns = (f"{CHECKPOINTS}/step-*", f"stage-*/{CHECKPOINTS}/step-*", f"stage-*/{RECORD}")
    return any(True for pattern in patterns for _ in folder.glob(pattern))
