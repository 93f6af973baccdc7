"""The picture of a training: loss, learning rate and gradient norms by step, from the lines of its log.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hybridizer.report import panels
from hybridizer.report.plots import describe, plot_style

SMOOTHING = 0.9  # of the exponential mean that is drawn over the losses
NORMS = {"gradient_norm_shallow": "shallow", "gradient_norm_deep": "deep"}
Line = Mapping[str, Any]


def draw_training(lines: Sequence[Line], title: str = "") -> Figure:
    """One training of at least one step: loss in nats per token with its running mean, learning rate, gradient norms.

    The norms are those of each side that trains. Where stages begin, a line separates them.
    """
    assert lines, "a training that took no step has no curve"
    steps = [line["step"] + 1 for line in lines]
    with matplotlib.rc_context(plot_style()):
        figure = Figure(figsize=(8, 7), layout="constrained")
        loss, rate, norms = figure.subplots(3, 1, sharex=True, height_ratios=(3, 1, 1.4))
        _draw_loss(loss, steps, [line["loss"] for line in lines])
        rate.plot(steps, [line["lr"] for line in lines], color=panels.COLOURS[0], linewidth=1.5)
        rate.set_ylabel("learning\nrate")
        rate.set_ylim(bottom=0)
        _draw_norms(norms, steps, lines)
        _draw_stages((loss, rate, norms), lines)
        norms.set_xlabel("step, from 1")
        norms.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.suptitle("\n".join([*([title] if title else []), _summary(lines)]), x=0.01, ha="left")
    describe(figure, f"Training {title}".strip(), _summary(lines))
    return figure


def _summary(lines: Sequence[Line]) -> str:
    first, last = lines[0], lines[-1]
    tokens, minutes = last["tokens"], last["seconds"] / 60
    return (
        f"loss {first['loss']:.3f} in the first step, {last['loss']:.3f} in the last; "
        f"{len(lines):,} steps, {tokens:,} tokens, {minutes:.1f} minutes"
    )


def _draw_loss(axes: Axes, steps: Sequence[int], losses: Sequence[float]) -> None:
    means = [losses[0]]
    for loss in losses[1:]:
        means.append(SMOOTHING * means[-1] + (1 - SMOOTHING) * loss)
    axes.plot(steps, losses, color=panels.COLOURS[0], alpha=0.4, linewidth=1, marker=_marker(steps), label="each step")
    if len(losses) >= 20:
        axes.plot(steps, means, color=panels.COLOURS[0], linewidth=2, label="running mean")
        axes.legend(frameon=False, fontsize=9, loc="upper right")
    axes.set_ylabel("loss (nats per token)")


def _draw_norms(axes: Axes, steps: Sequence[int], lines: Sequence[Line]) -> None:
    for number, (key, label) in enumerate(NORMS.items()):
        taken = [(step, line[key]) for step, line in zip(steps, lines, strict=True) if key in line]
        if taken:
            axes.plot(
                *zip(*taken, strict=True),
                color=panels.COLOURS[number],
                linewidth=1.2,
                marker=_marker(steps),
                label=label,
            )
    axes.set_ylabel("gradient norm")
    axes.set_ylim(0, 1.3 * axes.get_ylim()[1])  # room for the legend
    axes.legend(frameon=False, fontsize=9, loc="upper right", ncols=len(NORMS))


def _draw_stages(all_axes: Sequence[Axes], lines: Sequence[Line]) -> None:
    """A line before the first step of each stage after the first, with its number."""
    for before, line in pairwise(lines):
        if before.get("stage") != line.get("stage"):
            for axes in all_axes:
                axes.axvline(line["step"] + 0.5, color=panels.COLOURS[-1], linewidth=1, linestyle=":")
            top = all_axes[0]
            top.text(
                line["step"] + 0.5, 1.01, f"stage {line['stage']}", transform=top.get_xaxis_transform(), fontsize=8
            )


def _marker(steps: Sequence[int]) -> str | None:
    return "o" if len(steps) == 1 else None  # a line of one point is invisible
