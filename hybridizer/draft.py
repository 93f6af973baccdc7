"""What can be known before anything is built: a recipe checked without its weights, and planned with them at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hybridizer.core.progress import Monitor
from hybridizer.donors.donor import Donor
from hybridizer.donors.open import Awaited, open_donors, scan_donors
from hybridizer.plan.cost import Cost, CostRequest, estimate_cost
from hybridizer.plan.freeze import asked_to_freeze
from hybridizer.plan.layout import lay_out
from hybridizer.plan.make import make_plan
from hybridizer.plan.plan import Evidence, Plan
from hybridizer.plan.training import pin_datasets, plan_training
from hybridizer.recipe.load import load_recipe
from hybridizer.recipe.recipe import Recipe
from hybridizer.settle import Settled, guess, settle
from hybridizer.train.timing import Expectation, expect_time


@dataclass(frozen=True)
class Checked:
    """What `check` found good. `plan` is None while a donor still has to be fetched, which `waiting` names."""

    recipe: Recipe
    plan: Plan | None
    waiting: tuple[str, ...]


def check(path: Path, overrides: tuple[str, ...], monitor: Monitor, *, deep: bool) -> Checked:
    """Everything that can be known of a recipe without its weights; with `deep`, the weights are scanned for NaN too.

    Raises RecipeError, DonorError, CheckpointError or PlanError with all problems of the first stage that has any.
    """
    recipe = load_recipe(path, overrides)
    donors = open_donors(recipe, monitor, fetch=deep, fingerprint=False)
    ready = {name: donor for name, donor in donors.items() if isinstance(donor, Donor)}
    if len(ready) < len(donors):
        _check_ranges(recipe, donors)
        return Checked(recipe, None, tuple(sorted(donors.keys() - ready.keys())))
    if deep:
        scan_donors(ready, monitor)
    guessed = guess(recipe)
    return Checked(recipe, _plan(guessed, ready, Evidence(), pin=False), ())


@dataclass(frozen=True)
class Planned:
    """A recipe with every choice made, its plan, and its donors."""

    settled: Settled
    plan: Plan
    donors: Mapping[str, Donor]


def plan_recipe(path: Path, overrides: tuple[str, ...], monitor: Monitor) -> Planned:
    """Plan a recipe, every donor and text pinned by content. Fetches, dequantises and traces donors where asked."""
    recipe = load_recipe(path, overrides)
    donors = _all(open_donors(recipe, monitor, fetch=True, fingerprint=True))
    settled = settle(pin_datasets(recipe), donors, monitor)
    return Planned(settled, _plan(settled.recipe, donors, settled.evidence, pin=True), donors)


def _plan(recipe: Recipe, donors: Mapping[str, Donor], evidence: Evidence, *, pin: bool) -> Plan:
    plan = make_plan(recipe, donors, evidence)
    return plan_training(recipe, plan, donors[plan.host].anatomy, pin=pin)


def price(planned: Planned, device: str) -> Cost | None:
    """What the training that was planned will cost on a `device` of that kind (cpu or cuda); None where nothing trains.

    No weight is read, no torch is imported.
    """
    request = _cost_request(planned, device)
    return None if request is None else estimate_cost(planned.plan, request)


def expect(planned: Planned, device: str) -> Expectation | None:
    """How long that training will take here, from a few real steps on random weights; None where nothing trains."""
    recipe, request = planned.settled.recipe, _cost_request(planned, device)
    if request is None or recipe.train is None:
        return None
    from hybridizer.train.run import loop_settings

    num_steps = -(-recipe.train.tokens // (recipe.train.sequence * recipe.train.rows_per_step))
    if recipe.train.max_steps is not None:
        num_steps = min(num_steps, recipe.train.max_steps)
    settings = loop_settings(recipe.train, recipe.seed)
    return expect_time(planned.plan, request, settings, packed=recipe.train.packed, num_steps=num_steps)


def _cost_request(planned: Planned, device: str) -> CostRequest | None:
    train, plan = planned.settled.recipe.train, planned.plan
    if train is None or plan.train is None:
        return None
    rows = train.rows_per_batch or train.rows_per_step
    return CostRequest(
        freeze=asked_to_freeze(train),
        boundary=plan.train.boundary,
        sequence=train.sequence,
        rows_per_batch=rows,
        batches_per_step=-(-train.rows_per_step // rows),
        precision=train.precision,
        optimizer=train.optimizer,
        recompute_layers=train.recompute_layers,
        device=device,
        lora=train.lora,
    )


def _check_ranges(recipe: Recipe, donors: Mapping[str, Donor | Awaited]) -> None:
    """Check the layers that are asked for, where every donor's depth is known."""
    depths = {name: d.anatomy.num_layers if isinstance(d, Donor) else d.num_layers for name, d in donors.items()}
    known = {name: depth for name, depth in depths.items() if depth is not None}
    if len(known) == len(depths):
        lay_out(guess(recipe), known)


def _all(donors: Mapping[str, Donor | Awaited]) -> dict[str, Donor]:
    found = {name: donor for name, donor in donors.items() if isinstance(donor, Donor)}
    assert len(found) == len(donors), "donors that may be fetched are there afterwards"
    return found
