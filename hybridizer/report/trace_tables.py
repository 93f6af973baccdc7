"""Traces, profiles, rankings and baselines as tables for a terminal: rich renderables, for the command line to print.

All take the plain objects of the contracts "hybridizer.trace/3", "hybridizer.profile/2" and "hybridizer.ranking/4".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group

from hybridizer.report.captions import Record, caption, count_prompts, one_line
from hybridizer.report.tables import WIDE, Fitting, TextTable, under

if TYPE_CHECKING:  # baselines need torch, and a plan shows a ranking without it
    from hybridizer.trace.baselines import LayerScores

BAR_WIDTH = 6
MAX_SETTINGS, LEAST_SETTINGS = 10, 3
LICENSED, ABOVE = "licensed", "above 0"  # the words of trace/licence.py, which loads numpy
_FIGURES = {
    "score": ".3f",
    "bits_per_byte": ".3f",
    "stability": ".3f",
    "competence": ".3f",
    "accuracy": ".1%",
    "target_prob": ".1%",
    "selection_accuracy": ".1%",
}


def trace_table(record: Record, boundary: int | None = None, verdict: str | None = None) -> Group:
    """One row per layer, parted before the first deep one: target probability, JS, dJS, S and task particles.

    S(layer) is the debiased S of the boundary that would make this layer the first deep one; layer 0 has none.
    `verdict` is that of the boundary's licence. Terminals of less than 80 columns get no intervals.
    """
    about = "JS, dJS and S(layer) in bits; S is debiased"
    wide, narrow = (_layer_rows(record, boundary, intervals) for intervals in (True, False))
    bands = "dJS and S(layer) with 95% intervals over prompts", "95% intervals: from 80 columns on, or with --json"
    return under(
        [*caption(record, boundary, verdict), about], Fitting(WIDE, under(bands[:1], wide), under(bands[1:], narrow))
    )


def _layer_rows(record: Record, boundary: int | None, intervals: bool) -> TextTable:
    table = TextTable()
    table.add_columns("layer", "target", "JS", "dJS", "S(layer)", justify="right", no_wrap=True)
    table.add_column("particles", no_wrap=True)
    scores = {row["b"]: row for row in record["boundary"]}
    most = max(1, *(row["task_particles"] for row in record["layers"]))
    for row in record["layers"]:
        score = scores.get(row["layer"])
        table.add_row(
            str(row["layer"]),
            f"{row['target_prob']:.3f}",
            f"{row['js']:.3f}",
            _figure(row["delta_js"], row.get("delta_js_ci") if intervals else None, ".3f"),
            _figure(score["s_debiased"], score["s_debiased_ci"] if intervals else None, "+.3f") if score else "",
            f"{'█' * round(BAR_WIDTH * row['task_particles'] / most):{BAR_WIDTH}} {row['task_particles']}",
            end_section=_ends_shallow(row["layer"], boundary),
        )
    return table


def boundary_lines(boundary: Mapping[str, Any]) -> list[str]:
    """The boundary that a strategy chose, and why."""
    return [f"boundary by strategy '{boundary['strategy']}': layer {boundary['layer']}. {boundary['reason']}"]


def licence_table(boundary: Mapping[str, Any], donor: str | None = None) -> Group | None:
    """The settings that do not agree to freezing from this boundary on, lowest S first; of a licence its least ones.

    At most MAX_SETTINGS. None where no setting has an S. `donor` is named where there are several.
    """
    licence, b = boundary["licence"] or {}, boundary["layer"]
    known = sorted((row for row in licence.get("settings", ()) if row["s"] is not None), key=lambda row: row["s"])
    if not known:
        return None
    agreed = licence["verdict"] == LICENSED
    chosen = [row for row in known if agreed or row["says"] != ABOVE]
    shown = chosen[: LEAST_SETTINGS if agreed else MAX_SETTINGS]
    table = TextTable()
    table.add_columns("mask", "lens", "template")
    table.add_columns("n", "clusters", f"S({b})", "95% interval", justify="right", no_wrap=True)
    for row in shown:
        band = row["s_ci"]
        template = "all" if row["template"] is None else one_line(repr(row["template"]), 60)
        table.add_row(
            one_line(repr(row["mask"]), 30),
            row["lens"],
            template,
            str(row["n"]),
            str(row["num_clusters"]),
            f"{row['s']:+.3f}",
            f"{band[0]:+.3f}..{band[1]:+.3f}" if band else "-",
        )
    of = f" of {one_line(donor, 60)}" if donor else ""
    which = "the least are" if agreed else "those not above 0 are"
    rest = f" ({len(chosen) - len(shown)} more with --json)" if len(chosen) > len(shown) else ""
    about = f"freezing from layer {b}{of} on is {licence['verdict']}, by {len(known)} settings; {which}{rest}"
    return under([about], table)


def settings_lines(record: Record) -> list[str]:
    """The settings that the figures depend on, those that do not apply left out."""
    settings = {key: value for key, value in record["settings"].items() if value is not None}
    shown = ", ".join(f"{key} {_setting(value)}" for key, value in settings.items())
    return [f"{count_prompts(record['probes'])} of {one_line(record['probes']['name'], 60)}; settings: {shown}"]


def _setting(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " and ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else one_line(value, 40)


def profile_table(profile: Mapping[str, Any]) -> Group:
    """One row per layer, parted before the first deep one: dJS and target probability before, and their changes.

    Above it, whether the deep side kept its profile, in a sentence, and how S changed. Terminals of less than 80
    columns get no intervals.
    """
    b, change = profile["boundary"], _figure(profile["s_change"], profile["s_change_ci"], "+.3f")
    score = f"debiased S({b}) was {profile['s_before']:+.3f} bits and is {profile['s_after']:+.3f}: {change}"
    about = f"{profile['n']} prompts before and after training, 95% intervals over them; dJS and target as before"
    wide, narrow = (_profile_rows(profile, intervals) for intervals in (True, False))
    return under([profile["sentence"], score, about], Fitting(WIDE, wide, narrow))


def _profile_rows(profile: Mapping[str, Any], intervals: bool) -> TextTable:
    table = TextTable()
    table.add_columns("layer", "dJS", "change", "target", "change", justify="right", no_wrap=True)
    for row in profile["layers"]:
        bands = (row["delta_js_change_ci"], row["target_prob_change_ci"]) if intervals else (None, None)
        table.add_row(
            str(row["layer"]),
            f"{row['delta_js_before']:.3f}",
            _figure(row["delta_js_change"], bands[0], "+.3f"),
            f"{row['target_prob_before']:.3f}",
            _figure(row["target_prob_change"], bands[1], "+.3f"),
            end_section=_ends_shallow(row["layer"], profile["boundary"]),
        )
    return table


def ranking_table(ranking: Mapping[str, Any]) -> Group:
    """The donors, best first: score, its parts, their intervals; with its name its layers, ties and remarks.

    One row per donor, or one small table per donor on terminals of less than 80 columns.
    """
    table, between = TextTable(leading=1), "\n"
    table.add_column("donor")
    table.add_columns(
        "score\nbits per byte",
        "stability",
        "competence",
        "accuracy\ntarget probability\nselection half",
        justify="right",
        no_wrap=True,
    )
    for row in ranking["ranking"]:
        table.add_row(
            "\n".join(_donor_lines(row)),
            f"{_figure(row['score'], row['score_ci'], '.3f', between)}\n{_figure(row['bits_per_byte'], None, '.3f')}",
            *(_figure(row[name], row[f"{name}_ci"], ".3f", between) for name in ("stability", "competence")),
            "\n".join(
                _figure(row[name], row[f"{name}_ci"], ".1%")
                for name in ("accuracy", "target_prob", "selection_accuracy")
            ),
        )
    notes = [
        f"{one_line(donor, 60)}: deep from layer {boundary['layer']} on ({boundary['strategy']}). {boundary['reason']}"
        for donor, boundary in ranking.get("boundaries", {}).items()
    ]
    notes += ranking.get("notes", ())
    whole = [row for row in ranking["ranking"] if row["why_whole"]]
    notes += [f"{one_line(row['donor'], 60)} was measured whole: {one_line(row['why_whole'], 200)}" for row in whole]
    narrow = Group(*(under(_donor_lines(row), _donor_figures(row)) for row in ranking["ranking"]))
    return under([_about_ranking(ranking), *_about_items(ranking)], Fitting(WIDE, table, narrow), notes)


_SCORES = {
    "transplant": "bytes per bit",
    "transplant-competence": "competence",
    "stability-competence": "stability x competence",
    "stability": "stability",
}


def _about_ranking(ranking: Mapping[str, Any]) -> str:
    score = _SCORES.get(ranking["by"], ranking["by"])
    if all(row["measured"] == "whole" for row in ranking["ranking"]):
        return f"by {ranking['by']}: score = {score}, with 95% intervals"
    other = "shallow" if ranking["side"] == "deep" else "deep"
    side = f"each {ranking['side']} side with the {other} side of {one_line(str(ranking['host']), 40)}"
    return f"by {ranking['by']}: score = {score}, of {side}, with 95% intervals"


def _about_items(ranking: Mapping[str, Any]) -> list[str]:
    """What stability, competence and bits were measured on."""
    answered = count_prompts({"n": ranking["answered_n"], "num_clusters": ranking["answered_clusters"]})
    halves = f"the held-out half, {answered}; selection half, {ranking['selection_n']}"
    lines = [
        f"stability: {count_prompts(ranking)}",
        f"competence: {halves if ranking['selection_n'] else answered}; chance {ranking['chance']:.1%}",
    ]
    if ranking["num_documents"]:
        lines.append(f"text: {ranking['num_documents']} documents, {ranking['num_bytes']:,} bytes")
    return lines


def _donor_lines(row: Mapping[str, Any]) -> list[str]:
    lines = [one_line(row["donor"], 55), f"layers {row['first_layer']}..{row['last_layer']}"]
    tied = ", ".join(one_line(name, 40) for name in row["tied_with"])
    lines += [f"tied with {tied}"] if tied else []
    lines += [] if row["competent"] else ["not above chance"]
    return [*lines, f"may have memorised the {row['memorised']} half"] if row["memorised"] else lines


def _donor_figures(row: Mapping[str, Any]) -> TextTable:
    table = TextTable(show_header=False)
    for name, form in _FIGURES.items():
        label = name.replace("_prob", " probability").replace("_", " ")
        table.add_row(label, _figure(row[name], row[f"{name}_ci"], form))
    return table


def baseline_table(baselines: Sequence[LayerScores]) -> Group:
    """One row per layer, one column per baseline; "-" where a measure has no value. Above it, the source of each.

    Terminals of less than 80 columns get no intervals.
    """
    wide, narrow = (_baseline_rows(baselines, intervals) for intervals in (True, False))
    lines = [f"{scores.name}: {scores.source}; high: {scores.high_means}" for scores in baselines]
    return under(lines, Fitting(WIDE, wide, narrow))


def _baseline_rows(baselines: Sequence[LayerScores], intervals: bool) -> TextTable:
    table = TextTable()
    table.add_column("layer", justify="right")
    table.add_columns(*(scores.name for scores in baselines), justify="right", no_wrap=True)
    for layer in range(len(baselines[0].values)):
        bands = (scores.intervals[layer] if intervals else None for scores in baselines)
        values = (scores.values[layer] for scores in baselines)
        table.add_row(str(layer), *(_figure(*pair, ".3f") for pair in zip(values, bands, strict=True)))
    return table


def _ends_shallow(layer: int, boundary: int | None) -> bool:
    return boundary is not None and layer == boundary - 1


def _figure(value: float | None, band: Sequence[float] | None, form: str, between: str = " ") -> str:
    """A value and its interval, such as "0.022 0.016..0.028"."""
    if value is None:
        return "-"
    return f"{value:{form}}" + (f"{between}{band[0]:{form}}..{band[1]:{form}}" if band else "")
