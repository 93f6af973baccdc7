"""Verify a finished model folder, with its donors where they are at hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hybridizer.core.errors import DonorError
from hybridizer.core.progress import Monitor
from hybridizer.donors.donor import Donor
from hybridizer.donors.open import Access, open_donor
from hybridizer.donors.reference import parse_reference
from hybridizer.pipeline.run import RunFolder, find_model
from hybridizer.plan.manifest import Manifest
from hybridizer.recipe.load import load_recipe
from hybridizer.splice.verify import Proof, verify


def verify_folder(folder: Path, monitor: Monitor, *, load: bool) -> tuple[Manifest, tuple[Proof, ...]]:
    """Verify a model folder, or the model of a run; an identity splice against its donor, where that is at hand."""
    model = find_model(folder)
    return verify(model, monitor, find_donor=_finder(model, monitor), load=load)


def _finder(model: Path, monitor: Monitor) -> Callable[[str], Donor | None]:
    def find(name: str) -> Donor | None:
        resolved = RunFolder.of_model(model).recipe
        if not resolved.is_file():
            return None
        recipe = load_recipe(resolved)
        try:
            reference = parse_reference(recipe.donor(name).source, recipe.folder)
            access = Access(fetch=False, fingerprint=True, allow=recipe.donor(name).allow)
            donor = open_donor(name, reference, access, f"donor '{name}'", monitor)
            return donor if isinstance(donor, Donor) else None
        except DonorError:
            return None

    return find
