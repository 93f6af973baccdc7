"""Fits the mixers of a plan on the recipe's text, where it has any, before a model with them is written."""

from __future__ import annotations

from hybridizer.core.errors import InputError, Problem
from hybridizer.core.progress import Monitor
from hybridizer.pipeline.calibration import calibration_of, read_calibration
from hybridizer.pipeline.plan import Planned
from hybridizer.plan.layout import LayerSource
from hybridizer.plan.origin import Fitted
from hybridizer.plan.starts import pin_calibration
from hybridizer.splice.fitted import fit_planned, fitted_tensors, read_fitted


def ensure_fitted(planned: Planned, monitor: Monitor) -> None:
    """Return when the fitted tensors of the plan are in the cache; they are fitted where they are not.

    Raises InputError where the text is not what was planned, or too short.
    """
    plan, recipe = planned.plan, planned.resolved.recipe
    if not fitted_tensors(plan) or read_fitted(plan) is not None:
        return
    source = fitted_tensors(plan)[0].source
    assert isinstance(source, Fitted), "all of them are"
    if pin_calibration(recipe, [LayerSource((), fit="ridge")])[0] != source.text:
        what = "its content changed after planning."
        fix = "Run the command again, and do not change the text while it runs."
        raise InputError(Problem(calibration_of(recipe).path, what, fix))
    fit_planned(plan, planned.donors[plan.host], read_calibration(recipe), monitor)
