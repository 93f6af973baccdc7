"""A scan as a picture: one heat map for each kind of change, or the course of a search step by step.

Works on the plain object of the contract "hybridizer.scan/1".
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from hybridizer.recipe.layers import count, read_ranges
from hybridizer.report.captions import one_line
from hybridizer.report.panels import COLOURS, INK
from hybridizer.report.plots import describe, plot_style
from hybridizer.report.scan_tables import NAMES, setting_lines

Record = Mapping[str, Any]
MARK = "#212121"  # stays dark in dark mode: it lies on a bright cell
LINEAR = 0.01  # changes smaller than this are on a linear part of the scale, larger ones on a logarithmic one


@dataclass(frozen=True)
class Panel:
    """One heat map: its title, what its axes count, and how a row's place becomes a cell (x, y)."""

    title: str
    x: str
    y: str
    cell: Callable[[Mapping[str, Any]], tuple[int, int]]


def draw_scan(record: Record) -> Figure:
    """Every candidate: blue is better than the host, red worse, by the figure that was searched by.

    Candidates that were tested have a ring, those that are better a star. Where candidates were screened, colours are
    those of the screen, which looked at all of them. A search step by step is drawn by its depth instead.
    """
    groups = _group(record)
    with matplotlib.rc_context(plot_style()):
        size = max(1, len(groups))
        heights = [_height(rows) for _, rows in groups] or [2.0]
        figure = Figure(figsize=(9, 2.4 + sum(heights)), layout="constrained")
        every = figure.subplots(size, 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
        norm = _norm([_shown(row) for _, rows in groups for row in rows])
        for axes, (panel, rows) in zip(every, groups, strict=True):
            if panel is None:
                _draw_steps(axes, record, rows)
            else:
                _draw_cells(axes, record, panel, rows, norm)
        if any(panel for panel, _ in groups):
            _draw_bar(figure, every, norm, record)
        figure.suptitle("\n".join(caption(record)), x=0.01, ha="left", fontsize=9)
    describe(figure, f"Scan of {record['donors'][0]['reference']}", describe_scan(record))
    return figure


def caption(record: Record) -> list[str]:
    """What was scanned, on what, and the result, in lines that fit the picture."""
    lines = [*setting_lines(record), record["sentence"]]
    return [part for line in lines for part in textwrap.wrap(line, 120, break_on_hyphens=False)]


def describe_scan(record: Record) -> str:
    """The picture in words, for readers who do not see it: what it shows, and the best candidates."""
    best = ", ".join(f"{row['name']} ({_shown(row):+.4f})" for row in record["candidates"][:5])
    what = f"Changes of {NAMES[record['settings']['by']]} by {record['num_tried']} models, one cell each."
    return f"{what} The best: {best}. {record['sentence']}"


def _group(record: Record) -> list[tuple[Panel | None, list[Mapping[str, Any]]]]:
    """The candidates by the panel that they are drawn in; None for those of a search step by step."""
    groups: dict[str, tuple[Panel | None, list[Mapping[str, Any]]]] = {}
    for row in record["candidates"]:
        panel = _panel_of(row)
        groups.setdefault(panel.title if panel else "", (panel, []))[1].append(row)
    return [groups[title] for title in sorted(groups)]


def _panel_of(row: Mapping[str, Any]) -> Panel | None:
    place = row["place"]
    match row["kind"]:
        case "cut" | "repeat":
            title = {"cut": "layers left out", "repeat": "layers that run twice"}[row["kind"]]
        case "swap":
            title = f"layers replaced by those of {one_line(place['donor'], 40)}"
        case "seam":
            sides = (one_line(place["shallow"], 40), one_line(place["deep"], 40))
            x, y = (f"layers of {sides[0]} below the seam", f"first layer of\n{sides[1]} above it")
            return Panel(f"{sides[0]} below, {sides[1]} above", x, y, lambda at: (at["end"], at["begin"]))
        case _:
            return None
    return Panel(title, "first layer", "number of layers", lambda at: (at["first"], at["last"] - at["first"] + 1))


def _shown(row: Mapping[str, Any]) -> float:
    """The change that is drawn: of the screen where there was one, which every candidate has."""
    return float(row["change"] if row["screened"] is None else row["screened"])


def _height(rows: Sequence[Mapping[str, Any]]) -> float:
    """Inches for a panel."""
    panel = _panel_of(rows[0])
    if panel is None:
        return 3.5
    return 0.9 + min(4.5, 0.22 * len({panel.cell(row["place"])[1] for row in rows}))


def _norm(values: Sequence[float]) -> SymLogNorm:
    limit = max([LINEAR * 2, *(abs(value) for value in values)])
    return SymLogNorm(LINEAR, vmin=-limit, vmax=limit, base=10)


def _draw_cells(axes: Axes, record: Record, panel: Panel, rows: Sequence[Mapping[str, Any]], norm: SymLogNorm) -> None:
    cells = {panel.cell(row["place"]): _shown(row) for row in rows}
    across, up = zip(*cells, strict=True)
    grid = np.full((max(up) - min(up) + 1, max(across) - min(across) + 1), np.nan)
    for (x, y), value in cells.items():
        grid[y - min(up), x - min(across)] = value
    extent = (min(across) - 0.5, max(across) + 0.5, min(up) - 0.5, max(up) + 0.5)
    axes.imshow(grid, cmap=_colours(record), norm=norm, origin="lower", extent=extent, aspect="auto", rasterized=False)
    axes.grid(visible=False)
    for winner in record["winners"]:
        row = winner["row"]
        found = _panel_of(row)
        if found is not None and found.title == panel.title:
            marker = "*" if winner["verdict"] == "better" else "o"
            axes.plot(*panel.cell(row["place"]), marker, markersize=8, markerfacecolor="none", color=MARK)
    axes.set_title(panel.title, loc="left", fontsize=10)
    axes.set_xlabel(panel.x)
    axes.set_ylabel(panel.y)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))


