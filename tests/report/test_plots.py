"""The pictures hold what the record says, look the same every time, and leave nothing behind."""

import re
import subprocess
import sys
import warnings
from xml.etree import ElementTree

import matplotlib
import pytest

from hybridizer.core.errors import InputError
from hybridizer.report.plots import MAX_DONORS, draw_donors, draw_trace, write_figure
from support.synthetic_traces import synthetic_record

SVG = "http://www.w3.org/2000/svg"


def bytes_of(figure, folder, kind):
    path = folder / f"picture.{kind}"
    write_figure(figure, path)
    return path.read_bytes()


def text_of(figure, folder):
    return bytes_of(figure, folder, "svg").decode()


def lines_at(axes, place):
    return [line for line in axes.lines if list(line.get_xdata()) == [place, place]]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "start"), [("svg", b"<?xml"), ("png", b"\x89PNG\r\n\x1a\n")])
def test_the_same_record_gives_the_same_bytes(tmp_path, kind, start):
    first = bytes_of(draw_trace(synthetic_record(), 12), tmp_path, kind)
    assert first == bytes_of(draw_trace(synthetic_record(), 12), tmp_path, kind)
    assert first.startswith(start)
    assert b"dc:date" not in first and b"Matplotlib v" not in first and b"Software" not in first


def test_the_caption_says_what_was_measured_and_how(tmp_path):
    record = synthetic_record("模型/千问")
    text = text_of(draw_trace(record, 12, "not decided"), tmp_path)
    s = record["boundary"][11]["s_debiased"]
    for words in (
        "模型/千问, 30 layers",
        "500 prompts in 250 clusters of antonyms-en, context perturbation (30% masked), plain lens",
        "accuracy 45.2% (95% interval 41.0% to 49.0%); 30 prompts without a task particle",
        f"boundary at layer 12, the first deep one: debiased S(12) = {s:+.3f} bits "
        f"(95% interval {s - 0.01:+.3f} to {s + 0.01:+.3f})",
        "Bands and bars: 95% intervals over prompts, by cluster",
        "freezing layers 12..29: not decided",
    ):
        assert words in text


def test_both_perturbations_are_told_apart_and_the_vulnerable_layer_is_named(tmp_path):
    text = text_of(draw_trace(synthetic_record(with_layer=True)), tmp_path)
    assert "context and layer perturbation" in text
    assert "vulnerable layer 0" in text
    assert "context masked, read at this layer" in text
    assert "this layer disturbed, read at the end" in text


def test_every_panel_shows_the_numbers_of_the_record():
    record = synthetic_record()
    target, js, delta, scores, particles = draw_trace(record).axes
    assert list(target.lines[0].get_ydata()) == [row["target_prob"] for row in record["layers"]]
    assert list(js.lines[0].get_ydata()) == [row["js"] for row in record["layers"]]
    assert list(js.lines[0].get_xdata()) == list(range(30))
    assert list(js.lines[1].get_ydata()) == [0.03, 0.03]  # the embedding output
    assert [round(bar.get_x() + bar.get_width() / 2, 9) for bar in delta.patches] == list(range(30))
    assert [bar.get_height() for bar in delta.patches] == [row["delta_js"] for row in record["layers"]]
    assert [list(line.get_ydata()) for line in delta.lines] == [row["delta_js_ci"] for row in record["layers"]]
    assert list(scores.lines[1].get_ydata()) == [row["s_debiased"] for row in record["boundary"]]
    band = [height for place, height in scores.collections[0].get_paths()[0].vertices if place == 7]
    assert [min(band), max(band)] == record["boundary"][6]["s_debiased_ci"]
    assert list(scores.lines[2].get_ydata()) == [row["s"] for row in record["boundary"]]
    assert [text.get_text() for text in scores.get_legend().get_texts()] == [
        "debiased", "of absolute values, which noise makes too large",
    ]  # fmt: skip
    assert list(scores.lines[1].get_xdata()) == list(range(1, 30))
    assert [bar.get_height() for bar in particles.patches] == [row["task_particles"] for row in record["layers"]]
    assert len(lines_at(particles, record["task_particle"]["layer"])) == 1
    assert [len(axes.collections) for axes in (target, js, scores)] == [1, 1, 1]  # the bands


