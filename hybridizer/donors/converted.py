"""A cache of donors converted to safetensors: found by the content of the originals, made again where damaged."""

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

FORMAT: Final = 2  # version of what is written; increased with every change of it
RECORD_NAME: Final = "conversion.json"


def find_converted(
    kind: str, originals: Mapping[str, Path], tools: Iterable[str], convert: Callable[[Path], None] | None
) -> Path | None:
    """The folder with the converted `originals`; where it is missing, `convert` fills the folder that it is given.

    The cache key is the content of every original and the versions of `tools`, the packages that affect the result. A
    conversion whose files changed since it was made is made again. None where it is missing and `convert` is None.
    """
    target = cache_folder() / kind / _key(originals, tools)
    if _is_intact(target):
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


def _is_intact(folder: Path) -> bool:
    """Whether every file has the content it was written with. Reads sizes and times; contents are hashed once."""
    record_file = folder / RECORD_NAME
    if folder.is_symlink() or not record_file.is_file():
        return False
    try:
        record = parse_object(record_file.read_bytes(), str(record_file), "")
        return record == {"files": sorted(_list(folder)), "fingerprint": _fingerprint(folder)}
    except (CheckpointError, OSError):
        return False