def _colours(record: Record) -> str:
    """Blue is better: a low change of bits, a high one of accuracy."""
    return "RdYlBu_r" if record["settings"]["by"] == "bits" else "RdYlBu"


def _draw_bar(figure: Figure, every: Any, norm: SymLogNorm, record: Record) -> None:
    mappable = matplotlib.cm.ScalarMappable(norm, _colours(record))
    form = FuncFormatter(lambda value, _: f"{value:+g}")
    bar = figure.colorbar(mappable, ax=list(every), location="bottom", shrink=0.7, aspect=50, format=form)
    figure_name = NAMES[record["settings"]["by"]]
    bar.set_label(f"change of {figure_name} ({_items_of(record)}); o: tested, *: better in the test")


def _items_of(record: Record) -> str:
    return "screen" if any(row["screened"] is not None for row in record["candidates"]) else "search"


def _draw_steps(axes: Axes, record: Record, rows: Sequence[Mapping[str, Any]]) -> None:
    """Change by the number of layers that differ from the host: each model a dot, the best of each number joined."""
    host = record["donors"][0]
    by_lower = record["settings"]["by"] == "bits"
    steps: dict[int, list[float]] = {}
    for row in rows:
        steps.setdefault(_num_changed(row, host), []).append(_shown(row))
    for step, values in steps.items():
        axes.plot([step] * len(values), values, ".", color=COLOURS[0], markersize=4)
    best = {step: (min if by_lower else max)(values) for step, values in sorted(steps.items())}
    axes.plot(list(best), list(best.values()), color=COLOURS[1], marker="o", markersize=4, label="best of each step")
    axes.axhline(0, color=INK, linewidth=1)
    axes.set_yscale("symlog", linthresh=LINEAR)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    dropped = record["settings"].get("drop") is not None
    axes.set_xlabel("layers left out" if dropped else "layers from other donors")
    axes.set_ylabel(f"change of {NAMES[record['settings']['by']]}\n({_items_of(record)})")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.1, frameon=False, fontsize=8)


def _num_changed(row: Mapping[str, Any], host: Mapping[str, Any]) -> int:
    """Layers left out of the host, or taken from other donors."""
    if row["num_layers"] != host["num_layers"]:
        return int(host["num_layers"] - row["num_layers"])
    return sum(count(read_ranges(piece["layers"])) for piece in row["slices"] if piece["donor"] != host["name"])
