"""Fits the mixers of a plan on the recipe's text, where it has any, before a model with them is written."""

from __future__ import annotations

from collections.abc import Iterator

from hybridizer.core.errors import InputError, Problem
from hybridizer.core.progress import Monitor
from hybridizer.data.documents import BadRecords, find_files, read_documents
from hybridizer.pipeline.plan import Planned
from hybridizer.plan.layout import LayerSource
from hybridizer.plan.origin import Fitted
from hybridizer.plan.starts import find_calibration, pin_calibration
from hybridizer.recipe.models import Calibration, DataEntry, Recipe
from hybridizer.splice.fitted import fit_planned, fitted_tensors, read_fitted


def ensure_fitted(planned: Planned, monitor: Monitor) -> None:
    """Return when the fitted tensors of the plan are in the cache; they are fitted where they are not.

    Raises InputError where the text is not what was planned, or too short.
    """
    plan, recipe = planned.plan, planned.resolved.recipe
    if not fitted_tensors(plan) or read_fitted(plan) is not None:
        return
    source, text = fitted_tensors(plan)[0].source, find_calibration(recipe)
    assert isinstance(source, Fitted) and text is not None, "checked when it was planned"
    if pin_calibration(recipe, [LayerSource((), fit="ridge")])[0] != source.text:
        what = "its content changed after planning."
        fix = "Run the command again, and do not change the text while it runs."
        raise InputError(Problem(text.path, what, fix))
    fit_planned(plan, planned.donors[plan.host], _read(recipe, text), monitor)


def _read(recipe: Recipe, text: Calibration) -> Iterator[str]:
    for path in find_files(text.path, recipe.folder):
        yield from read_documents(path, text.field, DataEntry.max_document_bytes, BadRecords())
