"""Texts that donors write, which a build and a choice by measurement need on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hybridizer.core.progress import Monitor
from hybridizer.data.sampling import Writer, read_prompts, write_texts
from hybridizer.donors.donor import Donor
from hybridizer.plan.generated import generated_folder
from hybridizer.recipe.models import DataEntry


def write_donor_text(entry: DataEntry, donors: Mapping[str, Donor], folder: Path, monitor: Monitor) -> None:
    """Let a donor write the text of `entry`, where `generate` asks for it and the cache does not have it.

    Planning has given the entry its path; prompts count from `folder`. Raises what `write_texts` raises.
    """
    if entry.generate is None or entry.path is None or Path(entry.path).is_file():
        return
    donor = donors[entry.generate.from_]
    writer = Writer(donor.name, donor.folder, "remote_code" in donor.allow)
    prompts = read_prompts(entry.generate.prompts, folder)
    write_texts(writer, prompts, entry.generate, generated_folder(entry.generate.identity), monitor)
