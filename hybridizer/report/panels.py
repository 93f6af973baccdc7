"""The panels of the pictures in plot.py: each draws one measure of a trace record into given axes."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from hybridizer.report.captions import Record, blind_layers, findings, setting

# Okabe and Ito's colours, which colour-blind readers can distinguish; black and yellow left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P")
INK, DEEP, HATCH = "#222222", "#E8EDF2", "#B8B8B8"
DASH = 5  # points
AXES = {
    "target_prob": "probability of the\nmodel's own answer",
    "js": "JS (bits)",
    "delta_js": "dJS (bits):\nchange of JS",
}


def draw_target(axes: Axes, record: Record, boundary: int | None) -> None:
    """The probability that each layer gives to the model's final answer."""
    _line(axes, record, "target_prob", COLOURS[0])
    axes.set_ylabel(AXES["target_prob"])
    axes.set_ylim(0, 1)


def draw_js(axes: Axes, record: Record, boundary: int | None) -> None:
    """JS by layer; with both perturbations, those of the context and of the layer. A level line: before layer 0."""
    if record["layers"][0].get("layer_js") is None:
        _line(axes, record, "js", COLOURS[0])
    else:
        _line(axes, record, "js", COLOURS[0], label="context masked, read at this layer")
        _line(axes, record, "layer_js", COLOURS[1], label="this layer disturbed, read at the end", marker="s")
    if record.get("embedding"):
        axes.axhline(record["embedding"]["js"], color=COLOURS[0], linewidth=1, linestyle=":", label="embedding output")
    if axes.get_legend_handles_labels()[0]:
        _legend(axes)
    axes.set_ylabel(AXES["js"])
    axes.set_ylim(bottom=0)


def draw_delta(axes: Axes, record: Record, boundary: int | None) -> None:
    """dJS by layer, with a boundary also the mean of either side."""
    layers = [row["layer"] for row in record["layers"]]
    values = [row["delta_js"] for row in record["layers"]]
    axes.bar(layers, values, color=COLOURS[0], width=0.8)
    for row in record["layers"]:
        if row.get("delta_js_ci"):
            axes.plot([row["layer"]] * 2, row["delta_js_ci"], color=INK, linewidth=1)
    if boundary is not None:
        for first, end, label in ((0, boundary, "mean of each side, not debiased"), (boundary, len(layers), None)):
            mean = sum(values[first:end]) / (end - first)
            axes.plot([first - 0.5, end - 0.5], [mean, mean], color=COLOURS[1], linewidth=2, label=label)
        _legend(axes)
    axes.set_ylabel(AXES["delta_js"])
    axes.set_ylim(bottom=0)


def draw_scores(axes: Axes, record: Record, boundary: int | None) -> None:
    """S(b) at b, the layer that would be the first deep one: debiased, with its interval, and plain."""
    rows = record["boundary"]
    places = [row["b"] for row in rows]
    axes.axhline(0, color=INK, linewidth=1)
    if rows:
        values = [row["s_debiased"] for row in rows]
        axes.plot(places, values, color=COLOURS[2], marker="o", markersize=3, label="debiased")
        plain = "of absolute values, which noise makes too large"
        axes.plot(places, [row["s"] for row in rows], color=COLOURS[1], linewidth=1, linestyle=":", label=plain)
        _band(axes, places, [row["s_debiased_ci"] for row in rows], COLOURS[2])
        _legend(axes)
    axes.set_ylabel("S(b) (bits): shallow\nminus deep mean dJS")


def draw_particles(axes: Axes, record: Record, boundary: int | None) -> None:
    """How many prompts have their task particle in each layer, and the median."""
    rows, particle = record["layers"], record["task_particle"]
    axes.bar([row["layer"] for row in rows], [row["task_particles"] for row in rows], color=COLOURS[3], width=0.8)
    if particle["layer"] is not None:
        axes.axvline(particle["layer"], color=INK, linewidth=1, linestyle=":", label="median")
        _legend(axes)
    axes.set_ylabel("task particles\n(prompts)")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def hatch_blind(axes: Axes, record: Record) -> None:
    """Hatch the layers that the lens cannot read: their figures describe the lens more than the layer."""
    for layer in blind_layers(record):
        axes.axvspan(layer - 0.5, layer + 0.5, facecolor="none", edgecolor=HATCH, hatch="///", linewidth=0, zorder=0.5)


