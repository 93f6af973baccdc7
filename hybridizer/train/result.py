"""From the tensors of a trained model to those of its checkpoint: adapters merged, the loader's conversions undone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from hybridizer.checkpoint.hashing import hash_file, hash_tensor
from hybridizer.checkpoint.header import TensorEntry
from hybridizer.core.errors import InputError, Problem
from hybridizer.core.files import flush_folder
from hybridizer.models.load import as_checkpoint
from hybridizer.models.sharding import unshard
from hybridizer.models.tensors import torch_dtype
from hybridizer.train.checkpoints import write_tensors
from hybridizer.train.folder import MASTERS, TRAINED
from hybridizer.train.freeze import FreezePlan, tensor_sha256
from hybridizer.train.lora import merge_lora_


def check_storable(model: nn.Module, names: Collection[str]) -> None:
    """Return if every parameter of `model` can be stored under one of `names`; InputError, before any work, if not."""
    shapes = {name: parameter.detach().to("meta") for name, parameter in model.named_parameters()}
    unknown_names = sorted(_stored(model, shapes, names).keys() - set(names))
    if unknown_names:
        what = f"gives tensors that its checkpoint does not have: {', '.join(unknown_names[:5])}."
        raise InputError(Problem(type(model).__name__, what, "This family cannot be trained here yet."))


@dataclass(frozen=True)
class StoredResult:
    """Trained tensors and hashes of the frozen ones, by their names in the checkpoint; `sha256` is of the trained file.

    It is "" in processes that did not write that file.
    """

    trained: tuple[str, ...]
    frozen_sha256: Mapping[str, str]
    sha256: str


def store_result(
    model: nn.Module,
    freeze_plan: FreezePlan,
    frozen_sha256: Mapping[str, str],
    stored: Mapping[str, TensorEntry],
    folder: Path,
    write: bool,
) -> StoredResult:
    """Make trained.safetensors in `folder` from the masters there, under the names of the loaded checkpoint `stored`.

    Only where `write` is set; the masters may stay beside it. Every process calls this. A frozen tensor that was
    loaded in another precision is hashed in its file.
    """
    path = folder / TRAINED
    parameters, names = dict(model.named_parameters()), stored.keys()
    adapted = any(hasattr(module, "lora_A") for module in model.modules())
    plain = parameters.keys() == names and all(
        _as_in_file(parameters[name], stored[name]) for name in freeze_plan.frozen
    )
    if plain and not adapted:
        if write:
            (folder / MASTERS).replace(path)
            flush_folder(folder)
        return StoredResult(tuple(freeze_plan.trained), frozen_sha256, hash_file(path) if write else "")
    if adapted:
        trained = merge_lora_(model)
        frozen = {name: p.detach() for name, p in model.named_parameters() if name not in trained}
    else:
        trained = load_file(folder / MASTERS)
        frozen = {name: unshard(parameters[name].detach()) for name in freeze_plan.frozen}
    trained, frozen = (_stored(model, _with_aliases(model, some, names), names) for some in (trained, frozen))
    if write:
        write_tensors(path, {name: tensor.clone() for name, tensor in trained.items()})  # aliases share memory
    hashes = {
        name: tensor_sha256(tensor) if _as_in_file(tensor, stored[name]) else hash_tensor(stored[name])
        for name, tensor in frozen.items()
    }
    return StoredResult(tuple(trained), hashes, hash_file(path) if write else "")


def _as_in_file(tensor: Tensor, entry: TensorEntry) -> bool:
    return tensor.dtype == torch_dtype(entry.dtype)


def _stored(model: nn.Module, tensors: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """`tensors` under the checkpoint's names, which may lack the prefix that a model with a head adds."""
    found = as_checkpoint(model, tensors)
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    return {
        short if name not in names and (short := name.removeprefix(prefix)) in names else name: tensor
        for name, tensor in found.items()
    }


def _with_aliases(model: nn.Module, tensors: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """`tensors`, and those that the model ties to one of them and its checkpoint holds as well."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    aliases = {
        name: tensors[first[id(parameter)]]
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if first.get(id(parameter), name) != name and name in names and first[id(parameter)] in tensors
    }
    return {**tensors, **aliases}
