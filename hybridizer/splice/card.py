"""The model card of a spliced model: what it is, which layer came from where, how to load it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from hybridizer.plan.manifest import without_folders
from hybridizer.plan.plan import LayerRow, Plan, donor_layers
from hybridizer.recipe.layers import format_layers


def write_card(plan: Plan, licenses: Mapping[str, str | None], training: Mapping[str, Any] | None = None) -> str:
    """README.md for the model folder, with the front matter that model hubs read; `training` is a training's record."""
    return f"""---
{_front_matter(plan, licenses)}
---
# {plan.name}

A hybrid of {_count(len(plan.donors), "donor")}: {len(plan.layers)} layers, {plan.num_parameters:,} parameters stored.
{_host_line(plan)}

| layers | from | kind |
|---|---|---|
{chr(10).join(_layer_lines(plan.layers))}

| donor | reference | fingerprint |
|---|---|---|
{chr(10).join(_donor_lines(plan))}

{_training_lines(plan, training) if training else ""}\
{_served_lines(plan)}\
Load it with `transformers.AutoModelForCausalLM.from_pretrained`. The origin of every tensor is in `manifest.json`
(plan `{plan.hash}`); `hybridize verify` checks this folder against it.
"""


def _host_line(plan: Plan) -> str:
    if any(name.startswith(("tokenizer.", "vocab.")) or name.endswith(".model") for name in plan.tokenizer_files):
        return f"Embeddings, final norm, head, tokenizer and chat template come from the host, `{plan.host}`."
    without = "The host has no tokenizer, and neither has this model."
    return f"Embeddings, final norm and head come from the host, `{plan.host}`. {without}"


def _front_matter(plan: Plan, licenses: Mapping[str, str | None]) -> str:
    lines = ["library_name: transformers", "tags:", "- hybridizer", "- merge"]
    bases = [pin.reference for pin in plan.donors.values() if pin.revision is not None]
    if bases:
        lines += ["base_model:", *(f"- {reference.partition('@')[0].removeprefix('hub:')}" for reference in bases)]
    found = {licenses.get(name) for name in plan.donors}
    if len(found) == 1 and None not in found:
        lines.append(f"license: {found.pop()}")
    return "\n".join(lines)


def _training_lines(plan: Plan, training: Mapping[str, Any]) -> str:
    frozen = [f"layers {format_layers(plan.train_plan.frozen_layers)}"] if plan.train_plan.frozen_layers else []
    parts = ", ".join([*frozen, *plan.train_plan.frozen_parts]) or "nothing"
    sources = ", ".join(f"`{Path(use['name']).name}` ({use['tokens_taken']:,})" for use in training["sources"])
    losses = f"{training['first_loss']:.3f} at the start, {training['last_loss']:.3f} at the end"
    kept = training.get("kept_step")
    best = [] if kept in (None, training["steps"]) else [f"The weights are those of step {kept:,}, the best in domain."]
    lines = [
        f"Trained after splicing on {training['tokens']:,} tokens in {training['steps']:,} steps"
        + (f" of {len(training['stages'])} stages" if training.get("stages") else "")
        + f", {parts} frozen.",
        *best,
        f"The loss was {losses}, {plan.train_plan.loss_of}. Tokens by source: {sources}.",
        "The frozen tensors hash as they did before training (`manifest.json`).",
    ]
    return "\n".join(lines) + "\n\n"


def _served_lines(plan: Plan) -> str:
    """What runs a model of another family than its donors', as a list; nothing for others."""
    lines = [f"- {served.by}: {served.answer}. {served.how[:1].upper()}{served.how[1:]}." for served in plan.served_by]
    return "\n".join(["What runs it:", "", *lines, "", ""]) if lines else ""


def _layer_lines(rows: Iterable[LayerRow]) -> list[str]:
    lines = []
    for (source, kind), group in groupby(rows, key=lambda row: (_donors_of(row), row.kind)):
        run = list(group)
        first, last = run[0], run[-1]
        span = f"{first.layer}" if first is last else f"{first.layer}..{last.layer}"
        numbers = " + ".join(format_layers(column) for column in donor_layers(run))
        lines.append(f"| {span} | {source}{f': {numbers}' if numbers else ''} | {kind} |")
    return lines


def _donors_of(row: LayerRow) -> str:
    names = " + ".join(f"`{source.partition('@')[0]}`" for source in row.sources)
    if row.method == "copy":
        return names
    return f"{row.method} of {names}" if names else row.method


def _donor_lines(plan: Plan) -> list[str]:
    return [
        f"| `{name}` | `{pin.reference}`{f' at `{pin.revision}`' if pin.revision else ''} | `{pin.fingerprint}` |"
        for name, pin in ((name, without_folders(pin)) for name, pin in plan.donors.items())
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
