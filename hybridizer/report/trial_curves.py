"""The held-out curves of a trial: one line per arm and text, and the arms beside each other at equal budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Group

from hybridizer.report.captions import one_line
from hybridizer.report.cost_tables import duration, readable
from hybridizer.report.tables import TextTable, under

Record = Mapping[str, Any]
BUDGETS = {"tokens": "tokens of training", "flop": "FLOP of training", "seconds": "seconds of training"}
_NAME = 30


@dataclass(frozen=True)
class RunCurve:
    """The curve of one run of an arm: rows with step, tokens, flop, seconds, set, role and bits_per_byte.

    They are the lines of a run's curve.jsonl.
    """

    arm: str
    seed: int
    rows: Sequence[Record]

    def of_text(self, text: str) -> dict[int, Record]:
        """The rows of one text by step."""
        return {row["step"]: row for row in self.rows if row["set"] == text}


@dataclass(frozen=True)
class ArmLine:
    """One arm on one text, at the steps that all its runs have: bits per byte (runs, steps), budgets as run means."""

    bits_per_byte: npt.NDArray[np.float64]
    budgets: Mapping[str, npt.NDArray[np.float64]]

    def at(self, budget: str, amount: float) -> float:
        """The mean bits per byte where `amount` of the budget was spent, on a straight line between measurements."""
        return float(np.interp(amount, self.budgets[budget], self.bits_per_byte.mean(axis=0)))


def texts_of(curves: Sequence[RunCurve]) -> list[tuple[str, str]]:
    """Role and name of each text, in the order of the rows."""
    return list(dict.fromkeys((row["role"], row["set"]) for curve in curves for row in curve.rows))


def arm_line(curves: Sequence[RunCurve], arm: str, text: str) -> ArmLine | None:
    """The line of `arm` on `text`; None where no run of it measured that text."""
    runs = [found for curve in curves if curve.arm == arm and (found := curve.of_text(text))]
    if not runs:
        return None
    steps = sorted(set.intersection(*(set(run) for run in runs)))
    bits = np.array([[run[step]["bits_per_byte"] for step in steps] for run in runs])
    means = {name: np.array([np.mean([run[step][name] for run in runs]) for step in steps]) for name in BUDGETS}
    return ArmLine(bits, means)


def budgets_table(record: Record, curves: Sequence[RunCurve]) -> Group | None:
    """One row per text and budget, one column per arm: its curve where the arm that spends least has ended.

    None where no two arms have a curve. The budgets are tokens, FLOP and seconds; the last differ between machines.
    """
    names = [arm["name"] for arm in record["arms"]]
    table = TextTable()
    for header in ("text", "equal", *(one_line(name, _NAME) for name in names)):
        table.add_column(header, justify="left" if header in ("text", "equal") else "right")
    rows = 0
    for _, text in texts_of(curves):
        lines = {name: line for name in names if (line := arm_line(curves, name, text)) is not None}
        if len(lines) < 2:
            continue
        for budget in BUDGETS:
            least = min(float(line.budgets[budget][-1]) for line in lines.values())
            cells = [f"{lines[name].at(budget, least):.4f}" if name in lines else "-" for name in names]
            table.add_row(one_line(text, _NAME), _amount(budget, least), *cells)
            rows += 1
    if not rows:
        return None
    about = ["bits per byte of the held-out curves at equal budgets: means over seeds, lines between measurements"]
    return under(about, table)


def _amount(budget: str, amount: float) -> str:
    if budget == "seconds":
        return f"{amount:.0f} s" if amount < 1000 else duration(amount)
    return f"{readable(amount)} tokens" if budget == "tokens" else readable(amount, "FLOP")
