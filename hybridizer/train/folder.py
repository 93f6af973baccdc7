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

In folders of earlier versions trained.safetensors held the masters for a moment, between the loop and the record.
Beside a record it is always the result, and without one it is not read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
