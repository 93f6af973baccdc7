"""How many training tokens a source has: kept in the cache once it was tokenised, so that a plan can show epochs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybridizer.core.cache import cache_folder
from hybridizer.core.errors import CheckpointError
from hybridizer.core.records import content_hash, read_json, write_json

# Up to 4 epochs over the same text are nearly as good as fresh text, and the value of more decays (arXiv 2305.16264).
GOOD_EPOCHS = 4


def count_key(tokenizer_files: Mapping[str, str], content: Any, heldout_ratio: float) -> str:
    """A name for the count of a source: by its tokenizer's files, its own `content` and what is held out of it."""
    return content_hash([tokenizer_files, content, heldout_ratio]).removeprefix("sha256:")


def read_count(key: str) -> int | None:
    """The tokens of the source's documents that train; None where it was not tokenised here."""
    try:
        count = read_json(_path(key)) if _path(key).is_file() else None
    except CheckpointError:  # damaged: it is written again with the next build
        return None
    return count if isinstance(count, int) and count > 0 else None


def write_count(key: str, num_tokens: int) -> None:
    """Keep the count of a source for `read_count`."""
    _path(key).parent.mkdir(parents=True, exist_ok=True)
    write_json(_path(key), num_tokens)


def warn_of_epochs(name: str, epochs: float, num_tokens: int) -> str | None:
    """A warning where training goes more than GOOD_EPOCHS times over the `num_tokens` of the source `name`."""
    if epochs <= GOOD_EPOCHS:
        return None
    return (
        f"{name}: {epochs:.1f} epochs over {num_tokens:,} tokens; up to {GOOD_EPOCHS} are nearly as good as fresh text "
        "(arXiv 2305.16264), more add little and overfit: give more text, or lower `tokens` or its `weight`"
    )


def _path(key: str) -> Path:
    return cache_folder() / "token-counts" / f"{key}.json"
