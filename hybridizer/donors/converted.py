"""Donors that were converted to safetensors, kept so that it is done once: found by content, mended where damaged."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Final

from hybridizer.checkpoint.hashing import fingerprint_files
from hybridizer.checkpoint.publish import begin_output
from hybridizer.checkpoint.strict_json import parse_object
from hybridizer.core.cache import cache_folder
from hybridizer.core.errors import CheckpointError
from hybridizer.core.records import content_hash, write_json

FORMAT: Final = 2  # of what is written; counted up whenever that changes
RECORD_NAME: Final = "conversion.json"


def find_converted(
    kind: str, originals: Mapping[str, Path], tools: Iterable[str], convert: Callable[[Path], None] | None
) -> Path | None:
    """The folder that `originals` were converted to, by `convert` (which fills the folder it is given) if need be.

    A conversion is known by the content of every original and by the versions of `tools`, the packages that shape it.
    One whose files are not what they were when it was made is done again. None where it would have to be done and
    `convert` is None.
    """
    target = cache_folder() / kind / _key(originals, tools)
    if _is_whole(target):
        return target
    if convert is None:
        return None
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)
    with begin_output(target) as partial:
        convert(partial)
        write_json(partial / RECORD_NAME, {"files": sorted(_list(partial)), "fingerprint": _fingerprint(partial)})
    return target


def _key(originals: Mapping[str, Path], tools: Iterable[str]) -> str:
    versions = {tool: _version(tool) for tool in tools}
    content = fingerprint_files(originals, cache_folder())
    return content_hash({"format": FORMAT, "originals": content, "tools": versions}).removeprefix("sha256:")


def _version(tool: str) -> str:
    try:
        return metadata.version(tool)
    except metadata.PackageNotFoundError:
        return "absent"


def _list(folder: Path) -> dict[str, Path]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path != folder / RECORD_NAME)
    return {str(path.relative_to(folder)): path for path in paths}


def _fingerprint(folder: Path) -> str:
    return fingerprint_files(dict(sorted(_list(folder).items())), cache_folder())


def _is_whole(folder: Path) -> bool:
    """Whether every file is there and has the content it was written with. Costs a look at sizes and times."""
    record_file = folder / RECORD_NAME
    if folder.is_symlink() or not record_file.is_file():
        return False
    try:
        record = parse_object(record_file.read_bytes(), str(record_file), "")
        return record == {"files": sorted(_list(folder)), "fingerprint": _fingerprint(folder)}
    except (CheckpointError, OSError):
        return False
