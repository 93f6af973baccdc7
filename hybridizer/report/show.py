"""What each command shows of its result, in order: warnings first, then tables, then lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridizer.core.records import to_jsonable
from hybridizer.plan.plan import Plan
from hybridizer.report.terminal import draw, echo, warn

if TYPE_CHECKING:  # traces load numpy, which most commands do not need
    from hybridizer.evaluate.trial_record import TrialRecord, TrialTimes
    from hybridizer.trace.boundary import Boundary
    from hybridizer.trace.record import TraceRun

    # Arm, seed and rows of each run of a trial that measured held-out text.
    RunCurves = Sequence[tuple[str, int, Sequence[Mapping[str, Any]]]]


def show_traces(traces: Sequence[TraceRun]) -> None:
    """Each trace: its table with the boundary that `auto` chooses, the reason, the settings, and its baselines."""
    for traced in traces:
        _show_trace(traced)


def _show_trace(traced: TraceRun) -> None:
    from hybridizer.report.trace_tables import (
        baseline_table,
        boundary_lines,
        licence_table,
        settings_lines,
        trace_table,
    )

    record, boundary = traced.record.to_json(), _boundary_of(traced)
    if boundary is not None and boundary.warning:
        warn(boundary.warning)
    draw(trace_table(record, boundary.layer if boundary else None, _verdict_of(boundary)))
    if boundary is not None:
        about = to_jsonable(boundary)
        echo(*boundary_lines(about))
        if (table := licence_table(about)) is not None:
            draw(table)
    echo(*settings_lines(record))
    if traced.baselines:
        draw(baseline_table(traced.baselines))


def _boundary_of(traced: TraceRun) -> Boundary | None:
    """The boundary that `auto` chooses in a trace; None for a model of a single layer, which has none."""
    from hybridizer.trace.boundary import choose_boundary

    return choose_boundary("auto", traced.record) if traced.record.boundary else None


def _verdict_of(boundary: Boundary | None) -> str | None:
    return None if boundary is None or boundary.licence is None else boundary.licence.verdict


def plot_traces(traces: Sequence[TraceRun], path: Path) -> None:
    """Draw one trace in full, or several overlaid, into `path`."""
    from hybridizer.report.plots import draw_donors, draw_trace, write_figure

    records = [traced.record.to_json() for traced in traces]
    found = [_boundary_of(traced) for traced in traces]
    boundaries = [boundary.layer if boundary else None for boundary in found]
    verdicts = [_verdict_of(boundary) for boundary in found]
    if len(traces) == 1:
        write_figure(draw_trace(records[0], boundaries[0], verdicts[0]), path)
    else:
        write_figure(draw_donors(records, boundaries, verdicts), path)
    echo(f"drew {path}", err=True)


def show_ranking(ranking: Mapping[str, Any]) -> None:
    """Its warnings, the whole ranking with its boundaries and their licences, and the settings of the traces."""
    warn(*ranking["warnings"])
    for boundary in ranking["boundaries"].values():
        if boundary["warning"]:
            warn(boundary["warning"])
    _draw_ranking(ranking)


def _draw_ranking(ranking: Mapping[str, Any]) -> None:
    from hybridizer.report.trace_tables import licence_table, ranking_table, settings_lines

    draw(ranking_table(ranking))
    for donor, boundary in ranking["boundaries"].items():
        if (table := licence_table(boundary, donor)) is not None:
            draw(table)
    echo(*settings_lines(ranking))


def show_scan(record: Mapping[str, Any], out: Path | None) -> None:
    """A scan: what was tried, the best tested again, what chance would find, and the result in a sentence."""
    from hybridizer.report.scan_tables import chance_lines, setting_lines, winners_table

    echo(*setting_lines(record))
    if record["winners"]:
        draw(winners_table(record))
    echo(*chance_lines(record))
    echo(record["sentence"])
    if out is not None:
        echo(f"wrote {len(record['winners'])} recipes into {out}")


def plot_scan(record: Mapping[str, Any], path: Path) -> None:
    """Draw every candidate of a scan into `path`."""
    from hybridizer.report.plots import write_figure
    from hybridizer.report.scan_plot import draw_scan

    write_figure(draw_scan(record), path)
    echo(f"drew {path}", err=True)


def show_plan(made: Plan, amounts: Mapping[str, Any], cost: Any, expected: Any, every_layer: bool) -> None:
    """A plan with the amounts of its run, its cost and the measured time, where they are given, and its rankings."""
    from hybridizer.report.cost_tables import cost_table, expectation_lines, stages_table
    from hybridizer.report.plan_tables import (
        amount_lines,
        plan_table,
        served_lines,
        swap_table,
        training_lines,
        unused_lines,
    )

    warn(*made.warnings, *amounts["warnings"])
    draw(plan_table(made, every_layer=every_layer))
    if cost is not None and cost.stages:
        draw(stages_table(cost.to_json()))
    if cost is not None:
        draw(cost_table(cost.to_json()))
    if expected is not None:
        draw(expectation_lines(to_jsonable(expected)))
    if made.evidence.ranking is not None:
        _draw_ranking(made.evidence.ranking)
        if (shallow := made.evidence.ranking.get("shallow")) is not None:
            _draw_ranking(shallow)
    if made.evidence.swap is not None and (table := swap_table(made.evidence.swap)) is not None:
        draw(table)
    reasons = [*made.evidence.reasons, *served_lines(made)]
    echo(*amount_lines(amounts), *reasons, *training_lines(made), *unused_lines(made))


def show_evaluation(record: Mapping[str, Any], gate: Sequence[str]) -> None:
    """Every figure of every model, every pair, the overlaps with training text, and the limits."""
    from hybridizer.report.eval_tables import figures_table, overlap_lines, pairs_table

    draw(figures_table(record))
    if record["pairs"]:
        draw(pairs_table(record))
    echo(*overlap_lines(record), *gate)


def show_trial_plan(plan: Mapping[str, Any]) -> None:
    """The arms of a trial with their cost, and what it could tell."""
    from hybridizer.report.trial_plan_tables import trial_plan_table

    draw(trial_plan_table(plan))


def show_trial(record: TrialRecord, times: TrialTimes, curves: RunCurves) -> None:
    """What each arm is and how its learning rate was chosen, figures and costs, the curves, then every pair."""
    from hybridizer.report.trial_curves import RunCurve, budgets_table
    from hybridizer.report.trial_plan_tables import arm_lines
    from hybridizer.report.trial_tables import trial_pairs_table, trial_table

    plain = record.to_json()
    echo(*arm_lines(plain))
    budgets = budgets_table(plain, [RunCurve(*curve) for curve in curves])
    draw(trial_table(plain, times.to_json()), *([budgets] if budgets else []), trial_pairs_table(plain))


def plot_trial(record: TrialRecord, path: Path, curves: RunCurves) -> None:
    """Draw a finished trial into `path`."""
    from hybridizer.report.plots import write_figure
    from hybridizer.report.trial_curves import RunCurve
    from hybridizer.report.trial_plot import draw_trial

    write_figure(draw_trial(record.to_json(), [RunCurve(*curve) for curve in curves]), path)
    echo(f"drew {path}", err=True)


def show_build(built: Any) -> None:
    """A finished run: where its layers come from, what was verified, what training did."""
    from hybridizer.report.plan_tables import origins_table, proofs_table

    warn(*built.plan.warnings)
    draw(origins_table(built.manifest), proofs_table(built.proofs))
    if built.outcome is not None:
        _show_outcome(built)


def _show_outcome(built: Any) -> None:
    from hybridizer.report.plan_tables import trained_lines
    from hybridizer.report.score_tables import bits_table, samples_text
    from hybridizer.report.trace_tables import profile_table

    echo(*trained_lines(built.manifest.training, built.plan.train.loss_of))
    if built.outcome.scores["sets"]:
        draw(bits_table(built.outcome.scores))
    if built.outcome.scores["samples"]:
        draw(samples_text(built.outcome.scores))
    if built.outcome.profile is not None:
        draw(profile_table(built.outcome.profile))
    echo(*map(str, built.outcome.gate))
