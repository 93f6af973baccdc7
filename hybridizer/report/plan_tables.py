"""Plans and finished models in a terminal: tables and lines, for the command line to print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from hybridizer.core.errors import printable
from hybridizer.plan.freeze import trained_parts
from hybridizer.plan.manifest import Manifest
from hybridizer.plan.plan import LayerRow, Plan, donor_layers
from hybridizer.plan.tensors import UNUSED_LAYER
from hybridizer.recipe.layers import format_layers
from hybridizer.report.captions import one_line
from hybridizer.report.cost_tables import readable
from hybridizer.report.tables import TextTable, under
from hybridizer.splice.verify import Proof

_MAX_NAME = 40
# The columns that are left out, and named above the table, where all rows hold the same.
_OFTEN_EQUAL = ("how", "kind", "dtype", "training")


def plan_table(plan: Plan, *, every_layer: bool = False) -> Group:
    """The layers of a plan by runs of one origin, method, kind, dtype and training, or one row for each layer."""
    frozen = set(plan.train.frozen_layers) if plan.train else set()
    fates = {row.layer: "frozen" if row.layer in frozen else "trained" for row in plan.layers} if plan.train else {}
    size = f"{plan.num_parameters:,} parameters in {len(plan.tensors)} tensors"
    return _layers_table(plan.name, plan.host, plan.layers, fates, [size, f"plan {plan.hash}", ""], every_layer)


def origins_table(manifest: Manifest) -> Group:
    """A finished model's layers by runs of one origin, method, kind and dtype."""
    return _layers_table(manifest.name, manifest.host, manifest.layers, {}, [], False)


def _layers_table(
    name: str, host: str, layers: Sequence[LayerRow], fates: Mapping[int, str], notes: list[str], every_layer: bool
) -> Group:
    cells = [_cells(rows, fates) for rows in _runs(layers, fates, every_layer)]
    equal = {key: cells[0][key] for key in _OFTEN_EQUAL if key in cells[0] and len({row[key] for row in cells}) == 1}
    table = TextTable()
    for key in (key for key in cells[0] if key not in equal):
        table.add_column(key, justify="right" if key == "parameters" else "left", no_wrap=key == "layers")
    for row in cells:
        table.add_row(*(value for key, value in row.items() if key not in equal))
    about = f"{one_line(name, _MAX_NAME)}: {len(layers)} layers on host '{one_line(host, _MAX_NAME)}'"
    same = [f"all layers: {', '.join(one_line(value, _MAX_NAME) for value in equal.values())}"] if equal else []
    return under([about, *same], table, notes)


def _runs(layers: Sequence[LayerRow], fates: Mapping[int, str], every_layer: bool) -> list[list[LayerRow]]:
    if every_layer:
        return [[row] for row in layers]
    return [list(rows) for _, rows in groupby(layers, key=lambda row: (*_run_key(row), fates.get(row.layer)))]


def _run_key(row: LayerRow) -> tuple[str, ...]:
    return " + ".join(source.rpartition(" ")[0] for source in row.sources), row.method, row.kind, row.dtype


def _cells(rows: Sequence[LayerRow], fates: Mapping[int, str]) -> dict[str, str]:
    """One table row, by column, for a run of layers of which all but layer, source layer and size are equal."""
    first, last = rows[0], rows[-1]
    donors = (one_line(source.rpartition(" ")[0], _MAX_NAME) for source in first.sources)
    columns = (format_layers(column) for column in donor_layers(rows))
    cells = {
        "layers": f"{first.layer}" if len(rows) == 1 else f"{first.layer}..{last.layer}",
        "from": " + ".join(f"{donor} {column}" for donor, column in zip(donors, columns, strict=True)),
        "how": first.method,
        "kind": one_line(first.kind, _MAX_NAME),
        "parameters": f"{sum(row.parameters for row in rows):,}",
        "dtype": first.dtype,
    }
    return {**cells, "training": fates[first.layer]} if fates else cells


def training_lines(plan: Plan) -> list[str]:
    """What is frozen and trained outside the layers, with notes; nothing where nothing trains."""
    if plan.train is None:
        return []
    trained = trained_parts(plan.train.frozen_parts)
    parts = f"frozen: {', '.join(plan.train.frozen_parts) or 'none'}; trained: {', '.join(trained) or 'none'}"
    lines = [f"outside the layers, {parts}", *plan.train.notes]
    return lines + [f"{one_line(stage.name, 30)}: {note}" for stage in plan.train.stages for note in stage.notes]


def swap_table(swap: Mapping[str, Any]) -> Group | None:
    """The evidence of each layer for keeping its attention, of `Evidence.swap`; None where a rule chose the layers."""
    if not swap["evidence"]:
        return None
    kept, scores = set(swap["kept"]), {score["layer"]: score for score in swap["scores"]}
    columns = ("bits", "bits_dropped", "kl", "kl_dropped", "explained") if scores else (swap["figure"],)
    table = TextTable()
    for title in ("layer", "attention", *(column.replace("_", " ") for column in columns)):
        table.add_column(title, justify="left" if title == "attention" else "right")
    for layer, evidence in enumerate(swap["evidence"]):
        values = [scores[layer][column] for column in columns] if scores else [evidence]
        table.add_row(str(layer), "kept" if layer in kept else "swapped", *(f"{value:.4f}" for value in values))
    about = "per layer by a trace: a disturbance moves the kept ones most"
    if scores:
        about = "each layer swapped alone: bits per token above the donor, and divergence from it in bits per token"
        about += f", on {swap['tokens']} tokens; 'dropped' is with nothing in its place"
    return under([about], table, [])


