"""What an SVG gets beyond matplotlib's drawing: a title and a description for screen readers, and colours for the dark.

Browsers use the dark colours where the reader's system is dark, and the light ones on paper.
"""

from __future__ import annotations

import re
from xml.sax.saxutils import escape

# Colours of the pictures in light -> in dark. Other colours of data are readable on both.
DARK = {
    "#ffffff": "#15181c",  # ground
    "#222222": "#d8dce2",  # ink
    "#000000": "#d8dce2",  # axes and ticks
    "#dddddd": "#343a42",  # grid
    "#e8edf2": "#232d3a",  # deep side
    "#b8b8b8": "#565c64",  # hatching of blind layers
    "#0072b2": "#4ba3dd",  # the first colour of data, too dark on a dark ground
}


_STYLE = re.compile(r'style="([^"]*)"')
_NEUTRAL = re.compile(rf"(fill|stroke): ({'|'.join(DARK)})")


def finish_svg(drawing: str, title: str, description: str) -> str:
    """`drawing`, an SVG as matplotlib writes it, with a title, a description and colours for dark screens."""
    start, opening, rest = drawing.partition("<svg ")
    attributes, closing, body = rest.partition(">")
    assert opening and closing, "an SVG has a root element"
    about = f"<title>{escape(title)}</title>\n <desc>{escape(description)}</desc>"
    style = f"<style>{_dark_rules()}</style>"
    return f'{start}<svg role="img" {attributes}>\n {about}\n {style}{_STYLE.sub(_with_classes, body)}'


def _with_classes(match: re.Match[str]) -> str:
    """A style attribute with a class for each neutral colour in it, such as fill-ffffff."""
    classes = [f"{kind}-{colour[1:]}" for kind, colour in _NEUTRAL.findall(match[1])]
    return f'class="{" ".join(classes)}" {match[0]}' if classes else match[0]


def _dark_rules() -> str:
    rules = [
        f".{kind}-{light[1:]} {{ {kind}: {dark} !important }}"
        for light, dark in DARK.items()
        for kind in ("fill", "stroke")
    ]
    return " ".join(["@media (prefers-color-scheme: dark) { text { fill: #d8dce2 }", *rules, "}"])
