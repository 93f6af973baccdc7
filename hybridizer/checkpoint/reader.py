"""A checkpoint folder as Hugging Face lays it out: which file holds which tensor, with nothing missing or left over."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from hybridizer.checkpoint.header import MAX_HEADER_BYTES, Header, TensorEntry, read_header
from hybridizer.checkpoint.sniff import SNIFF_BYTES, describe_foreign
from hybridizer.checkpoint.strict_json import parse_object, shorten
from hybridizer.core.errors import CheckpointError, Problem

SINGLE_NAME: Final = "model.safetensors"
INDEX_NAME: Final = "model.safetensors.index.json"
PICKLE_SUFFIXES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")

_LISTED = 8  # names shown of a long list
_BAD_INDEX = "The program that wrote the index made an error: download the checkpoint again, or save it again."


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Every tensor of a checkpoint folder by name; `files` are the weight files, sorted by name."""

    folder: Path
    tensors: dict[str, TensorEntry]
    files: tuple[Path, ...]
    index: Path | None


def open_checkpoint(folder: Path) -> Checkpoint:
    """The tensors of `folder`: those of `model.safetensors`, or of the shards that the index beside them names.

    Reads headers only. Files may be symbolic links, as in the hub cache. Raises CheckpointError when there are no
    such files (pickle weights are never read), when shards are missing, when the index names a file outside the
    folder, when index and shards disagree about a tensor, or when a single file and an index contradict each other.
    """
    try:
        return _open(folder)
    except OSError as error:
        _refuse(folder, f"cannot be read: {error.strerror} ({error.filename}).", "Check its permissions and the disk.")


def _open(folder: Path) -> Checkpoint:
    if not folder.is_dir():
        found = "this is a file" if folder.exists() else "there is no such folder"
        _refuse(folder, f"a checkpoint folder was expected, {found}.", "Give the folder that holds config.json.")
    index = folder / INDEX_NAME
    single = folder / SINGLE_NAME
    if index.is_symlink() or index.exists():
        weight_map = _read_weight_map(index)
        if single.exists() and set(weight_map.values()) != {SINGLE_NAME}:
            what = f"holds both {SINGLE_NAME} and an index of other files; which of them is the model is not known."
            _refuse(folder, what, f"Remove the stale one: {SINGLE_NAME}, or {INDEX_NAME} with its shards.")
        return _open_sharded(folder, index, weight_map)
    if single.is_symlink() or single.exists():
        return Checkpoint(folder, read_header(single).tensors, (single,), None)
    _refuse_without_weights(folder)


def _refuse(where: Path, what: str, fix: str) -> NoReturn:
    raise CheckpointError(Problem(str(where), what, fix))


def _list_names(names: list[str]) -> str:
    shown = ", ".join(shorten(name) for name in names[:_LISTED])
    return shown if len(names) <= _LISTED else f"{shown} and {len(names) - _LISTED} more"


def _read_weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> file name, every file name known to be a plain name."""
    num_bytes = index.stat().st_size
    if num_bytes > MAX_HEADER_BYTES:
        _refuse(index, f"an index of {num_bytes} bytes; none exceeds {MAX_HEADER_BYTES}.", _BAD_INDEX)
    data = index.read_bytes()
    if foreign := describe_foreign(data[:SNIFF_BYTES]):
        _refuse(index, f"not an index: {foreign[0]}", foreign[1])
    weight_map = parse_object(data, str(index), _BAD_INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        _refuse(index, "weight_map must map tensor names to file names; it does not.", _BAD_INDEX)
    for name, file in weight_map.items():
        if not isinstance(file, str) or not _is_plain_name(file):
            what = (
                f"weight_map places tensor {shorten(name)} in {shorten(file)}, which is not a file name in this folder."
            )
            _refuse(
                index, what, "Do not use this checkpoint unless you know who wrote it; shards lie beside their index."
            )
        if not file.endswith(".safetensors"):
            what = f"weight_map places tensor {shorten(name)} in {shorten(file)}, which is not a safetensors file."
            _refuse(index, what, "Convert the checkpoint to safetensors; pickles can run code and are not read.")
    return weight_map


def _is_plain_name(file: str) -> bool:
    return file not in {"", ".", ".."} and not any(character in file for character in "/\\\0")


def _open_sharded(folder: Path, index: Path, weight_map: dict[str, str]) -> Checkpoint:
    files = sorted(set(weight_map.values()))
    missing = [file for file in files if not (folder / file).exists()]
    if missing:
        what = f"{len(missing)} of {len(files)} files are missing: {_list_names(missing)}."
        _refuse(index, what, "Download the missing files into the folder.")
    headers = {file: read_header(folder / file) for file in files}
    problems = [_compare(index, file, header, weight_map) for file, header in headers.items()]
    found = [problem for problem in problems if problem]
    if found:
        raise CheckpointError(*found)
    tensors = {name: headers[file].tensors[name] for name, file in weight_map.items()}
    return Checkpoint(folder, tensors, tuple(folder / file for file in files), index)


def _compare(index: Path, file: str, header: Header, weight_map: dict[str, str]) -> Problem | None:
    expected = {name for name, place in weight_map.items() if place == file}
    lacking, extra = sorted(expected - set(header.tensors)), sorted(set(header.tensors) - expected)
    parts = []
    if lacking:
        parts.append(f"{file} lacks {len(lacking)} tensors that the index places there: {_list_names(lacking)}")
    if extra:
        parts.append(f"{file} holds {len(extra)} tensors that the index does not place there: {_list_names(extra)}")
    fix = "Index and shards come from different saves: download or save the checkpoint again."
    return Problem(str(index), "; ".join(parts) + ".", fix) if parts else None


def _refuse_without_weights(folder: Path) -> NoReturn:
    names = sorted(entry.name for entry in folder.iterdir())
    pickles = [name for name in names if name.endswith(PICKLE_SUFFIXES)]
    others = [name for name in names if name.endswith(".safetensors")]
    if others:
        what = f"neither {SINGLE_NAME} nor {INDEX_NAME} is here, only {_list_names(others)}."
        _refuse(folder, what, "Download the missing index; a single file must be called model.safetensors.")
    if pickles:
        what = (
            f"only pickle weights are here ({_list_names(pickles)}); reading a pickle can run code, so it is not done."
        )
        _refuse(folder, what, "Convert them to safetensors in a place you trust, or take the safetensors revision.")
    what = f"neither {SINGLE_NAME} nor {INDEX_NAME} is here; the folder holds {_list_names(names) or 'nothing'}."
    _refuse(folder, what, "Give a folder with safetensors weights.")
