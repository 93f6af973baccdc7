"""Traces, profiles, rankings and baselines as tables for a terminal: rich renderables, for the command line to print.

All take the plain objects of the contracts "hybridizer.trace/2", "hybridizer.profile/2" and "hybridizer.ranking/2".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from hybridizer.report.captions import Record, caption, one_line

if TYPE_CHECKING:  # baselines need torch, and a plan shows a ranking without it
    from hybridizer.trace.baselines import LayerScores

BAR_WIDTH = 6


def trace_table(record: Record, boundary: int | None = None) -> Group:
    """One row per layer, parted before the first deep one: target probability, JS, dJS, S and task particles.

    In 80 columns. S(layer) is S of the boundary that would make this layer the first deep one; layer 0 has none.
    """
    table = _table()
    for name in ("layer", "target", "JS", "dJS", "S(layer)"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("particles", no_wrap=True)
    scores = {row["b"]: row for row in record["boundary"]}
    most = max(1, *(row["task_particles"] for row in record["layers"]))
    for row in record["layers"]:
        score = scores.get(row["layer"])
        table.add_row(
            str(row["layer"]),
            f"{row['target_prob']:.3f}",
            f"{row['js']:.3f}",
            _figure(row["delta_js"], row.get("delta_js_ci"), ".3f"),
            _figure(score["s"], score["s_ci"], "+.3f") if score else "",
            f"{'█' * round(BAR_WIDTH * row['task_particles'] / most):{BAR_WIDTH}} {row['task_particles']}",
            end_section=_ends_shallow(row["layer"], boundary),
        )
    about = "JS, dJS and S(layer) in bits, the last two with 95% intervals over prompts"
    return _under([*caption(record, boundary), about], table)


def profile_table(profile: Mapping[str, Any]) -> Group:
    """One row per layer, parted before the first deep one: dJS and target probability before, and their changes.

    Above it what became of the deep side, in a sentence, and of S.
    """
    table = _table()
    for name in ("layer", "dJS", "change", "target", "change"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in profile["layers"]:
        table.add_row(
            str(row["layer"]),
            f"{row['delta_js_before']:.3f}",
            _figure(row["delta_js_change"], row["delta_js_change_ci"], "+.3f"),
            f"{row['target_prob_before']:.3f}",
            _figure(row["target_prob_change"], row["target_prob_change_ci"], "+.3f"),
            end_section=_ends_shallow(row["layer"], profile["boundary"]),
        )
    b, change = profile["boundary"], _figure(profile["s_change"], profile["s_change_ci"], "+.3f")
    score = f"S({b}) was {profile['s_before']:+.3f} bits and is {profile['s_after']:+.3f}: {change}"
    about = f"{profile['n']} prompts before and after training, 95% intervals over them; dJS and target as before"
    return _under([profile["sentence"], score, about], table)


def ranking_table(ranking: Mapping[str, Any]) -> Group:
    """One row a donor, best first: score, its parts and their intervals; under its name the layers judged, and ties."""
    answered = f"{ranking['n']} prompts, {ranking['answered_n']} of them with an answer; chance {ranking['chance']:.1%}"
    table = _table(leading=1)
    table.add_column("donor", overflow="fold")
    for name in ("score", "stability", "competence", "accuracy\ntarget probability"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in ranking["ranking"]:
        tied = ", ".join(one_line(name, 40) for name in row["tied_with"])
        lines = [one_line(row["donor"], 60), f"layers {row['first_layer']}..{row['last_layer']}"]
        table.add_row(
            escape("\n".join([*lines, f"tied with {tied}"] if tied else lines)),
            *(_figure(row[name], row[f"{name}_ci"], ".3f", "\n") for name in ("score", "stability", "competence")),
            "\n".join(_figure(row[name], row[f"{name}_ci"], ".1%") for name in ("accuracy", "target_prob")),
        )
    return _under(["score = stability x competence, each with its 95% interval over prompts", answered], table)


def baseline_table(baselines: Sequence[LayerScores]) -> Group:
    """One row a layer, one column a baseline; "-" where a measure has no value. Above it, where each comes from."""
    table = _table()
    table.add_column("layer", justify="right")
    for scores in baselines:
        table.add_column(scores.name, justify="right", no_wrap=True)
    for layer in range(len(baselines[0].values)):
        figures = (_figure(scores.values[layer], scores.intervals[layer], ".3f") for scores in baselines)
        table.add_row(str(layer), *figures)
    return _under([f"{scores.name}: {scores.source}; high: {scores.high_means}" for scores in baselines], table)


def _ends_shallow(layer: int, boundary: int | None) -> bool:
    return boundary is not None and layer == boundary - 1


def _table(leading: int = 0) -> Table:
    return Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, leading=leading)


def _under(lines: Sequence[str], table: Table) -> Group:
    """The table below some lines of text, which are as wide as the terminal and not as the table."""
    return Group(Text("\n".join(lines)), Text(), table)


def _figure(value: float | None, band: Sequence[float] | None, form: str, between: str = " ") -> str:
    """A value and its interval, such as "0.022 0.016..0.028"."""
    if value is None:
        return "-"
    return f"{value:{form}}" + (f"{between}{band[0]:{form}}..{band[1]:{form}}" if band else "")
