"""The folder for what can be computed again: converted donors, file hashes, traces."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path

# What numpy.load raises for a damaged .npz file. RuntimeError: a bit that says compressed by another method, encrypted.
NPZ_DAMAGE = (OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error)


def cache_folder() -> Path:
    """HYBRIDIZER_CACHE, or `hybridizer` in XDG_CACHE_HOME (by default ~/.cache). May not exist yet."""
    own = os.environ.get("HYBRIDIZER_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hybridizer"
