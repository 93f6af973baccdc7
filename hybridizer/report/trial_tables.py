"""A finished trial as tables for a terminal: rich renderables of the contracts "hybridizer.trial/1" and its times."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group

from hybridizer.evaluate.figures import A_BETTER, B_BETTER
from hybridizer.evaluate.trial import seed_mean
from hybridizer.report.captions import one_line
from hybridizer.report.cost_tables import duration, readable
from hybridizer.report.tables import TextTable, under

Record = Mapping[str, Any]

ROLES = ("in-domain", "retention", "task", "recall")
_FORMS = {"bits_per_byte": ".4f", "answer_bits": ".3f", "margin_bits": "+.3f"}  # others are shares of items
_NAME = 30


def trial_table(record: Record, times: Record) -> Group:
    """One row per outcome, learning rate and cost, one column per arm: the mean over seeds above its 95% interval.

    `times` is the record of the seconds and bytes that were measured. Memory and time are those of one training.
    """
    table = TextTable(leading=1)
    table.add_column("")
    table.add_column("before", justify="right")
    table.add_columns(*(one_line(arm["name"], _NAME) for arm in record["arms"]), justify="right")
    for outcome in sorted(record["outcomes"], key=lambda found: ROLES.index(found["role"])):
        table.add_row(*_outcome_row(record, outcome))
    for name, cells in _cost_rows(record, times):
        table.add_row(name, "", *cells)
    seeds = ", ".join(map(str, record["seeds"]))
    about = [
        f"{record['name']}: {len(record['arms'])} arms, each with seeds {seeds}",
        "means over seeds, with 95% intervals over other seeds and other items",
    ]
    return under(about, table, _notes(record))


def trial_pairs_table(record: Record) -> Group:
    """One row per outcome and pair of arms, the primary outcome first: b - a, its interval, p after Holm, verdict."""
    table = TextTable()
    table.add_columns("outcome", "arms, b - a")
    table.add_column("difference", justify="right")
    table.add_column("95%", no_wrap=True)
    table.add_column("p, Holm", justify="right")
    table.add_column("verdict")
    first, others = split_pairs(record)
    for pair in (*first, *others):
        table.add_row(*_pair_row(pair))
    primary = record["primary"]
    about = [
        f"differences of arms; the primary outcome, declared before, is {primary['metric']} of {primary['what']}",
        f"p values are corrected for {len(first)} pairs in the primary outcome and {len(others)} in the others;"
        " intervals are of each pair alone",
    ]
    caveats = dict.fromkeys(f"{pair['what']}: {pair['caveat']}" for pair in record["pairs"] if pair["caveat"])
    return under(about, table, [*detectable_lines(record), *caveats])


def split_pairs(record: Record) -> tuple[list[Record], list[Record]]:
    """The pairs in the primary outcome, and those in all others, in the order of the record."""
    primary = (record["primary"]["what"], record["primary"]["metric"])
    first = [pair for pair in record["pairs"] if (pair["what"], pair["metric"]) == primary]
    return first, [pair for pair in record["pairs"] if (pair["what"], pair["metric"]) != primary]


def detectable_lines(record: Record) -> list[str]:
    """The smallest difference that the trial could tell; nothing where that is not known."""
    if record["detectable"] is None:
        return []
    form = _FORMS.get(record["primary"]["metric"], ".3f").replace("+", "")
    return [f"With this spread the trial finds differences of {record['detectable']:{form}} in 4 of 5 cases."]


def figure_of(arm: Record, outcome: Record) -> Record | None:
    """The figure of an arm that is this outcome; None where the arm has none."""
    key = outcome["what"], outcome["metric"]
    return next((figure for figure in arm["figures"] if (figure["what"], figure["metric"]) == key), None)


def _outcome_row(record: Record, outcome: Record) -> list[str]:
    form = _FORMS.get(outcome["metric"], ".3f")
    key = (outcome["what"], outcome["metric"])
    found = [figure_of(arm, outcome) for arm in record["arms"]]
    before = next((f["before"] for f in found if f and f["before"] is not None), None)
    primary = (record["primary"]["what"], record["primary"]["metric"]) == key
    better = "less is better" if outcome["lower_is_better"] else "more is better"
    chance = "" if outcome["chance"] is None else f"; chance {outcome['chance']:{form.replace('+', '')}}"
    name = [
        f"{one_line(outcome['what'], _NAME)}{' (primary)' if primary else ''}",
        f"{outcome['role']}, {outcome['metric']}",
        f"{better}{chance}",
    ]
    cells = ["-" if figure is None else _cell(figure["value"], figure["ci"], form) for figure in found]
    return ["\n".join(name), "" if before is None else f"{before:{form}}", *cells]


def _cost_rows(record: Record, times: Record) -> Iterator[tuple[str, list[str]]]:
    arms = record["arms"]
    yield "learning rate", [f"{arm['lr']:g}" for arm in arms]
    yield "trained parameters", [readable(arm["cost"]["trained_parameters"]) for arm in arms]
    yield "FLOP", [readable(arm["cost"]["flop"], "FLOP") for arm in arms]
    for name, key, unit in (("peak memory", "peak_bytes", _bytes), ("time", "seconds", _seconds)):
        measured = [_measured(times, arm, key) for arm in arms]
        if any(measured):
            yield f"{name}, measured", [_scaled(values, unit) for values in measured]
        elif key == "peak_bytes":
            yield f"{name}, estimated", [_bytes(arm["cost"]["peak_bytes"]) for arm in arms]


def _measured(times: Record, arm: Record, key: str) -> list[float]:
    """One figure per seed of the trainings with the chosen learning rate; 0 stands for what was not measured."""
    runs = [run for run in times["runs"] if run["arm"] == arm["name"] and run["lr"] == arm["lr"]]
    return [float(run[key]) for run in runs if run[key]]


def _scaled(values: Sequence[float], unit: Any) -> str:
    if not values:
        return "-"
    mean, band = seed_mean(values)
    ends = [] if band is None else [unit(max(0.0, end)) for end in band]
    return "\n".join([unit(mean), *(["..".join(ends)] if len({unit(mean), *ends}) > 1 else [])])


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value < 1000 else duration(value)


def _bytes(value: float) -> str:
    return readable(value, "B")


def _cell(value: float, band: Sequence[float] | None, form: str) -> str:
    return f"{value:{form}}\n{_spread(band, form)}"


def _pair_row(pair: Record) -> list[str]:
    form = _FORMS.get(pair["metric"], ".3f").replace("+", "")
    a, b = (one_line(pair[side], _NAME) for side in ("a", "b"))
    outcome = f"{one_line(pair['what'], _NAME)}, {pair['metric']}"
    p = "-" if pair["p_holm"] is None else "< 0.001" if pair["p_holm"] < 0.001 else f"{pair['p_holm']:.3f}"
    verdict = {A_BETTER: f"{a} is better", B_BETTER: f"{b} is better"}.get(pair["verdict"], str(pair["verdict"]))
    return [outcome, f"{b} - {a}", f"{pair['difference']:+{form}}", _spread(pair["ci"], f"+{form}"), p, verdict]


def _notes(record: Record) -> list[str]:
    caveats = dict.fromkeys(
        f"{figure['what']}: {figure['caveat']}"
        for arm in record["arms"]
        for figure in arm["figures"]
        if figure["caveat"]
    )
    return [*caveats, *record["notes"]]


def _spread(band: Sequence[float] | None, form: str) -> str:
    return f"{band[0]:{form}}..{band[1]:{form}}" if band else "-"
