"""Pickle weights, for recipes that allow them by name: read without running code, rewritten as safetensors."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

from hybridizer.core.errors import CheckpointError, Problem


def convert_pickles(source: Path, folder: Path) -> None:
    """Rewrite `source`'s pytorch_model*.bin as one or more safetensors in `folder`, with its other small files.

    torch's restricted unpickler is used: a file that needs more than tensors raises CheckpointError and runs nothing.
    Tensors that share memory are written out each on its own, except names config ties, which transformers drops.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from hybridizer.models.check import LOAD_FAULTS
    from hybridizer.models.quiet import without_bars

    for file in sorted(source.glob("pytorch_model*.bin")):
        try:
            torch.load(file, map_location="meta", weights_only=True, mmap=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            what = f"not plain tensors: {str(error).splitlines()[0][:200]}"
            raise CheckpointError(
                Problem(str(file), what, "Do not load this file; ask its author for safetensors.")
            ) from None
    try:
        model = AutoModelForCausalLM.from_pretrained(source, dtype="auto", local_files_only=True, weights_only=True)
    except LOAD_FAULTS as error:
        what = f"transformers cannot load it: {type(error).__name__}: {str(error)[:300]}"
        raise CheckpointError(Problem(str(source), what, "Ask the author for safetensors.")) from error
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix in (".json", ".txt", ".model", ".jinja") and "index" not in path.name:
            shutil.copyfile(path, folder / path.name)
    with without_bars():
        model.save_pretrained(folder)
