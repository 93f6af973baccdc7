"""Verify a finished model folder, with its plan and its donors if they are on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

from hybridizer.checkpoint.reader import Checkpoint
from hybridizer.core.errors import CheckpointError, DonorError, RecipeError, VerificationError
from hybridizer.core.progress import Monitor
from hybridizer.core.records import read_json
from hybridizer.donors.donor import Donor
from hybridizer.donors.open import Access, open_donor
from hybridizer.donors.reference import parse_reference
from hybridizer.pipeline.faults import reporting_os_errors
from hybridizer.pipeline.run import RunFolder, find_model
from hybridizer.plan.manifest import Manifest
from hybridizer.plan.plan import SCHEMA
from hybridizer.plan.stored import StoredPlan, read_stored_plan
from hybridizer.recipe.load import load_recipe
from hybridizer.recipe.models import Recipe
from hybridizer.splice.provenance import check_origins, check_plan
from hybridizer.splice.remade import check_made
from hybridizer.splice.verify import Proof, verify


@reporting_os_errors()
def verify_folder(folder: Path, monitor: Monitor, *, load: bool) -> tuple[Manifest, tuple[Proof, ...]]:
    """Verify a model folder, or the model of a run: its files, what its manifest says, and that it computes.

    The manifest is compared with plan.json beside the model's folder, copied tensors with their donors, and the logits
    of an identity splice with its donor's. The proofs name what is missing. Raises VerificationError.
    """
    model = find_model(folder)
    run = RunFolder.of_model(model.absolute())
    stored, missing = _read_plan(run, model)
    recipe = stored.recipe if stored else _read_recipe(run)

    @cache
    def find_donor(name: str) -> Donor | None:
        return _find_donor(name, recipe, monitor)

    def check_provenance(manifest: Manifest, checkpoint: Checkpoint) -> Iterator[Proof]:
        yield check_plan(model, manifest, checkpoint, stored.plan if stored else None, missing)
        yield check_origins(model, manifest, checkpoint, find_donor, monitor)
        plan = stored.plan if stored else None
        yield from check_made(model, manifest, checkpoint, plan, find_donor, monitor, load=load)

    return verify(model, monitor, find_donor=find_donor, load=load, check_provenance=check_provenance)


def _read_plan(run: RunFolder, model: Path) -> tuple[StoredPlan | None, str]:
    """The plan of the run, or None and the reason. Raises VerificationError for one that was edited or is damaged."""
    if model.absolute() not in (run.model, run.spliced) or not run.plan.is_file():
        return None, "there is no plan.json beside the model's folder"
    try:
        value = read_json(run.plan)
        schema = value.get("schema") if isinstance(value, dict) else None
        if schema not in (None, SCHEMA):
            return None, f"plan.json is of schema {schema!r}, and this version reads {SCHEMA!r}"
        return read_stored_plan(run.plan), ""
    except CheckpointError as error:
        raise VerificationError(*error.problems) from error


def _read_recipe(run: RunFolder) -> Recipe | None:
    try:
        return load_recipe(run.recipe) if run.recipe.is_file() else None
    except RecipeError:
        return None


def _find_donor(name: str, recipe: Recipe | None, monitor: Monitor) -> Donor | None:
    """The donor that the run's recipe names, if it is on this machine and can be read."""
    entry = next((entry for entry in recipe.donors if entry.name == name), None) if recipe else None
    if recipe is None or entry is None:
        return None
    try:
        reference = parse_reference(entry.source, recipe.folder)
        access = Access(fetch=False, fingerprint=True, allow=entry.allow)
        donor = open_donor(name, reference, access, f"donor '{name}'", monitor)
    except (DonorError, CheckpointError):
        return None
    return donor if isinstance(donor, Donor) else None
