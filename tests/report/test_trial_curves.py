"""Arms are compared where they have spent the same, as their curves say."""

from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from hybridizer.report.trial_curves import BUDGETS, arm_line, budgets_table
from support.trials import make_curves, make_record


def cells(curves, record=None):
    """The rows of the table, by text and budget."""
    console = Console(width=200, record=True, file=SimpleNamespace(write=lambda _: None, flush=lambda: None))
    console.print(budgets_table(record or make_record(), curves))
    rows = [line.split("  ") for line in console.export_text().splitlines()]
    rows = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    return {(row[0], row[1]): row[2:] for row in rows if row and row[0] in ("python", "news")}


def test_each_budget_ends_where_the_arm_that_spends_least_ends():
    curves = make_curves()
    ends = {b: min(arm_line(curves, c.arm, "python").budgets[b][-1] for c in curves) for b in BUDGETS}
    found = cells(curves)
    assert len(found) == 2 * len(BUDGETS)
    assert ends["flop"] == 40e12 and ("python", "40.0 TFLOP") in found
    assert ends["tokens"] == 81_920 and ("python", "81.9 k tokens") in found


def test_an_arm_that_spends_more_is_read_between_its_measurements():
    curves = make_curves()
    full = arm_line(curves, "full", "python")  # three times the FLOP per step of deep
    at = 40e12 / 3 / 1e12  # the step, between 10 and 20
    means = full.bits_per_byte.mean(axis=0)
    expected = means[1] + (means[2] - means[1]) * (at - 10) / 10
    assert full.at("flop", 40e12) == pytest.approx(expected)
    assert cells(curves)["python", "40.0 TFLOP"][2] == f"{expected:.4f}"


def test_the_value_at_equal_tokens_is_the_mean_over_the_seeds():
    curves = make_curves()
    last = [c.rows[-2]["bits_per_byte"] for c in curves if c.arm == "shallow"]
    assert cells(curves)["python", "81.9 k tokens"][1] == f"{np.mean(last):.4f}"


def test_without_two_arms_that_have_curves_there_is_no_table():
    assert budgets_table(make_record(), []) is None
    assert budgets_table(make_record(), make_curves(arms=("deep",))) is None
