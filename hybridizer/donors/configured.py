"""A checkpoint that is not there, as its config.json describes it: names, shapes and dtypes, to plan with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybridizer.checkpoint.dtypes import DTYPE_BITS
from hybridizer.checkpoint.header import TensorEntry
from hybridizer.checkpoint.reader import SINGLE_NAME, Checkpoint


def has_weights(folder: Path) -> bool:
    """Whether a weight file of a checkpoint is in `folder`."""
    return any(folder.glob("*.safetensors"))


def describe_checkpoint(folder: Path, config: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint that transformers would write for a new model of `config`, without a file.

    Entries name the file that would hold the tensors, and their places in it; nothing may read them. Real checkpoints
    may hold more, such as a head that is tied. Imports torch. Raises DonorError where transformers cannot build it.
    """
    from hybridizer.models.load import checkpoint_shapes

    tensors, begin = {}, 0
    for name, (dtype, shape) in checkpoint_shapes(config, str(folder / "config.json")).items():
        end = begin + math.prod(shape) * DTYPE_BITS[dtype] // 8
        tensors[name] = TensorEntry(name, dtype, shape, folder / SINGLE_NAME, begin, end)
        begin = end
    return Checkpoint(folder, tensors, (), None)
