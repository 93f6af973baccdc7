"""A donor that is open for reading: what `open_donor` returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridizer.checkpoint.reader import Checkpoint
from hybridizer.families.structure import Structure


@dataclass(frozen=True)
class Donor:
    """A donor's files, their content, and what pins it.

    `reference` is the user's text; `revision` the commit a hub reference was resolved to; `fingerprint` is
    `sha256:<hex>` over the content of `pinned_files`, None where it was not requested. `tokenizer_files` are the
    tokenizer, template, generation and licence files by name. `allow` is what the recipe permits for this donor.
    With `from_config` there are no weights: `checkpoint` is what the config describes, to plan with.
    """

    name: str
    reference: str
    revision: str | None
    folder: Path
    config: Mapping[str, Any]
    checkpoint: Checkpoint
    structure: Structure
    tokenizer_files: Mapping[str, Path]
    pinned_files: Mapping[str, Path]
    fingerprint: str | None = None
    license: str | None = None
    allow: tuple[str, ...] = ()
    from_config: bool = False

    @property
    def main_dtype(self) -> str:
        """The safetensors dtype that holds most of the donor's bytes, such as "BF16"."""
        num_bytes: dict[str, int] = {}
        for entry in self.checkpoint.tensors.values():
            num_bytes[entry.dtype] = num_bytes.get(entry.dtype, 0) + entry.num_bytes
        return max(sorted(num_bytes), key=lambda dtype: num_bytes[dtype])