def test_the_boundary_lies_before_the_first_deep_layer_in_every_panel_and_the_axis_holds_all_layers():
    for axes in draw_trace(synthetic_record(), 12).axes:
        assert len(lines_at(axes, 11.5)) == 1
        assert axes.get_xlim() == (-0.5, 29.5)


def test_the_two_means_of_the_sides_differ_by_the_plain_s():
    record = synthetic_record()
    delta = draw_trace(record, 12).axes[2]
    shallow, deep = (line for line in delta.lines if list(line.get_xdata()) in ([-0.5, 11.5], [11.5, 29.5]))
    assert shallow.get_ydata()[0] - deep.get_ydata()[0] == pytest.approx(record["boundary"][11]["s"])


def test_a_record_of_the_bare_contract_is_drawn(tmp_path):
    """One prompt, no intervals, no answers, no task particle, and none of the fields that only we write."""
    record = synthetic_record(with_intervals=False)
    for name in ("embedding", "vulnerable_layer"):
        del record[name]
    for row in record["layers"]:
        del row["layer_js"], row["layer_js_ci"]
    record |= {"accuracy": None, "task_particle": {"layer": None, "relative_depth": None}}
    assert "accuracy" not in text_of(draw_trace(record, 12), tmp_path)
    assert "antonyms-en" in text_of(draw_donors([record], [12]), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a $5 or\n$10 <b>&amp;", "x" * 300, "模" * 300])
def test_a_strange_name_is_text_and_stays_inside_the_picture(tmp_path, name):
    figure = draw_trace(synthetic_record(name), 12)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # where no Chinese font is installed
        box = figure._suptitle.get_window_extent()
    assert 0 < box.x0 < box.x1 < figure.bbox.x1
    bytes_of(figure, tmp_path, "png")


def test_donors_are_overlaid_by_relative_depth_with_their_boundaries(tmp_path):
    records = [synthetic_record("alpha", 30), synthetic_record("beta", 18, height=0.02)]
    figure = draw_donors(records, [12, None], ["refused", None])
    for axes, name in zip(figure.axes, ("target_prob", "js", "delta_js"), strict=True):
        for line, record in zip([line for line in axes.lines if len(line.get_xdata()) > 2], records, strict=True):
            assert list(line.get_ydata()) == [row[name] for row in record["layers"]]
            assert line.get_xdata()[-1] == 1
        assert len(lines_at(axes, 12.5 / 30)) == 1
    text = text_of(figure, tmp_path)
    assert "alpha, 30 layers" in text and "beta, 18 layers" in text
    assert text.count("freezing layers") == 1 and "freezing layers 12..29: refused" in text


@pytest.mark.parametrize("count", [0, MAX_DONORS + 1])
def test_more_donors_than_can_be_told_apart_are_refused(count):
    with pytest.raises(InputError, match=f"{count} donors cannot be distinguished"):
        draw_donors([synthetic_record()] * count)


@pytest.mark.slow
def test_six_donors_have_six_colours_and_six_markers():
    lines = draw_donors([synthetic_record()] * MAX_DONORS).axes[0].lines
    assert len({line.get_color() for line in lines}) == len({line.get_marker() for line in lines}) == MAX_DONORS


def test_another_kind_of_file_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match=r"the format '\.pdf'"):
        write_figure(draw_donors([synthetic_record()]), tmp_path / "picture.pdf")
    assert list(tmp_path.iterdir()) == []


