"""The picture of a scan shows every candidate in its cell, says what it shows, and can be read in dark mode."""

import re
import warnings
from xml.etree import ElementTree

import numpy as np
import pytest

from hybridizer.report.plots import write_figure
from hybridizer.report.scan_plot import describe_scan, draw_scan
from support.synthetic_scan import synthetic_scan


def images(figure):
    return {axes.get_title(loc="left"): (axes, axes.images[0].get_array()) for axes in figure.axes if axes.images}


def svg_of(record, folder):
    write_figure(draw_scan(record), folder / "x.svg")
    return (folder / "x.svg").read_text()


def test_every_candidate_is_drawn_in_its_cell():
    record = synthetic_scan({"a": 6, "b": 6})
    drawn = images(draw_scan(record))
    of_one = {"layers left out", "layers that run twice"}
    assert set(drawn) == {*of_one, "layers replaced by those of b", "a below, b above", "b below, a above"}
    for row in record["candidates"]:
        place = row["place"]
        if row["kind"] == "cut":
            axes, grid = drawn["layers left out"]
            assert grid[place["last"] - place["first"], place["first"]] == pytest.approx(row["change"])
        if row["kind"] == "seam" and place["shallow"] == "a":
            axes, grid = drawn["a below, b above"]
            left, _, bottom, _ = axes.images[0].get_extent()
            assert grid[int(place["begin"] - bottom - 0.5), int(place["end"] - left - 0.5)] == row["change"]
    cells = sum(int((~np.ma.getmaskarray(np.ma.masked_invalid(grid))).sum()) for _, grid in drawn.values())
    assert cells == len(record["candidates"])


@pytest.mark.slow
def test_better_is_blue_for_bits_and_for_accuracy():
    for by, low in (("bits", True), ("accuracy", False)):
        record = synthetic_scan({"a": 6}, by=by)
        image = images(draw_scan(record))["layers left out"][0].images[0]
        red, _, blue, _ = image.cmap(0.0 if low else 1.0)
        assert blue > red
        assert image.norm.vmin == -image.norm.vmax


def test_the_screen_is_drawn_where_candidates_were_screened():
    record = synthetic_scan({"a": 6}, screened=True)
    figure = draw_scan(record)
    grid = images(figure)["layers left out"][1]
    row = next(row for row in record["candidates"] if row["name"] == "cut 2")
    assert grid[0, 2] == pytest.approx(row["screened"]) != row["change"]
    assert any("(screen)" in axes.get_xlabel() for axes in figure.axes)


def test_tested_candidates_are_marked_and_better_ones_with_a_star():
    record = synthetic_scan({"a": 6})
    found = [(line.get_marker(), *line.get_xydata()[0]) for axes in draw_scan(record).axes for line in axes.lines]
    wanted = []
    for winner in record["winners"]:
        place = winner["row"]["place"]
        marker = "*" if winner["verdict"] == "better" else "o"
        wanted.append((marker, place["first"], place["last"] - place["first"] + 1))
    assert sorted(found) == sorted(wanted) and {marker for marker, *_ in found} == {"*", "o"}


@pytest.mark.parametrize("settings", [{"drop": 2}, {"per_layer": True}])
def test_a_search_step_by_step_is_drawn_by_its_steps(settings):
    record = synthetic_scan({"a": 6, "b": 6}, steps=settings)
    (axes,) = draw_scan(record).axes
    best = next(line for line in axes.lines if line.get_label() == "best of each step")
    assert list(best.get_xdata()) == [1, 2]
    for step, value in zip(best.get_xdata(), best.get_ydata(), strict=True):
        changes = [row["change"] for row in record["candidates"] if step_of(row) == step]
        assert value == min(changes)
    assert "left out" in axes.get_xlabel() or "from other donors" in axes.get_xlabel()


def step_of(row):
    guests = sum(1 for piece in row["slices"] if piece["donor"] == "b")
    return 6 - row["num_layers"] or guests


def test_the_picture_has_a_title_and_a_description_and_colours_for_dark_mode(tmp_path):
    record = synthetic_scan({"a": 6})
    text = svg_of(record, tmp_path)
    root = ElementTree.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    assert [child.tag for child in root][:3] == [f"{space}title", f"{space}desc", f"{space}style"]
    assert root[0].text == f"Scan of {record['donors'][0]['reference']}" and root[1].text == describe_scan(record)
    assert record["candidates"][0]["name"] in root[1].text and record["sentence"] in root[1].text
    assert ".fill-ffffff" in root[2].text and 'class="fill-ffffff"' in text


def test_the_caption_stays_inside_the_picture():
    figure = draw_scan(synthetic_scan({"a" * 40: 6, "模型" * 20: 6}))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # where no Chinese font is installed
        box = figure._suptitle.get_window_extent()
    assert 0 < box.x0 < box.x1 < figure.bbox.x1


def test_the_same_scan_gives_the_same_bytes(tmp_path):
    record = synthetic_scan({"a": 6})
    first = svg_of(record, tmp_path)
    assert svg_of(record, tmp_path) == first and not re.search("dc:date", first)
