"""A trial as a picture: its held-out curves at equal tokens, equal FLOP and equal time, or its figures at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from hybridizer.report.captions import one_line
from hybridizer.report.panels import COLOURS, INK, MARKERS
from hybridizer.report.plots import describe, plot_style
from hybridizer.report.trial_curves import BUDGETS, ArmLine, RunCurve, arm_line, texts_of
from hybridizer.report.trial_tables import detectable_lines, figure_of, split_pairs

Record = Mapping[str, Any]
STYLES = ("-", "--", ":")
BEFORE = "before training"
CURVES = "Lines: means over seeds; bands: the range of the seeds"
FIGURES = "Bars: 95% intervals over other seeds and other items, the same items for all arms; ticks: the seeds"


def draw_trial(record: Record, curves: Sequence[RunCurve] = ()) -> Figure:
    """The trial of a record of the contract "hybridizer.trial/1".

    With curves: one row of panels per text, one column per budget; a line is the mean over the seeds of an arm, a band
    their range. Without: the value of each outcome at the end, with its 95% interval and the seeds as points.
    """
    lines = [*_caption(record), CURVES if curves else FIGURES]
    with matplotlib.rc_context(plot_style()):
        figure = _draw_curves(record, curves) if curves else _draw_figures(record)
        figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=9)
    describe(figure, f"Trial {record['name']}", "; ".join([*lines[1:], *_words(record)]))
    return figure


def _draw_curves(record: Record, curves: Sequence[RunCurve]) -> Figure:
    texts = texts_of(curves)
    figure = Figure(figsize=(11, 1.2 + 3.2 * len(texts)), layout="constrained")
    panels = figure.subplots(len(texts), len(BUDGETS), squeeze=False, sharey="row", sharex="col")
    names = [arm["name"] for arm in record["arms"]]
    for row, (role, text) in zip(panels, texts, strict=True):
        lines = [arm_line(curves, name, text) for name in names]
        for axes, budget in zip(row, BUDGETS, strict=True):
            for number, (name, line) in enumerate(zip(names, lines, strict=True)):
                if line is not None:
                    _draw_arm(axes, line, budget, number, name)
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.xaxis.set_major_locator(MaxNLocator(5))
        row[0].set_ylabel(f"{one_line(text, 40)}\n{role}, bits per byte")
    for axes, label in zip(panels[-1], BUDGETS.values(), strict=True):
        axes.set_xlabel(label)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", frameon=False, fontsize=9, ncols=min(6, len(labels)))
    return figure


def _draw_arm(axes: Axes, line: ArmLine, budget: str, number: int, name: str) -> None:
    """One arm in one panel."""
    places, values = line.budgets[budget], line.bits_per_byte
    colour, style = COLOURS[number % len(COLOURS)], STYLES[number // len(COLOURS) % len(STYLES)]
    marker = MARKERS[number % len(MARKERS)]
    axes.plot(places, values.mean(axis=0), color=colour, linestyle=style, marker=marker, markersize=4, label=name)
    axes.fill_between(places, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, linewidth=0)


def _draw_figures(record: Record) -> Figure:
    outcomes, names = record["outcomes"], [arm["name"] for arm in record["arms"]]
    figure = Figure(figsize=(8, 1.2 + (0.6 + 0.32 * len(names)) * len(outcomes)), layout="constrained")
    for axes, outcome in zip(figure.subplots(len(outcomes), 1, squeeze=False)[:, 0], outcomes, strict=True):
        found = [figure_of(arm, outcome) for arm in record["arms"]]
        for number, one in enumerate(found):
            if one is not None:
                _draw_value(axes, one, number)
        level = next((one["before"] for one in found if one is not None), None)
        if level is not None:
            axes.axvline(level, color=INK, linewidth=1, linestyle=":", label=BEFORE)
            axes.legend(
                loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.1, frameon=False, fontsize=8
            )  # above the axes, where it covers nothing
        axes.set_yticks(range(len(names)), [one_line(name, 30) for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        better = "less" if outcome["lower_is_better"] else "more"
        axes.set_title(
            f"{one_line(outcome['what'], 40)}: {outcome['metric']}, {better} is better", loc="left", fontsize=9
        )
    return figure


def _draw_value(axes: Axes, found: Record, number: int) -> None:
    colour = COLOURS[number % len(COLOURS)]
    if found["ci"]:
        axes.plot(found["ci"], [number] * 2, color=colour, linewidth=2)
    axes.plot([found["value"]], [number], color=colour, marker="o", markersize=6, linestyle="none")
    seeds = found["seed_values"]
    axes.plot(seeds, [number + 0.25] * len(seeds), color=colour, marker="|", markersize=6, linestyle="none", alpha=0.8)


def _caption(record: Record) -> list[str]:
    primary, seeds = record["primary"], ", ".join(map(str, record["seeds"]))
    lines = [
        f"{one_line(record['name'], 60)}: {len(record['arms'])} arms, seeds {seeds}",
        f"primary outcome: {primary['metric']} of {one_line(primary['what'], 60)}",
    ]
    return [*lines, *detectable_lines(record)]


def _words(record: Record) -> list[str]:
    """The verdicts in the primary outcome, for readers who do not see the picture."""
    return [f"{pair['a']} (a) and {pair['b']} (b): {pair['verdict']}" for pair in split_pairs(record)[0]]
