"""The picture of a trial holds what its record and its curves say."""

import numpy as np
import pytest

from hybridizer.report.plots import write_figure
from hybridizer.report.trial_curves import BUDGETS
from hybridizer.report.trial_plot import draw_trial
from support.trials import make_curves, make_record


def lines_of(axes):
    return {line.get_label(): (line.get_xdata(), line.get_ydata()) for line in axes.get_lines()}


def test_a_line_is_the_mean_of_the_seeds_at_each_budget():
    curves = make_curves()
    figure = draw_trial(make_record(), curves)
    assert len(figure.axes) == 2 * len(BUDGETS)
    for axes, budget in zip(figure.axes, [*BUDGETS] * 2, strict=True):
        text = "python" if axes in figure.axes[:3] else "news"
        rows = [[row for row in c.rows if row["set"] == text] for c in curves if c.arm == "full"]
        x, y = lines_of(axes)["full"]
        assert y == pytest.approx(np.mean([[row["bits_per_byte"] for row in of] for of in rows], axis=0))
        assert x == pytest.approx(np.mean([[row[budget] for row in of] for of in rows], axis=0))


def test_a_run_that_ended_early_shortens_its_arm_to_the_steps_that_all_have():
    curves = make_curves(arms=("deep",))
    curves[0].rows[:] = [row for row in curves[0].rows if row["step"] < 30]
    x, _ = lines_of(draw_trial(make_record(arms=("deep", "full")), curves).axes[0])["deep"]
    assert x == pytest.approx([0, 20_480, 40_960])


def test_without_curves_the_figures_at_the_end_are_drawn_with_intervals_and_seeds():
    record = make_record()
    figure = draw_trial(record)
    assert len(figure.axes) == len(record["outcomes"])
    drawn = [list(map(float, line.get_xdata())) for line in figure.axes[0].get_lines()]
    for arm in record["arms"]:
        found = arm["figures"][0]
        assert [found["value"]] in drawn and found["ci"] in drawn and found["seed_values"] in drawn


@pytest.mark.slow
@pytest.mark.parametrize("curves", [(), make_curves()], ids=["figures", "curves"])
def test_the_svg_has_the_verdicts_for_readers_who_do_not_see_it_and_the_same_bytes_each_time(tmp_path, curves):
    written = []
    for name in ("a.svg", "b.svg"):
        write_figure(draw_trial(make_record(), curves), tmp_path / name)
        written.append((tmp_path / name).read_text())
    assert written[0] == written[1]
    assert "shallow (a) and full (b): b is better" in written[0] and "prefers-color-scheme: dark" in written[0]


def test_one_seed_is_drawn_without_an_interval(tmp_path):
    write_figure(draw_trial(make_record(seeds=(0,))), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000
