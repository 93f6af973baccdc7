"""The cost of a training as a table for a terminal, from the plain object of the contract "hybridizer.cost/1"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.text import Text

from hybridizer.report.captions import one_line
from hybridizer.report.tables import TextTable, under

PARTS = ("process", "weights", "teacher", "masters", "gradients", "optimizer", "activations", "loss")
_STEPS = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def cost_table(cost: Mapping[str, Any]) -> Group:
    """One column for the recipe's choice and one for each alternative: parameters, operations, memory by part."""
    arms = [cost["asked"], *cost["arms"]]
    table = TextTable()
    table.add_column("", min_width=11)  # the longest single word below
    table.add_columns("this recipe", *(f"freeze {arm['name']}" for arm in cost["arms"]), justify="right")
    table.add_row("layers that train", *(arm["trained_layers"] for arm in arms))
    table.add_row("trained parameters", *(readable(arm["trained_parameters"]) for arm in arms))
    table.add_row("frozen parameters", *(readable(arm["frozen_parameters"]) for arm in arms))
    table.add_row("per token", *(readable(arm["total_token_flops"], "FLOP") for arm in arms))
    table.add_row("of full training", *(f"{arm['share_of_full_flops']:.0%}" for arm in arms), end_section=True)
    for part in PARTS:
        if any(arm["memory"].get(part) for arm in arms):  # records of before have no teacher
            table.add_row(part, *(readable(arm["memory"].get(part, 0), "B") for arm in arms))
    table.add_row("peak memory", *(readable(arm["peak_bytes"], "B") for arm in arms), style="bold")
    about = f"{cost['batch_tokens']} tokens at a time in {cost['compute_dtype']} on {cost['device']}"
    return under([about], table, [cost["sentence"], *cost["notes"]])


def stages_table(cost: Mapping[str, Any]) -> Group:
    """One row for each stage of a training: tokens, steps, what trains, learning rate, operations, memory."""
    table = TextTable()
    for name in ("stage", "tokens", "steps", "layers", "parts", "parameters", "rate", "operations", "peak"):
        table.add_column(name, justify="left" if name in ("stage", "layers", "parts") else "right")
    for stage in cost["stages"]:
        table.add_row(
            one_line(stage["name"], 30),
            readable(stage["tokens"]),
            f"{stage['steps']:,}",
            stage["trained_layers"],
            ", ".join(stage["trained_parts"]) or "none",
            readable(stage["trained_parameters"]),
            f"{stage['lr']:.3g}",
            readable(stage["flops"], "FLOP"),
            readable(stage["peak_bytes"], "B"),
        )
    return under(["stages of the training, and what trains in each"], table, [])


def expectation_lines(expected: Mapping[str, Any]) -> Text:
    """The measured step time with the time of the whole run, and the memory, in two lines."""
    return Text(
        f"expected time {duration(expected['run_seconds'])}: {expected['step_seconds']:.2f} s per step, "
        f"{expected['tokens_per_second']:.0f} tokens/s, probed on {expected['device']} in {expected['compute_dtype']}\n"
        f"peak memory {readable(expected['measured_peak_bytes'], 'B')} in the probe, "
        f"{readable(expected['estimated_peak_bytes'], 'B')} estimated"
    )


def readable(value: float, unit: str = "") -> str:
    """Three figures and a decimal prefix, such as "67.3 M" or "1.12 GFLOP"."""
    scale, prefix = next(((s, p) for s, p in _STEPS if abs(value) >= s), (1, ""))
    figure = value / scale
    digits = 0 if figure >= 100 or not prefix else 1 if figure >= 10 else 2
    return f"{figure:.{digits}f} {prefix}{unit}".rstrip()


def duration(seconds: float) -> str:
    """Two units at most, such as "3 h 20 min" or "45 s"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"
