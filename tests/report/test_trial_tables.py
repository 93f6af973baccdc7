"""The tables of a trial hold what its record says."""

from rich.console import Console

from hybridizer.report.trial_tables import split_pairs, trial_pairs_table, trial_table
from support.trials import make_record, make_times


def text_of(table, width=160):
    console = Console(width=width)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_every_figure_stands_in_the_table_with_its_interval():
    record = make_record()
    text = text_of(trial_table(record, make_times()))
    for arm in record["arms"]:
        for figure in arm["figures"]:
            form = ".4f" if figure["metric"] == "bits_per_byte" else ".3f"
            assert f"{figure['value']:{form}}" in text
            assert f"{figure['ci'][0]:{form}}..{figure['ci'][1]:{form}}" in text
    assert "python (primary)" in text and "chance 0.250" in text
    for cost in ("50.0 M", "42.0 TFLOP", "0.0002"):
        assert cost in text


def test_time_is_the_mean_over_seeds_of_the_chosen_learning_rate():
    text = text_of(trial_table(make_record(), make_times()))
    (row,) = (line for line in text.splitlines() if line.startswith("time, measured"))
    assert row.split()[2:] == ["203", "s", "263", "s", "343", "s"]
    assert "196 s..210 s" in text  # Student's interval of 200, 203 and 206
    assert "9.00 TB" not in text


def test_memory_that_was_not_measured_is_the_estimate():
    text = text_of(trial_table(make_record(), make_times(peak_bytes=0)))
    assert "peak memory, estimated" in text and "2.00 GB" in text
    assert "peak memory, measured" not in text


def test_pairs_begin_with_the_primary_outcome_and_name_the_better_arm():
    record = make_record()
    rows = [line for line in text_of(trial_pairs_table(record)).splitlines() if "bits_per_byte  " in line]
    assert [row.split(",")[0] for row in rows[:3]] == ["python"] * 3
    for pair, row in zip(split_pairs(record)[0], rows, strict=False):
        winner = {"a is better": pair["a"], "b is better": pair["b"]}.get(pair["verdict"])
        assert f"{pair['b']} - {pair['a']}" in row and f"{pair['difference']:+.4f}" in row
        assert (f"{winner} is better" if winner else "no difference can be told") in row
    assert any("full is better" in row for row in rows)


def test_one_seed_has_no_interval_and_the_tables_say_why():
    record = make_record(seeds=(0,))
    tables = (trial_table(record, make_times(seeds=(0,))), trial_pairs_table(record))
    for text in map(text_of, tables):
        assert "one seed" in text
    assert "4 of 5 cases" not in text_of(tables[1])
