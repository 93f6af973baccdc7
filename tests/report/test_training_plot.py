"""The picture of a training holds what its log says."""

import math

import pytest

from hybridizer.report.plots import write_figure
from hybridizer.report.training_plot import draw_training


def lines_of(count, **more):
    return [
        {
            "step": step, "loss": 2 + math.exp(-step / 40), "lr": 1e-3 * (1 - step / count), "tokens": 512 * (step + 1),
            "seconds": 3.0 * (step + 1), "gradient_norm_shallow": 1.5 + math.sin(step), "gradient_norm_total": 1.5,
            **more,
        }
        for step in range(count)
    ]  # fmt: skip


def curves(figure):
    return {
        (axes.get_ylabel(), line.get_label()): [float(value) for value in line.get_ydata()]
        for axes in figure.axes
        for line in axes.get_lines()
    }


def test_the_curves_are_the_figures_of_the_log():
    lines = lines_of(120, gradient_norm_deep=0.5)
    found = curves(draw_training(lines, "x"))
    assert found["loss (nats per token)", "each step"] == [line["loss"] for line in lines]
    assert found["gradient norm", "deep"] == [0.5] * 120
    assert found["gradient norm", "shallow"] == [line["gradient_norm_shallow"] for line in lines]
    assert found["loss (nats per token)", "running mean"][-1] > lines[-1]["loss"]
    assert [line["lr"] for line in lines] in found.values()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_short_runs_have_a_picture_without_a_mean_and_the_same_bytes_each_time(tmp_path, count):
    written = []
    for name in ("a.svg", "b.svg"):
        figure = draw_training(lines_of(count), "run $x_1$")
        write_figure(figure, tmp_path / name)
        written.append((tmp_path / name).read_text())
    assert written[0] == written[1] and "run $x_1$" in written[0] and f"{count} steps, {512 * count:,}" in written[0]
    assert ("loss (nats per token)", "running mean") not in curves(figure)


def test_a_held_out_curve_is_drawn_by_step_whatever_the_order_of_its_rows():
    rows = [
        {"step": step, "set": name, "role": role, "change": change, "change_ci": [change - 0.1, change + 0.1]}
        for step, name, role, change in
        [(4, "t.txt", "in-domain", -0.2), (0, "t.txt", "in-domain", 0.0), (0, "news", "general", 0.0),
         (4, "news", "general", 0.3)]
    ]  # fmt: skip
    rows[0]["change_ci"] = None  # one document
    found = curves(draw_training(lines_of(4), "x", rows))
    assert found["held out: change of\nbits per byte", "t.txt (in domain)"] == [0.0, -0.2]
    assert found["held out: change of\nbits per byte", "news (general)"] == [0.0, 0.3]
    assert not any(panel.startswith("held out") for panel, _ in curves(draw_training(lines_of(4))))
