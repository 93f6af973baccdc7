"""How the layers of a recipe are found: one function for each way, and one dictionary of them.

A recipe writes its layers down, leaves donors or the boundary to evidence, leaves all of it to a scan, or says how many
layers get another mixer and where. A new way is a function here, an entry in WAYS, and its case in `way_of`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeAlias

from hybridizer.core.progress import Monitor
from hybridizer.donors.donor import Donor
from hybridizer.pipeline.layout import ResolvedLayout, as_written, by_evidence
from hybridizer.pipeline.scan_layers import choose_layers
from hybridizer.pipeline.swap import choose_swapped
from hybridizer.recipe.models import Recipe

Way: TypeAlias = Callable[[Recipe, Mapping[str, Donor], Monitor], ResolvedLayout]


def way_of(recipe: Recipe) -> str:
    """The key in WAYS of the way in which the layers of `recipe` are found."""
    if recipe.layout.candidates is not None:
        return "scan"
    if recipe.layout.swap is not None:
        return "swap"
    return "evidence" if recipe.trace is not None or recipe.layout.needs_trace else "written"


def by_scan(recipe: Recipe, donors: Mapping[str, Donor], monitor: Monitor) -> ResolvedLayout:
    """The recipe with the layers that a scan chose, its reasons first. Raises what `choose_layers` raises."""
    chosen, reasons = choose_layers(recipe, donors, monitor)
    resolved = WAYS[way_of(chosen)](chosen, donors, monitor)
    evidence = replace(resolved.evidence, reasons=(*reasons, *resolved.evidence.reasons))
    return replace(resolved, evidence=evidence)


def by_swap(recipe: Recipe, donors: Mapping[str, Donor], monitor: Monitor) -> ResolvedLayout:
    """The recipe with the layers of its swap chosen, the reason first. Raises what `choose_swapped` raises."""
    chosen, found = choose_swapped(recipe, donors, monitor)
    resolved = WAYS[way_of(chosen)](chosen, donors, monitor)
    reasons, warnings = (*found.reasons, *resolved.evidence.reasons), (*found.warnings, *resolved.evidence.warnings)
    return replace(resolved, evidence=replace(resolved.evidence, reasons=reasons, warnings=warnings, swap=found.swap))


WAYS: Mapping[str, Way] = {"written": as_written, "evidence": by_evidence, "scan": by_scan, "swap": by_swap}
