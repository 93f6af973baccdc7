"""Pickle weights, for recipes that allow them by name: read without running code, rewritten as safetensors."""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from hybridizer.checkpoint.dtypes import SAFETENSORS_NAMES
from hybridizer.checkpoint.layout import OutputTensor
from hybridizer.checkpoint.strict_json import shorten
from hybridizer.checkpoint.writer import write_checkpoint
from hybridizer.core.errors import CheckpointError, Problem
from hybridizer.donors.files import check_companion, read_object

if TYPE_CHECKING:
    import torch

INDEX_NAME: Final = "pytorch_model.bin.index.json"
_SHARD = re.compile(r"pytorch_model-(\d{5})-of-(\d{5})\.bin")
_MAX_SHARD_BYTES = 5_000_000_000
_REFETCH = "Download the file again; it is damaged or was cut short."
_DISTRUST = "Do not load this file; ask its author for safetensors."
_READ_FAULTS = (
    pickle.UnpicklingError, zipfile.BadZipFile, struct.error, EOFError, OSError, ArithmeticError, AssertionError,
    AttributeError, ImportError, LookupError, MemoryError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


def list_pickles(folder: Path) -> list[Path]:
    """The pickle weights in `folder`, all of them: those that the index names, else `pytorch_model*.bin`.

    Empty when there are none. Raises CheckpointError for shards that are missing, and for links out of the folder.
    """
    index = folder / INDEX_NAME
    if index.exists() or index.is_symlink():
        names = set(_read_weight_map(folder).values())
    else:
        names = {file.name for file in folder.glob("pytorch_model*.bin")}
        for name in list(names):
            if match := _SHARD.fullmatch(name):
                count = min(int(match[2]), 100_000)
                names |= {f"pytorch_model-{number:05}-of-{match[2]}.bin" for number in range(1, count + 1)}
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        what = f"{len(missing)} of {len(names)} files are missing: {', '.join(missing[:5])}."
        raise CheckpointError(Problem(str(folder), what, "Download the missing files into the folder."))
    return sorted(folder / name for name in names)


def convert_pickles(files: list[Path], folder: Path) -> None:
    """Rewrite the tensors in `files`, under their own names and in their own dtypes, as safetensors in `folder`.

    torch's restricted unpickler is used: a file that needs more than tensors raises CheckpointError and runs nothing,
    as does one that is cut short, and one whose tensors are not those that the index beside it names. No model is
    built: what the checkpoint lacks stays lacking, for the reader of the result to find. Tensors that share memory are
    written out each on its own.
    """
    found: dict[str, tuple[Path, torch.Tensor]] = {}
    for file in files:
        for name, tensor in _read(file).items():
            if name in found:
                _refuse(file, f"the tensor {shorten(name)} is in {found[name][0].name} as well.", _REFETCH)
            found[name] = (file, tensor)
    if not found:
        _refuse(files[0], "it holds no tensor.", _REFETCH)
    _check_index(files[0].parent, {name: file.name for name, (file, _) in found.items()})
    tensors = [
        OutputTensor(name, _dtype(file, name, tensor), tuple(tensor.shape), _chunks(tensor))
        for name, (file, tensor) in found.items()
    ]
    write_checkpoint(
        folder,
        tensors,
        max_shard_bytes=_MAX_SHARD_BYTES,
        metadata={"format": "pt"},
        on_progress=lambda num_bytes: None,
    )


def _refuse(where: Path, what: str, fix: str) -> NoReturn:
    raise CheckpointError(Problem(str(where), what, fix))


def _read_weight_map(folder: Path) -> Mapping[str, str]:
    index = folder / INDEX_NAME
    check_companion(folder, index)
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        _refuse(index, "weight_map must map tensor names to file names; it does not.", _REFETCH)
    for name, file in weight_map.items():
        if not isinstance(file, str) or not re.fullmatch(r"[\w.-]+\.bin", file, re.ASCII):
            _refuse(index, f"weight_map places {shorten(name)} in {shorten(file)}, not a .bin beside it.", _REFETCH)
    return weight_map


def _check_index(folder: Path, places: Mapping[str, str]) -> None:
    if not (folder / INDEX_NAME).exists():
        return
    weight_map = _read_weight_map(folder)
    wrong = sorted(name for name in weight_map.keys() | places.keys() if weight_map.get(name) != places.get(name))
    if wrong:
        name = wrong[0]
        what = f"it disagrees with the files on {len(wrong)} tensors: {shorten(name)} is in {weight_map.get(name)}, "
        _refuse(folder / INDEX_NAME, f"{what}but was found in {places.get(name)}.", _REFETCH)


def _read(file: Path) -> dict[str, torch.Tensor]:
    import torch

    try:
        is_zip = zipfile.is_zipfile(file)
        if is_zip:
            _check_archive(file)
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        _refuse(file, f"not plain tensors: {_first_line(error)}", _DISTRUST)
    except _READ_FAULTS as error:
        _refuse(file, f"torch cannot read it: {type(error).__name__}: {_first_line(error)}", _REFETCH)
    if not isinstance(content, dict):
        _refuse(file, f"it holds a {type(content).__name__} and not tensors by name.", _DISTRUST)
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            what = f"it holds {shorten(name)}, a {type(value).__name__}, among its tensors."
            _refuse(file, what, "Save only the state_dict of the model, or ask its author for safetensors.")
    return content


def _check_archive(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED:  # mapped into memory, it would be read as if it were not
                raise RuntimeError(f"its part {shorten(info.filename)} is compressed")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")[:200]


def _dtype(file: Path, name: str, tensor: torch.Tensor) -> str:
    import torch

    code = SAFETENSORS_NAMES.get(str(tensor.dtype).removeprefix("torch."))
    if code is None or tensor.layout != torch.strided or tensor.device.type != "cpu":
        what = f"the tensor {shorten(name)} is {tensor.dtype}, {tensor.layout}, on {tensor.device}: not plain numbers."
        _refuse(file, what, "Dequantise it with the tool that made it, or ask for safetensors.")
    size = tensor.numel() * tensor.element_size()
    if size > tensor.untyped_storage().nbytes():
        what = f"the tensor {shorten(name)} of shape {tuple(tensor.shape)} is an expanded view of fewer numbers."
        _refuse(file, what, _DISTRUST)
    return code


def _chunks(tensor: torch.Tensor) -> Callable[[], Iterator[memoryview]]:
    return partial(_bytes_of, tensor)


def _bytes_of(tensor: Any) -> Iterator[memoryview]:
    from hybridizer.models.tensors import tensor_bytes

    if tensor.numel():
        yield tensor_bytes(tensor.detach())
