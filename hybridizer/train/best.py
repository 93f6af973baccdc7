"""The weights of the best measured step, beside the checkpoints: best-00000040.safetensors, named by the step.

A run that is killed resumes from a checkpoint, perhaps before the best step; so the best step up to each checkpoint
stays as well, which mostly is the same one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from hybridizer.core.errors import InputError, Problem
from hybridizer.train.checkpoints import write_tensors

_NAME = re.compile(r"best-(\d{8})\.safetensors")


class BestWeights:
    """Files of trained tensors in float32, under their names in the model, one per step that is kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, step: int) -> Path:
        """The file of `step`."""
        return self._folder / f"best-{step:08d}.safetensors"

    def write(self, step: int, tensors: Mapping[str, Tensor], others: Iterable[int]) -> None:
        """Write the weights of `step`, and keep of the older files only those of the steps `others`.

        These are deleted first, so that the disk never holds one more: no start resumes from what they belong to.
        """
        self.keep(others)
        write_tensors(self.path(step), {name: tensor.detach() for name, tensor in tensors.items()})

    def keep(self, steps: Iterable[int]) -> None:
        """Delete all files except those of `steps`."""
        names = {self.path(step).name for step in steps}
        for path in self._folder.glob("best-*.safetensors"):
            if _NAME.fullmatch(path.name) and path.name not in names:
                path.unlink()
        for path in self._folder.glob(".best-*.partial"):  # of a process that was killed
            path.unlink()

    def check(self, step: int) -> None:
        """Return if the file of `step`, which a resumed run may need, is there. Raises InputError otherwise."""
        if not self.path(step).is_file():
            what = f"the weights of step {step}, the best so far, are missing."
            raise InputError(Problem(str(self.path(step)), what, "Delete the folder training/ to start again."))

    def read(self, step: int) -> dict[str, Tensor]:
        """The tensors of `step`."""
        from safetensors.torch import load_file

        return load_file(self.path(step))