def label_donor(record: Record, name: str, boundary: int | None, verdict: str | None) -> str:
    """The lines of a donor in a legend: name, how it was traced, what was found, the verdict on its boundary."""
    lines = [f"{name}, {len(record['layers'])} layers", setting(record), findings(record)]
    if boundary is not None and verdict is not None:
        lines.append(f"freezing layers {boundary}..{len(record['layers']) - 1}: {verdict}")
    return "\n".join(filter(None, lines))


def overlay(axes: Axes, record: Record, measure: str, index: int, label: str) -> None:
    """One measure of a donor with this `label`, by relative depth, in the colour and with the marker of its index.

    The output of layer l is at (l + 1) / L: the last layer of every donor is at 1. Markers of blind layers are hollow.
    """
    rows, colour, marker = record["layers"], COLOURS[index], MARKERS[index]
    places, values = [(row["layer"] + 1) / len(rows) for row in rows], [row[measure] for row in rows]
    axes.plot(places, values, color=colour, marker=marker, markersize=4, label=label)
    if blind := blind_layers(record):
        at, height = [places[layer] for layer in blind], [values[layer] for layer in blind]
        axes.plot(at, height, color=colour, marker=marker, markersize=4, markerfacecolor="#FFFFFF", linestyle="none")
    _band(axes, places, [row.get(f"{measure}_ci") for row in rows], colour)


def draw_boundaries(axes: Axes, records: Sequence[Record], boundaries: Sequence[int | None]) -> None:
    """A dashed line before the first deep layer of each donor, in its colour; lines at one place take turns."""
    places: dict[float, list[int]] = {}
    for index, (record, boundary) in enumerate(zip(records, boundaries, strict=False)):
        if boundary is not None:
            places.setdefault((boundary + 0.5) / len(record["layers"]), []).append(index)
    for place, here in places.items():
        for turn, index in enumerate(here):
            dashes = (DASH * turn, (DASH, DASH * max(1, len(here) - 1)))
            axes.axvline(place, color=COLOURS[index], linestyle=dashes, linewidth=1.5)


def mark_deep(axes: Axes, record: Record, boundary: int | None) -> None:
    """Shade the deep side, from the left edge of layer `boundary` on, where there is one."""
    if boundary is not None:
        axes.axvspan(boundary - 0.5, len(record["layers"]) - 0.5, color=DEEP, zorder=0)
        axes.axvline(boundary - 0.5, color=INK, linewidth=1.2, linestyle="--")


def name_sides(axes: Axes, record: Record, boundary: int | None) -> None:
    """Write "shallow" and "deep" on either side of the boundary, above the axes."""
    if boundary is not None:
        for text, place, side in (("shallow ", boundary - 0.6, "right"), (" deep", boundary - 0.4, "left")):
            axes.annotate(text, (place, 1.02), xycoords=("data", "axes fraction"), ha=side, fontsize=9)


PANELS = (draw_target, draw_js, draw_delta, draw_scores, draw_particles)


def _legend(axes: Axes) -> None:
    """Above the axes, where it covers nothing; searching for a free corner takes matplotlib seconds."""
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.1, ncols=2, frameon=False, fontsize=8)


def _line(axes: Axes, record: Record, name: str, colour: str, label: str | None = None, marker: str = "o") -> None:
    rows = record["layers"]
    places, values, bands = (
        [row["layer"] for row in rows],
        [row[name] for row in rows],
        [row.get(f"{name}_ci") for row in rows],
    )
    axes.plot(places, values, color=colour, marker=marker, markersize=3, label=label)
    _band(axes, places, bands, colour)


def _band(axes: Axes, places: Sequence[float], bands: Sequence[Sequence[float] | None], colour: str) -> None:
    known = [(place, *band) for place, band in zip(places, bands, strict=True) if band]
    at, lows, highs = ([row[i] for row in known] for i in range(3))
    axes.fill_between(at, lows, highs, color=colour, alpha=0.2, linewidth=0)