def test_drawing_leaves_the_settings_of_matplotlib_alone(tmp_path):
    with matplotlib.rc_context({"font.size": 23, "svg.hashsalt": "mine"}):
        before = dict(matplotlib.rcParams)
        bytes_of(draw_trace(synthetic_record()), tmp_path, "png")
        draw_donors([synthetic_record()])
        assert dict(matplotlib.rcParams) == before


def test_the_text_of_an_svg_is_text_and_no_mathematics(tmp_path):
    text = text_of(draw_trace(synthetic_record("a $5 or\n$10 <b>")), tmp_path)
    assert re.search(r"<text[^>]*>a \$5 or \$10 &lt;b&gt;, 30 layers</text>", text)


@pytest.mark.slow
def test_pyplot_and_torch_stay_away():
    code = "import sys, hybridizer.report.plots; print({'matplotlib.pyplot', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def blind(record, *layers):
    for layer in layers:
        record["layers"][layer]["blind"] = True
    return record


def test_an_svg_has_a_title_and_a_description_and_colours_for_dark_screens(tmp_path):
    text = text_of(draw_trace(synthetic_record("a<b"), 12), tmp_path)
    root = ElementTree.fromstring(text)
    title, description = (root.find(f"{{{SVG}}}{name}").text for name in ("title", "desc"))
    assert title == "Trace of a<b, 30 layers" and "accuracy 45.2%" in description and root.get("role") == "img"
    assert "prefers-color-scheme: dark" in root.find(f"{{{SVG}}}style").text
    ground = root.find(f".//{{{SVG}}}path")
    assert ground.get("class") == "fill-ffffff" and ".fill-ffffff { fill: #15181c" in text
    several = ElementTree.fromstring(text_of(draw_donors([synthetic_record("m"), synthetic_record("n")]), tmp_path))
    assert several.find(f"{{{SVG}}}title").text == "Traces of 2 donors by relative depth"
    assert "n: accuracy 45.2%" in several.find(f"{{{SVG}}}desc").text


@pytest.mark.slow
def test_layers_that_the_lens_cannot_read_are_hatched_and_their_markers_hollow(tmp_path):
    figure = draw_trace(blind(synthetic_record(), 3, 4), 12)
    for axes in figure.axes:
        hatched = [patch for patch in axes.patches if patch.get_hatch()]
        assert [(patch.get_x(), patch.get_width()) for patch in hatched] == [(2.5, 1), (3.5, 1)]
    assert "hatched: the lens explains under 10% there" in text_of(figure, tmp_path)
    assert "hatched" not in text_of(draw_trace(synthetic_record(), 12), tmp_path)
    overlaid = draw_donors([blind(synthetic_record(), 3), synthetic_record("b")])
    hollow = [line for line in overlaid.axes[0].lines if line.get_markerfacecolor() == "#FFFFFF"]
    assert [list(line.get_xdata()) for line in hollow] == [[4 / 30]]
    assert "hollow: the lens explains under 10%" in text_of(overlaid, tmp_path)


def test_boundaries_at_one_place_take_turns_so_that_all_are_visible():
    lines = [
        line for line in draw_donors([synthetic_record()] * 3, [12, 12, 20]).axes[0].lines if len(line.get_xdata()) == 2
    ]
    first, second, alone = (line._unscaled_dash_pattern for line in lines)
    assert first == (0, (5, 5)) and second == (5, (5, 5)) and alone == (0, (5, 5))
    assert lines[0].get_xdata() == lines[1].get_xdata() != lines[2].get_xdata()


@pytest.mark.slow
def test_an_overlay_has_accuracies_and_names_in_place_of_paths(tmp_path):
    records = [synthetic_record(name) for name in ("/models/a/final", "/models/b/final", "org/model@main")]
    text = text_of(draw_donors(records), tmp_path)
    for name in ("a/final", "b/final", "org/model@main"):
        assert f">{name}, 30 layers<" in text
    assert "/models/" not in text and text.count(">accuracy 45.2%") == 3
    assert ">final, 30 layers<" in text_of(draw_trace(records[0]), tmp_path)
