"""The text that mixers of a recipe are fitted and scored on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hybridizer.core.progress import Monitor
from hybridizer.data.documents import BadRecords, find_files, read_documents
from hybridizer.donors.donor import Donor
from hybridizer.pipeline.donor_texts import write_donor_text
from hybridizer.plan.starts import find_calibration, first_source
from hybridizer.recipe.models import Calibration, DataEntry, Recipe


def calibration_of(recipe: Recipe) -> Calibration:
    """Which text it is; planning has checked that there is one."""
    text = find_calibration(recipe)
    assert text is not None, "checked when it was planned"
    return text


def write_calibration(recipe: Recipe, donors: Mapping[str, Donor], monitor: Monitor) -> None:
    """Let a donor write the text, where it is generated and not on disk yet."""
    entry = first_source(recipe)
    if recipe.layout.calibration is None and entry is not None:
        write_donor_text(entry, donors, recipe.folder, monitor)


def read_calibration(recipe: Recipe) -> Iterator[str]:
    """The documents that mixers of `recipe` are fitted on; planning has checked that there are some."""
    text = calibration_of(recipe)
    for path in find_files(text.path, recipe.folder):
        yield from read_documents(path, text.field, DataEntry.max_document_bytes, BadRecords())
