"""The arms of a trial in a terminal: before it runs what they cost and could tell, afterwards what each of them is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group

from hybridizer.plan.freeze import trained_parts
from hybridizer.report.cost_tables import duration, readable
from hybridizer.report.tables import TextTable, under


def trial_plan_table(plan: Mapping[str, Any]) -> Group:
    """One row for each arm and one for all, from the plain values of a TrialForecast."""
    arms = plan["arms"]
    timed = all(arm["seconds"] is not None for arm in arms)
    table = TextTable()
    table.add_column("arm")
    table.add_columns(
        "learning rates", "trainings", "trained", "beside layers", "tokens", "FLOP", "peak memory", justify="right"
    )
    if timed:
        table.add_column("time", justify="right")
    for arm in arms:
        table.add_row(*_cells(arm), *([duration(arm["seconds"])] if timed else []))
    totals = {key: sum(arm[key] for arm in arms) for key in ("runs", "tokens", "flop")}
    peak = readable(max(arm["peak_bytes"] for arm in arms), "B")
    row = ["all", "", str(totals["runs"]), "", "", readable(totals["tokens"]), readable(totals["flop"], "FLOP"), peak]
    table.add_row(*row, *([duration(sum(arm["seconds"] for arm in arms))] if timed else []), style="bold")
    about = f"{plan['name']}: a trial of {len(arms)} arms with seeds {', '.join(map(str, plan['seeds']))}"
    return under([about], table, _notes(plan, timed))


def _cells(arm: Mapping[str, Any]) -> list[str]:
    rates = ", ".join(f"{rate:g}" for rate in arm["rates"])
    parts = ", ".join(trained_parts(arm["frozen_parts"])) or "-"
    cost = (readable(arm["tokens"]), readable(arm["flop"], "FLOP"), readable(arm["peak_bytes"], "B"))
    return [arm["name"], rates, str(arm["runs"]), readable(arm["trained_parameters"]), parts, *cost]


def _notes(plan: Mapping[str, Any], timed: bool) -> list[str]:
    what, metric = plan["primary"]
    groups = f"{plan['num_groups']} groups of items" if plan["num_groups"] else "whose text was not read"
    primary = f"primary outcome: {metric} of {what}, {groups}"
    if not plan["num_groups"]:
        told = "The smallest difference that it could tell is known once the text is read."
    elif plan["detectable"] is None:
        told = "The smallest difference that it could tell is not known: this outcome's spread is not assumed."
    else:
        told = (
            f"smallest difference between two arms that it tells with probability {plan['power']:g}: "
            f"{plan['detectable']:.4f}, with {plan['spread']}"
        )
    time = "The time is that of the trainings; evaluation is added." if timed else "`--probe` measures the time."
    return [primary, told, time]


def arm_lines(record: Mapping[str, Any]) -> Iterator[str]:
    """For each arm of a record "hybridizer.trial/1" what it is, and the score of every learning rate."""
    for arm in record["arms"]:
        changed = ", ".join(f"{key}: {_shown(value)}" for key, value in arm["overrides"].items()) or "the recipe itself"
        parts = ", ".join(trained_parts(arm["frozen_parts"]))
        yield f"arm {arm['name']}: {changed}; beside layers {parts or 'nothing'} trains"
        rates = ", ".join(f"{rate['bits_per_byte']:.4f} with {rate['lr']:g}" for rate in arm["rates"])
        yield f"  learning rate {arm['lr']:g}; bits per byte of the selection half: {rates}"


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
