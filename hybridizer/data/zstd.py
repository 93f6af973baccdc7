"""Reading .zst files with `compression.zstd` of Python 3.14, or with its backport for the versions before."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any, BinaryIO, cast

PACKAGE = "backports.zstd"
MAX_WINDOW_LOG = 31  # what `zstd --long=31` writes, and takes 2 GiB to read; without it a reader stops at 27


def is_installed() -> bool:
    """Whether .zst files can be read here."""
    return sys.version_info >= (3, 14) or (
        importlib.util.find_spec("backports") is not None and importlib.util.find_spec(PACKAGE) is not None
    )


def open_zstandard(path: Path) -> BinaryIO:
    """The text of `path`, of all its frames, as a binary file.

    Reading raises EOFError when the file is cut off, and one of `errors` when it is damaged.
    """
    zstd = _module()
    return cast(BinaryIO, zstd.ZstdFile(path, options={zstd.DecompressionParameter.window_log_max: MAX_WINDOW_LOG}))


def errors() -> tuple[type[Exception], ...]:
    """What reading raises for a damaged file; nothing where no such file can be read."""
    return (_module().ZstdError,) if is_installed() else ()


def _module() -> Any:
    return importlib.import_module("compression.zstd" if sys.version_info >= (3, 14) else PACKAGE)
