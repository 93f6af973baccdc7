"""The picture of a training by step: loss, learning rate and gradient norms, from the lines of its log.jsonl.

Where held-out curves were measured they have a panel of their own, from the lines of curve.jsonl.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hybridizer.report import panels
from hybridizer.report.captions import one_line
from hybridizer.report.plots import describe, plot_style

SMOOTHING = 0.9  # of the exponential mean that is drawn over the losses
NORMS = {"gradient_norm_shallow": "shallow", "gradient_norm_deep": "deep"}
TERMS = ("loss_divergence", "loss_alignment")  # in the lines of a training with a teacher
STYLES = {"in-domain": "-", "general": "--"}
Line = Mapping[str, Any]


def draw_training(lines: Sequence[Line], title: str = "", curve: Sequence[Line] = ()) -> Figure:
    """One training of at least one step: loss with its running mean, learning rate, gradient norms.

    The loss is in nats per token without a teacher. The norms are those of each side that trains. Where stages begin, a
    line separates them. The rows of `curve` are drawn as the change of each text's bits per byte since step 0, with its
    paired 95% interval.
    """
    assert lines, "a training that took no step has no curve"
    steps = [line["step"] + 1 for line in lines]
    with matplotlib.rc_context(plot_style()):
        figure = Figure(figsize=(8, 9.5 if curve else 7), layout="constrained")
        heights = (3, 2.6, 1, 1.4) if curve else (3, 1, 1.4)
        loss, *held_out, rate, norms = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
        for axes in held_out:
            _draw_curve(axes, curve)
        _draw_loss(loss, steps, [line["loss"] for line in lines])
        taught = any(key in line for line in lines for key in TERMS)
        loss.set_ylabel("loss of the objective" if taught else "loss (nats per token)")
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


def _draw_curve(axes: Axes, rows: Sequence[Line]) -> None:
    """The change of each text since step 0: in domain solid, general dashed."""
    axes.axhline(0, color=panels.INK, linewidth=0.8)
    texts = list(dict.fromkeys((row["role"], row["set"]) for row in rows))
    for number, (role, name) in enumerate(texts):
        of_text = sorted(
            (row for row in rows if (row["role"], row["set"]) == (role, name)), key=lambda row: row["step"]
        )
        places, colour = [row["step"] for row in of_text], panels.COLOURS[number % len(panels.COLOURS)]
        label = f"{one_line(name, 40)} ({role.replace('-', ' ')})"
        changes = [row["change"] for row in of_text]
        axes.plot(places, changes, color=colour, linestyle=STYLES[role], marker="o", markersize=3, label=label)
        bands = [row["change_ci"] or (row["change"],) * 2 for row in of_text]
        lows, highs = ([band[end] for band in bands] for end in (0, 1))
        axes.fill_between(places, lows, highs, color=colour, alpha=0.2, linewidth=0)
    axes.set_ylabel("held out: change of\nbits per byte")
    axes.legend(frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.1, ncols=2)


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
