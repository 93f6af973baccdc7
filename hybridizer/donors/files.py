"""Small files of a donor's folder, checked before they are read: no pipes, no links out of it, strict JSON."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NoReturn

from hybridizer.checkpoint.sniff import SNIFF_BYTES, describe_foreign
from hybridizer.checkpoint.strict_json import parse_object, shorten
from hybridizer.core.errors import CheckpointError, Problem

TOKENIZER_FILE_PATTERNS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "*.model", "chat_template.jinja", "chat_template.json",
    "additional_chat_templates/*.jinja", "generation_config.json", "LICENSE*", "NOTICE*",
)  # fmt: skip
MAX_BYTES = 100_000_000  # of one file without weights; the largest tokenizer.json of 2026 has 34 million

_MAX_DEPTH = 40
_MAX_INTEGER = 10**38  # tokenizers write 10**30 for "no limit"; beyond 10**308 no float holds it
_RESTORE = "Download the file again, or restore it from its source."


def list_companions(folder: Path, patterns: tuple[str, ...] = TOKENIZER_FILE_PATTERNS) -> dict[str, Path]:
    """The files in `folder` that belong with the weights, by their name relative to it, in the order of the patterns.

    Raises CheckpointError for a folder, a pipe or a device in place of one of them, for a link that leaves the folder,
    and for a file larger than MAX_BYTES.
    """
    here = sorted(folder.iterdir())  # not glob, which skips broken links
    templates = folder / "additional_chat_templates"
    names = {path.name: path for path in here}
    if templates.is_dir():
        names |= {f"{templates.name}/{path.name}": path for path in sorted(templates.iterdir())}
    found: dict[str, Path] = {}
    for pattern in patterns:
        for name, path in names.items():
            if name.count("/") != pattern.count("/") or not fnmatchcase(name, pattern):
                continue
            if path.is_dir() and pattern != name:  # a folder that a wildcard happens to match, such as LICENSES
                continue
            check_companion(folder, path)
            found[name] = path
    return found


def check_companion(folder: Path, path: Path) -> None:
    """Raise CheckpointError unless `path` is a file of moderate size inside `folder`, or a link of a hub cache."""
    try:
        target = path.resolve(strict=True)
        status = target.stat()
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "a link that points to itself"
        _refuse(path, f"cannot be read: {reason}.", _RESTORE)
    root = folder.resolve()
    blobs = root.parents[1] / "blobs" if len(root.parents) > 1 and root.parent.name == "snapshots" else root
    if not (target.is_relative_to(root) or target.is_relative_to(blobs)):
        what = f"is a link to {target}, outside the donor's folder; its content would be copied into the model."
        _refuse(path, what, "Put a copy of the file in the folder, or remove the link.")
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        _refuse(path, f"a file was expected, this is {kind}.", _RESTORE)
    if status.st_size > MAX_BYTES:
        _refuse(path, f"{status.st_size} bytes; no file of this kind exceeds {MAX_BYTES}.", _RESTORE)


def refuse_special_files(folder: Path) -> None:
    """Raise CheckpointError for a pipe, a socket or a device in `folder`: reading one could block forever."""
    for path in folder.iterdir():
        try:
            mode = path.stat().st_mode
        except OSError:
            continue  # a broken link, which is reported where the file is needed
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            _refuse(path, "not a regular file but a pipe, a socket or a device.", "Remove it from the donor's folder.")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in the file `path`, read strictly: see `parse_object`. Infinities are allowed.

    Raises CheckpointError also for valid JSON that is not a plausible setting: nesting deeper than 40 levels, integers
    of more than 38 digits, NaN.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        _refuse(path, f"cannot be read: {error.strerror}.", "Check permissions and the disk.")
    if foreign := describe_foreign(data[:SNIFF_BYTES]):
        _refuse(path, f"not JSON: {foreign[0]}", foreign[1])
    value = parse_object(data, str(path), _RESTORE, infinities=True)
    _check_values(path, value, 0)
    return value


def _check_values(path: Path, value: Any, depth: int) -> None:
    if isinstance(value, int) and abs(value) >= _MAX_INTEGER:
        _refuse(path, f"it holds {shorten(value)}, which no setting needs.", _RESTORE)
    if depth > _MAX_DEPTH:
        _refuse(path, f"it is nested deeper than {_MAX_DEPTH} levels.", _RESTORE)
    if isinstance(value, (Mapping, list)):
        for item in value.values() if isinstance(value, Mapping) else value:
            _check_values(path, item, depth + 1)


def _refuse(path: Path, what: str, fix: str) -> NoReturn:
    raise CheckpointError(Problem(str(path), what, fix))
