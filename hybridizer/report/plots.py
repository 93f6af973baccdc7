"""Pictures of trace records: one donor in full, or several overlaid; SVG or PNG.

Works on the plain objects of the contract "hybridizer.trace/2", so that any program's records can be drawn. Figures are
made without pyplot: nothing global is touched, and nothing needs a screen.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import matplotlib
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hybridizer.core.errors import InputError, Problem
from hybridizer.core.files import write_file
from hybridizer.report import panels
from hybridizer.report.captions import Record, caption

MAX_DONORS = len(panels.COLOURS)
# Names and probes may be Chinese: the first of these that is installed draws what DejaVu Sans cannot.
CJK_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei", "Microsoft YaHei",
             "PingFang SC", "SimHei")  # fmt: skip
# matplotlib writes colours as inline styles, which only !important overrides.
DARK_MODE = (
    "@media (prefers-color-scheme: dark) {"
    ' [style*="fill: #ffffff"] { fill: #16181d !important; }'
    " text { fill: #e6e6e6 !important; }"
    ' [style*="stroke: #000000"], [style*="stroke: #222222"] { stroke: #e6e6e6 !important; }'
    ' [style*="stroke: #dddddd"] { stroke: #3a3f47 !important; }'
    " }"
)
BANDS = "Bands and bars: 95% intervals over prompts"


def draw_trace(record: Record, boundary: int | None = None) -> Figure:
    """One donor: target probability, JS, dJS, S(b) and the task particles by layer, bands for 95% intervals.

    With a `boundary`, the first deep layer, the deep side is shaded, and the two means of dJS whose difference is
    S(boundary) are drawn.
    """
    with matplotlib.rc_context(plot_style()):
        figure = Figure(figsize=(8, 10.5), layout="constrained")
        rows = figure.subplots(len(panels.PANELS), 1, sharex=True)
        for axes, draw in zip(rows, panels.PANELS, strict=True):
            draw(axes, record, boundary)
            panels.mark_deep(axes, record, boundary)
        rows[-1].set_xlabel("layer, from 0; each at its output")
        rows[-1].set_xlim(-0.5, len(record["layers"]) - 0.5)
        rows[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        panels.name_sides(rows[0], record, boundary)
        figure.suptitle("\n".join([*caption(record, boundary), BANDS]), x=0.01, ha="left")
    return figure


def draw_donors(records: Sequence[Record], boundaries: Sequence[int | None] = ()) -> Figure:
    """Up to six donors overlaid by relative depth: target probability, JS and dJS, bands for 95% intervals.

    `boundaries`, one per donor, are dashed lines before its first deep layer, in the donor's colour. Raises InputError
    for no donor and for more than six.
    """
    if not 1 <= len(records) <= MAX_DONORS:
        what = f"{len(records)} donors cannot be distinguished in one picture."
        raise InputError(Problem("plot", what, f"Overlay 1 to {MAX_DONORS}."))
    with matplotlib.rc_context(plot_style()):
        figure = Figure(figsize=(8, 8.5), layout="constrained")
        rows = figure.subplots(3, 1, sharex=True)
        for axes, name in zip(rows, ("target_prob", "js", "delta_js"), strict=True):
            for index, record in enumerate(records):
                panels.overlay(axes, record, name, index)
                boundary = boundaries[index] if index < len(boundaries) else None
                if boundary is not None:
                    depth = (boundary + 0.5) / len(record["layers"])
                    axes.axvline(depth, color=panels.COLOURS[index], linestyle="--", linewidth=1)
            axes.set_ylabel(panels.AXES[name])
            axes.set_ylim(bottom=0)
        rows[-1].set_xlabel(f"relative depth: (layer + 1) / number of layers\n{BANDS}; dashed lines: boundaries")
        rows[-1].set_xlim(-0.02, 1.02)
        handles, labels = rows[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", frameon=False, fontsize=9)
    return figure


def write_figure(figure: Figure, path: Path, *, title: str = "", description: str = "") -> None:
    """Write a figure as SVG or PNG, by the suffix, complete or not at all; on one machine always the same bytes.

    An SVG keeps its text as text. With a `title` it gets that and the `description` for readers who do not see it, and
    the colours of dark mode where the reader has that. Raises InputError for another suffix.
    """
    kind = figure_kind(path)
    metadata = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}[kind]
    buffer = io.BytesIO()
    with matplotlib.rc_context(plot_style()), warnings.catch_warnings():
        # Without a font for a donor's name the PNG shows boxes in it; the SVG is right.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    content = buffer.getvalue()
    write_file(path, _described(content, title, description) if title and kind == "svg" else content)


def _described(svg: bytes, title: str, description: str) -> bytes:
    """The SVG with title, description and the style of dark mode as the first children of its root."""
    start = svg.index(b">", svg.index(b"<svg ")) + 1
    head = f"\n <title>{escape(title)}</title>\n <desc>{escape(description)}</desc>\n <style>{DARK_MODE}</style>"
    return svg[:start] + head.encode() + svg[start:]


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
