"""What a terminal shows of a scan."""

import re

import pytest

from hybridizer.report.scan_tables import chance_lines, setting_lines, winners_table
from hybridizer.report.terminal import render
from support.synthetic_scan import synthetic_scan


def test_the_best_are_shown_with_their_changes_intervals_and_verdicts():
    record = synthetic_scan({"a": 6, "b": 6})
    shown = render(winners_table(record), 120)
    assert "the 2 best of the search" in shown and "hold for all 2 together" in shown
    for winner in record["winners"]:
        change = winner["bits_change"]["change"]
        low, high = winner["bits_change"]["change_ci"]
        line = next(line for line in shown.splitlines() if line.startswith(winner["row"]["name"]))
        assert f"{change:+.4f}" in line and winner["verdict"] in line and "-2.5%" in line
        assert f"{low:+.4f}..{high:+.4f}" in shown


@pytest.mark.parametrize("columns", [40, 60, 79, 80])
def test_tables_fit_the_terminal_and_narrow_ones_leave_intervals_out(columns):
    shown = render(winners_table(synthetic_scan({"a": 6, "b": 6})), columns)
    assert max(map(len, shown.splitlines())) <= columns
    assert bool(re.search(r"[+-]\d\.\d+\.\.", shown)) == (columns >= 80)


def test_the_settings_say_what_was_tried_on_what():
    record = synthetic_scan({"a": 6, "b": 6})
    first, tried, search, test = setting_lines({**record, "num_tried": 9, "num_possible": 400, "num_refused": 2})
    assert first == "a, 6 layers, with b"
    assert tried == (
        "9 models tried of 400 (drawn with seed 0), 2 that the family cannot have; searched by bits per byte"
    )
    assert search == "search: 8 documents of Python reference, 1.0500 bits per byte as it is"
    assert "20 prompts of antonyms-en in 10 groups, accuracy 40.0% as it is" in test


def test_a_screen_is_shown_with_how_many_passed_it():
    record = synthetic_scan({"a": 6}, screened=True)
    lines = setting_lines({**record, "num_scored": 3})
    assert f"{record['num_tried']} models tried, 3 of them passed the screen" in lines[1]
    assert [line.partition(":")[0] for line in lines[2:]] == ["screen", "search", "test"]


def test_chance_is_shown_with_the_false_discovery_rate():
    first, second = chance_lines(synthetic_scan({"a": 6}))
    assert "3 of 22 models looked better by more than 2.1 standard errors" in first
    assert "0.7 would by chance, a false-discovery rate of 23%" in first
    assert second == "the best by 3.1; by chance the best of 22 exceeds 3.4 in 5% of the cases"


def test_where_nothing_looked_better_that_is_said():
    record = synthetic_scan({"a": 6})
    null = {**record["null"], "num_found": 0, "best_found": -0.4, "false_discovery_rate": None}
    first, second = chance_lines({**record, "null": null})
    assert "0.7 would by chance" in first and "rate" not in first and second.startswith("none looked better")
    assert chance_lines({**record, "null": None}) == []
