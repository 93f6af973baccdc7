"""How records look in a terminal: tables and lines, for the command line to print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

from rich.markup import escape
from rich.table import Table

from hybridizer.plan.manifest import Manifest
from hybridizer.plan.plan import LayerRow, Plan, TrainPlan, donor_layers
from hybridizer.plan.tensors import UNUSED_LAYER
from hybridizer.recipe.layers import format_layers
from hybridizer.splice.verify import Proof


def plan_table(plan: Plan) -> Table:
    """One row per output layer, with the plan's hash and size as the caption."""
    table = Table(title=f"{plan.name}: {len(plan.layers)} layers on host '{plan.host}'", title_justify="left")
    headings = ("layer", "from", "how", "kind", "parameters", "dtype", *(["training"] if plan.train else []))
    for heading in headings:
        table.add_column(heading, justify="right" if heading in ("layer", "parameters") else "left")
    for row in plan.layers:
        sources = escape(" + ".join(row.sources))
        fate = [_fate(row.layer, plan.train)] if plan.train else []
        table.add_row(str(row.layer), sources, row.method, row.kind, f"{row.parameters:,}", row.dtype, *fate)
    table.caption = f"{plan.num_parameters:,} parameters in {len(plan.tensors)} tensors, plan {plan.hash}"
    table.caption_justify = "left"
    return table


def _fate(layer: int, train: TrainPlan) -> str:
    return "frozen" if layer in train.frozen_layers else "trained"


def training_lines(plan: Plan) -> list[str]:
    """What stays frozen outside the layers, and what a reader should know of it; nothing where nothing trains."""
    if plan.train is None:
        return []
    trained = [part for part in ("embedding", "final norm", "head") if part not in plan.train.frozen_parts]
    parts = f"frozen: {', '.join(plan.train.frozen_parts) or 'none'}; trained: {', '.join(trained) or 'none'}"
    return [f"outside the layers, {parts}", *plan.train.notes]


_STOPS = {"tokens": "all that was asked", "steps": "stopped by max_steps", "minutes": "stopped by max_minutes"}


def trained_lines(training: Mapping[str, Any]) -> list[str]:
    """What a training took and where it ended."""
    minutes, rate = training["seconds"] / 60, training["tokens"] / max(training["seconds"], 1e-9)
    lines = [
        f"trained on {training['tokens']:,} tokens in {training['steps']:,} steps, {minutes:.1f} minutes at "
        f"{rate:,.0f} tokens/s in {training['dtype']} on {training['device']}, {_STOPS[training['stopped_by']]}",
        f"loss {training['first_loss']:.3f} at first and {training['last_loss']:.3f} at last, in nats a token; "
        f"rows filled to {training['packing']:.1%}",
    ]
    for change in training.get("changes", []):
        lines.append(
            f"from step {change['step']:,} on {change['setting']} was {change['now']}, before {change['before']}"
        )
    for use in training["sources"]:
        left_out = ", ".join(f"{count} {reason}" for reason, count in use["left_out"].items())
        lines.append(
            f"{use['name']}: {use['tokens_taken']:,} tokens, {use['epochs']:.2f} times through"
            + (f"; left out {left_out}" if left_out else "")
        )
    if training["unreached"]:
        names = ", ".join(training["unreached"][:5])
        lines.append(
            f"no gradient in the first step, as with experts not chosen, or before weights still zero: {names}"
        )
    return lines


def unused_lines(plan: Plan) -> list[str]:
    """What is left out of each donor and why, with the number of tensors; layers that are in no slice in one line."""
    lines = []
    for donor, reasons in plan.unused.items():
        counts = Counter(reasons.values())
        layers = {int(match[1]): reason for reason in counts if (match := UNUSED_LAYER.fullmatch(reason))}
        if layers:
            count = sum(counts.pop(reason) for reason in layers.values())
            lines.append(
                f"left out of '{donor}': layers {format_layers(sorted(layers))} ({count} tensors): in no slice"
            )
        lines += [f"left out of '{donor}': {count} tensors: {reason}" for reason, count in sorted(counts.items())]
    return lines


def origins_table(manifest: Manifest) -> Table:
    """A finished model's layers by runs of one origin and kind."""
    table = Table(
        title=f"{manifest.name}: {len(manifest.layers)} layers on host '{manifest.host}'", title_justify="left"
    )
    for heading in ("layers", "from", "donor layers", "how", "kind", "parameters"):
        table.add_column(heading, justify="right" if heading == "parameters" else "left")
    for (donors, method, kind), group in groupby(manifest.layers, key=_run_key):
        rows = list(group)
        numbers = " + ".join(format_layers(column) for column in donor_layers(rows))
        span = f"{rows[0].layer}" if len(rows) == 1 else f"{rows[0].layer}..{rows[-1].layer}"
        total = f"{sum(row.parameters for row in rows):,}"
        table.add_row(span, escape(donors), numbers, method, kind, total)
    return table


def _run_key(row: LayerRow) -> tuple[str, str, str]:
    return " + ".join(source.rpartition(" ")[0] for source in row.sources), row.method, row.kind


def proofs_table(proofs: Iterable[Proof]) -> Table:
    """The checks that held."""
    table = Table(show_header=False, box=None, padding=(0, 1))
    for proof in proofs:
        table.add_row("[green]ok[/green]", proof.check, escape(proof.found))
    return table