def served_lines(plan: Plan) -> list[str]:
    """What runs the model, and under which condition; nothing for a model of its donors' own family."""
    return [f"served by {served.by}: {served.answer} ({served.how})" for served in plan.served_by]


def amount_lines(amounts: Mapping[str, Any]) -> list[str]:
    """Steps, epochs of each source and space on disk, of the plain object of a `RunAmounts`."""
    disk = f"disk: about {readable(amounts['disk_bytes'], 'B')} at the peak of the build"
    if not amounts["steps"]:
        return [disk]
    size = f" of {amounts['tokens_per_step']:,} tokens" if amounts["tokens_per_step"] else " in all stages"
    lines = [f"{amounts['steps']:,} steps{size}"]
    for source in amounts["sources"]:
        lines.append(f"{one_line(source['name'], 60)}: {source['tokens']:,} tokens, {_epochs_of(source)}")
    if curve := amounts["curve"]:
        lines.append(
            f"curves: {curve['measurements']:,} measurements of {curve['texts']} texts, up to {curve['tokens']:,} "
            f"tokens each: up to {_share(curve['share'])} more operations, and about as much more time"
        )
    return [*lines, disk]


def _share(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"


def _epochs_of(source: Mapping[str, Any]) -> str:
    if source["available"]:
        return f"{source['epochs']:,.2f} epochs over the {source['available']:,} it has"
    if source["epochs"]:
        return f"about {source['epochs']:,.2f} epochs at 4 bytes per token"
    return "epochs unknown until it is tokenised"


_STOPS = {
    "tokens": "all tokens of the recipe",
    "steps": "stopped by max_steps",
    "minutes": "stopped by max_minutes",
    "forgetting": "stopped by the retention limit",
}


def trained_lines(training: Mapping[str, Any], loss_of: str) -> list[str]:
    """The time, loss and data of a training, and why it stopped; `loss_of` as the plan of the training has it."""
    minutes, rate = training["seconds"] / 60, training["tokens"] / max(training["seconds"], 1e-9)
    lines = [
        f"trained on {training['tokens']:,} tokens in {training['steps']:,} steps, {minutes:.1f} minutes at "
        f"{rate:,.0f} tokens/s in {training['dtype']} on {training['device']}, {_STOPS[training['stopped_by']]}",
        f"loss {training['first_loss']:.3f} in the first step and {training['last_loss']:.3f} in the last, {loss_of}; "
        f"rows filled to {training['packing']:.1%}",
    ]
    for stage in training.get("stages", []):
        frozen = ", ".join([*_layers_text(stage["frozen_layers"]), *stage["frozen_parts"]]) or "nothing"
        lines.append(
            f"{one_line(stage['name'], 30)}: {stage['tokens']:,} tokens in {stage['steps']:,} steps, {frozen} frozen, "
            f"loss {stage['first_loss']:.3f} in the first step and {stage['last_loss']:.3f} in the last"
        )
    lines += _curve_lines(training)
    for change in training.get("changes", []):
        lines.append(
            f"from step {change['step']:,} on, {change['setting']} was {change['now']} instead of {change['before']}"
        )
    for use in training["sources"]:
        left_out = ", ".join(f"{count} {reason}" for reason, count in use["left_out"].items())
        lines.append(
            f"{use['name']}: {use['tokens_taken']:,} tokens, {use['epochs']:.2f} epochs"
            + (f"; left out {left_out}" if left_out else "")
        )
    if training["unreached"]:
        names = ", ".join(training["unreached"][:5])
        lines.append(
            f"no gradient in the first step (experts that were not chosen, or weights that start at zero): {names}"
        )
    return lines


def _curve_lines(training: Mapping[str, Any]) -> Iterator[str]:
    """What was forgotten where that stopped the training, where the best measured step was, and the time of measuring.

    Records of earlier versions have none of it.
    """
    if found := training.get("forgetting"):
        low, high = found["rise_ci"]
        yield (
            f"{one_line(found['text'], 60)} rose by {found['rise']:.3f} ({low:.3f}..{high:.3f}) bits per byte, above "
            f"the limit {found['limit']:g}, at step {found['step']:,}"
        )
    if curve := training.get("curve"):
        yield from _best_lines(curve)
    if training.get("kept_step") not in (None, training["steps"]):
        yield f"the result has the weights of step {training['kept_step']:,}"
    if seconds := training.get("measuring_seconds"):
        yield f"measuring the curves took {seconds / 60:.1f} minutes more"


def _best_lines(curve: Mapping[str, Any]) -> Iterator[str]:
    """The best step in domain beside the last one, and what the difference means."""
    best, last = f"step {curve['best_step']:,}", f"step {curve['last_step']:,}"
    if curve["best_step"] == curve["last_step"]:
        yield f"in domain, the last measured step is the best: {curve['last']:.3f} bits per byte at {last}"
        return
    band = "" if curve["change_ci"] is None else " ({:+.3f}..{:+.3f})".format(*curve["change_ci"])
    yield (
        f"in domain, {best} was the best: {curve['best']:.3f} bits per byte, and {curve['last']:.3f} at {last}: "
        f"{curve['change']:+.3f}{band}"
    )
    if curve["verdict"] == "worse":
        yield f"training past {best} did not help in domain"


def _layers_text(layers: Sequence[int]) -> list[str]:
    return [f"layers {format_layers(layers)}"] if layers else []


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


def proofs_table(proofs: Iterable[Proof]) -> Table:
    """The checks that held."""
    table = Table(show_header=False, box=None, padding=(0, 1))
    table.add_column(style="green", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for proof in proofs:
        table.add_row("ok", Text(printable(proof.check)), Text(printable(proof.found)))
    return table
