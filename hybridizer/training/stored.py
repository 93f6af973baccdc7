"""From the tensors of a trained model to those of its checkpoint: adapters merged, the loader's own forms undone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from hybridizer.adapters.causal_lm import as_checkpoint
from hybridizer.adapters.lora import merge_lora_
from hybridizer.errors import Problem, RunError
from hybridizer.training.freeze import FreezePlan, tensor_sha256
from hybridizer.training.spread import gather
from hybridizer.training.state import write_tensors


def as_stored(
    model: nn.Module,
    fates: FreezePlan,
    frozen_sha256: Mapping[str, str],
    names: Collection[str],
    path: Path,
    write: bool,
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Names of the trained tensors and hashes of the frozen ones, both as a checkpoint with these `names` stores them.

    `path` holds the trained tensors under the model's names and is rewritten, where those differ, if `write`. Every
    process calls this. Raises RunError when the model does not give the tensors that the checkpoint has.
    """
    parameters = dict(model.named_parameters())
    adapted = any(hasattr(module, "lora_A") for module in model.modules())
    if not adapted and parameters.keys() <= set(names):
        return tuple(fates.trained), dict(frozen_sha256)
    if adapted:
        trained = merge_lora_(model)
        frozen = {name: p.detach() for name, p in model.named_parameters() if name not in trained}
    else:
        trained = load_file(path)
        frozen = {name: gather(parameters[name].detach()) for name in fates.frozen}
    trained, frozen = as_checkpoint(model, trained), as_checkpoint(model, frozen)
    strangers = sorted((trained.keys() | frozen.keys()) - set(names))
    if strangers:
        what = f"gives tensors that its checkpoint has not: {', '.join(strangers[:5])}."
        raise RunError(Problem(type(model).__name__, what, "This family cannot be trained here yet: please report it."))
    if write:
        write_tensors(path, trained)
    return tuple(trained), {name: tensor_sha256(tensor) for name, tensor in frozen.items()}
