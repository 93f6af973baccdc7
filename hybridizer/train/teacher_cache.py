"""The largest next tokens of a teacher on disk, for every row of a training.

    teachers/<hash>/
      steps-00000000.safetensors   ids, log_p and the mass outside, for the predicted tokens of so many steps, in order
      sample.safetensors           ln p of the whole vocabulary for a few tokens of the first step

The hash is of the teacher's content, the data, what is kept and how it was computed. A file is complete or absent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from hybridizer.data.batches import TrainingData
from hybridizer.models.largest import Largest
from hybridizer.plan.dimensions import kept_bytes

FILE_BYTES = 64 * 2**20  # roughly: what a kill may lose
SAMPLE = "sample.safetensors"


@dataclass(frozen=True)
class TeacherCache:
    """What is kept of one teacher for the rows of `data`, in `folder`; `fingerprint` is of the teacher's content."""

    folder: Path
    data: TrainingData
    top_k: int
    fingerprint: str

    def path(self, number: int) -> Path:
        """The file of the steps from `number` x `file_steps` on."""
        return self.folder / f"steps-{number * self.file_steps:08d}.safetensors"

    @property
    def file_steps(self) -> int:
        """The steps in a file."""
        settings = self.data.settings
        return math.ceil(FILE_BYTES / kept_bytes(settings.global_batch_size * settings.seq_len, self.top_k))

    @cached_property
    def _offsets(self) -> Any:
        return self.data.target_offsets()

    def read(self, rows: range) -> Largest:
        """What is kept for the predicted tokens of `rows`, which are rows of one step, in order.

        One token of zeros where there is none.
        """
        if not rows or self._offsets[rows.start] == self._offsets[rows.stop]:
            return Largest(torch.zeros(1, self.top_k, dtype=torch.int32), torch.zeros(1, self.top_k + 1).half())
        per_step = self.data.settings.global_batch_size
        number = rows.start // per_step // self.file_steps
        first = int(self._offsets[number * self.file_steps * per_step])
        span = slice(int(self._offsets[rows.start]) - first, int(self._offsets[rows.stop]) - first)
        with safe_open(self.path(number), "pt") as file:
            return Largest(file.get_slice("ids")[span], file.get_slice("log_p")[span])

    def mass_outside(self, num_steps: int) -> tuple[float, int]:
        """The mean mass of the tokens that are not kept, over the predicted ones of the first `num_steps` steps."""
        total, count = 0.0, 0
        for number in range(-(-num_steps // self.file_steps)):
            with safe_open(self.path(number), "pt") as file:
                total += float(file.get_tensor("outside"))
                count += file.get_slice("ids").get_shape()[0]
        return total / count, count

    def sample(self) -> dict[str, Tensor]:
        """`places` among the predicted tokens of the first batch of the pass, and `log_p` of each, whole."""
        return load_file(self.folder / SAMPLE)
