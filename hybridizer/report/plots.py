"""Pictures of trace records: one donor in full, or several overlaid; SVG or PNG.

Works on the plain objects of the contract "hybridizer.trace/3", so that any program's records can be drawn. Figures are
made without pyplot: nothing global is touched, and nothing needs a screen.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hybridizer.core.errors import InputError, Problem
from hybridizer.core.files import write_file
from hybridizer.report import panels
from hybridizer.report.captions import LEAST_EXPLAINED, Record, blind_layers, caption, findings, name_donors
from hybridizer.report.svg import finish_svg

MAX_DONORS = len(panels.COLOURS)
# Names and probes may be Chinese: the first of these that is installed draws what DejaVu Sans cannot.
CJK_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei", "Microsoft YaHei",
             "PingFang SC", "SimHei")  # fmt: skip
BANDS = "Bands and bars: 95% intervals over prompts, by cluster"
BLIND = f"; hatched: the lens explains under {LEAST_EXPLAINED:.0%} there"


def draw_trace(record: Record, boundary: int | None = None, verdict: str | None = None) -> Figure:
    """One donor: target probability, JS, dJS, S(b) and the task particles by layer, bands for 95% intervals.

    With a `boundary`, the first deep layer, the deep side is shaded, and the two means of dJS whose difference is the
    plain S(boundary) are drawn; `verdict` is that of its licence. Layers that the lens cannot read are hatched.
    """
    with matplotlib.rc_context(plot_style()):
        figure = Figure(figsize=(8, 10.5), layout="constrained")
        rows = figure.subplots(len(panels.PANELS), 1, sharex=True)
        for axes, draw in zip(rows, panels.PANELS, strict=True):
            draw(axes, record, boundary)
            panels.mark_deep(axes, record, boundary)
            panels.hatch_blind(axes, record)
        rows[-1].set_xlabel("layer, from 0; each at its output")
        rows[-1].set_xlim(-0.5, len(record["layers"]) - 0.5)
        rows[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        panels.name_sides(rows[0], record, boundary)
        lines = [*caption(record, boundary, verdict), BANDS + (BLIND if blind_layers(record) else "")]
        figure.suptitle("\n".join(lines), x=0.01, ha="left")
    describe(figure, f"Trace of {lines[0]}", "; ".join(lines[1:]))
    return figure


def draw_donors(
    records: Sequence[Record], boundaries: Sequence[int | None] = (), verdicts: Sequence[str | None] = ()
) -> Figure:
    """Up to six donors overlaid by relative depth: target probability, JS and dJS, bands for 95% intervals.

    `boundaries`, one per donor, are dashed lines before its first deep layer, in the donor's colour; lines at one place
    take turns, so that all are visible; `verdicts` are those of their licences. Markers are hollow at layers that the
    lens cannot read. The legend has the accuracy of each donor. Raises InputError for no donor and for more than six.
    """
    if not 1 <= len(records) <= MAX_DONORS:
        what = f"{len(records)} donors cannot be distinguished in one picture."
        raise InputError(Problem("plot", what, f"Overlay 1 to {MAX_DONORS}."))
    with matplotlib.rc_context(plot_style()):
        figure = Figure(figsize=(8, 8.5), layout="constrained")
        rows = figure.subplots(3, 1, sharex=True)
        names = name_donors(records)
        labels = [
            panels.label_donor(record, name, boundary, verdict)
            for record, name, boundary, verdict in zip_longest(records, names, boundaries, verdicts)
        ]
        for axes, measure in zip(rows, ("target_prob", "js", "delta_js"), strict=True):
            for index, (record, label) in enumerate(zip(records, labels, strict=True)):
                panels.overlay(axes, record, measure, index, label)
            panels.draw_boundaries(axes, records, boundaries)
            axes.set_ylabel(panels.AXES[measure])
            axes.set_ylim(bottom=0)
        hollow = f"; hollow: the lens explains under {LEAST_EXPLAINED:.0%}" if any(map(blind_layers, records)) else ""
        notes = [BANDS, f"dashed lines: boundaries{hollow}"]
        rows[-1].set_xlabel("\n".join(["relative depth: (layer + 1) / number of layers", *notes]))
        rows[-1].set_xlim(-0.02, 1.02)
        handles, labels = rows[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", frameon=False, fontsize=9)
    parts = [f"{name}: {findings(record) or 'no accuracy'}" for name, record in zip(names, records, strict=True)]
    describe(figure, f"Traces of {len(records)} donors by relative depth", "; ".join([*parts, *notes]))
    return figure


def describe(figure: Figure, title: str, description: str) -> None:
    """Give a figure the title and the description that its SVG will have."""
    figure.set_label(f"{title}\n{description}")


def write_figure(figure: Figure, path: Path) -> None:
    """Write a figure as SVG or PNG, by the suffix, complete or not at all; on one machine always the same bytes.

    An SVG keeps its text as text, has the title and description of `describe`, and dark colours. Raises InputError for
    another suffix.
    """
    kind = figure_kind(path)
    metadata = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}[kind]
    buffer = io.BytesIO()
    with matplotlib.rc_context(plot_style()), warnings.catch_warnings():
        # Without a font for a donor's name the PNG shows boxes in it; the SVG is right.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    content = buffer.getvalue()
    if kind == "svg":
        title, _, description = str(figure.get_label()).partition("\n")
        content = finish_svg(content.decode(), title, description).encode()
    write_file(path, content)


def figure_kind(path: Path) -> str:
    """ "svg" or "png", by the suffix. Raises InputError for another one."""
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("svg", "png"):
        raise InputError(Problem(str(path), f"the format '{path.suffix}' is not supported.", "Name it .svg or .png."))
    return kind


def plot_style() -> dict[str, Any]:
    """The settings of matplotlib that every figure is drawn and written with."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return {
        "font.family": ["DejaVu Sans", *[name for name in CJK_FONTS if name in installed][:1]],
        "font.size": 10,
        "figure.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#DDDDDD",
        "axes.axisbelow": True,
        "text.parse_math": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "hybridizer",
    }
