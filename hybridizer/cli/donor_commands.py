"""The commands that take donors: trace, rank and scan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from hybridizer.cli.options import (
    JSON_FILE,
    SEED,
    JsonFile,
    TraceCommand,
    scan_option,
    trace_options,
    trace_section,
)
from hybridizer.cli.program import OutputFile
from hybridizer.core.errors import RecipeError
from hybridizer.core.progress import ConsoleMonitor
from hybridizer.report.terminal import write_out
from hybridizer.scan.request import BY, KINDS, ScanRequest


@click.command(cls=TraceCommand)
@click.argument("donors", nargs=-1, required=True)
@trace_options
@click.option("--plot", type=OutputFile(".svg", ".png"), help="Draw the trace into this file, .svg or .png.")
@click.option("--baselines", is_flag=True, help="Add Spectrum's ratio, block influence and angular distance.")
def trace(donors: tuple[str, ...], plot: Path | None, baselines: bool, **options: Any) -> None:
    """Trace DONORS layer by layer.

    Shows where a task is executed, how stable each layer is, and the boundary that strategy auto chooses.
    """
    from hybridizer.pipeline.donors import trace_donors
    from hybridizer.report.show import plot_traces, show_traces

    allow, json_out = tuple(options["allow"]), options["json_out"]
    request = _trace_request(options)
    traces = trace_donors(donors, request, allow, ConsoleMonitor(), baselines=baselines, plot=plot, json_out=json_out)
    if plot is not None:
        plot_traces(traces, plot)
    records = [{**t.record.to_json(), **({"baselines": t.baselines} if baselines else {})} for t in traces]
    if write_out(json_out, records[0] if len(records) == 1 else records):
        show_traces(traces)


@click.command(cls=TraceCommand)
@click.argument("donors", nargs=-1, required=True)
@click.option(
    "--boundary", default="auto", show_default=True, help="Strategy, share or layer: the deep side is ranked."
)
@click.option(
    "--by", help="The measure: transplant (the default), transplant-competence, stability-competence, stability."
)
@click.option("--host", help="The donor that the sides of the others are measured on; the first if left out.")
@click.option(
    "--side", type=click.Choice(["deep", "shallow"]), default="deep", show_default=True, help="What is ranked."
)
@trace_options
def rank(donors: tuple[str, ...], boundary: str, by: str | None, host: str | None, side: str, **options: Any) -> None:
    """Rank DONORS by their deep layers.

    Each donor's deep side is measured on the shallow side of the host: bits per byte of a text, and the probes.
    """
    from hybridizer.pipeline.donors import rank_donors
    from hybridizer.report.show import show_ranking

    requested = _read_boundary(boundary)
    _, ranking = rank_donors(
        donors,
        _trace_request(options),
        tuple(options["allow"]),
        ConsoleMonitor(),
        boundary=requested,
        by=by,
        host=host,
        side=side,
        json_out=options["json_out"],
    )
    if write_out(options["json_out"], ranking.to_json()):
        show_ranking(ranking.to_json())


@click.command(cls=JsonFile)
@click.argument("donors", nargs=-1, required=True)
@click.option(
    "--changes",
    multiple=True,
    type=click.Choice(KINDS),
    help="Kinds of changes to try; by default all that the number of donors allows.",
)
@click.option(
    "--drop", type=click.IntRange(1), metavar="K", help="Find the K layers of the first donor that matter least."
)
@click.option("--per-layer", is_flag=True, help="Choose a donor for each layer, one layer at a time.")
@scan_option("span", "The most layers that a change cuts, repeats or swaps, or a seam adds or loses.")
@scan_option("beam", "How many models --drop and --per-layer continue from at each step.")
@click.option(
    "--by",
    type=click.Choice(BY),
    default=ScanRequest.by,
    show_default=True,
    help="The figure that is searched by: bits per byte of text, or accuracy of the probes.",
)
@scan_option("candidates", "The most models to try; of more, a random draw.")
@click.option(
    "--full",
    "screen",
    flag_value=False,
    default=True,
    help="Score every model in full, without a first look at many on few items.",
)
@scan_option("best", "How many of the best are tested again, on items that the search did not see.")
@click.option("--text", metavar="FILES", help="Text to score on: a file or a glob; by default the Python reference.")
@click.option(
    "--field", default="text", show_default=True, help="The JSONL field or Parquet column that holds the text."
)
@scan_option("documents", "How many documents of the text are scored, both halves together.", least=0)
@scan_option("document_tokens", "How many tokens of each document are scored.", least=2)
@click.option(
    "--probes", default="antonyms-en", show_default=True, help="Prompts: a built-in set, or a JSON Lines file."
)
@scan_option("prompts", "How many of the prompts are scored, both halves together.", least=0)
@JSON_FILE
@click.option("--plot", type=OutputFile(".svg", ".png"), help="Draw every candidate into this file, .svg or .png.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, writable=True, path_type=Path),
    help="Write the best as recipes into this folder.",
)
@click.option(
    "--allow",
    multiple=True,
    type=click.Choice(["remote_code", "pickle", "vocabulary"]),
    help="Permit donors of this kind.",
)
@SEED
def scan(
    donors: tuple[str, ...],
    json_out: Path | None,
    plot: Path | None,
    out: Path | None,
    text: str | None,
    field: str,
    probes: str,
    allow: tuple[str, ...],
    **options: Any,
) -> None:
    """Try changes of the layers of DONORS in memory.

    The first donor is the host; every change is compared with it as it is. Layers are cut, repeated and, with several
    donors, joined and swapped. The best are tested again on items that the search did not see.
    """
    from hybridizer.pipeline.scan_layers import scan_donors
    from hybridizer.recipe.models import DataEntry
    from hybridizer.report.show import plot_scan, show_scan

    entry = None if text is None else DataEntry(path=text, field=field)
    outputs = {"json_out": json_out, "plot": plot, "out": out}
    request = ScanRequest(**options)
    record = scan_donors(donors, request, ConsoleMonitor(), probes=probes, text=entry, allow=allow, **outputs).to_json()
    if plot is not None:
        plot_scan(record, plot)
    if write_out(json_out, record):
        show_scan(record, out)


def _trace_request(options: dict[str, Any]) -> Any:
    from hybridizer.recipe.options import read_section
    from hybridizer.trace.probes import load_probes
    from hybridizer.trace.runs import TraceRequest

    settings = read_section(trace_section(), options, click.get_current_context().command_path)
    probes = load_probes(settings.probes)
    return TraceRequest(probes, settings, options["seed"], options["device_map"], options["mask_positions"])


def _read_boundary(text: str) -> float | int | str:
    from hybridizer.recipe.fields import read_boundary
    from hybridizer.recipe.yaml import read_word

    try:
        return read_boundary(read_word(text).value)
    except RecipeError as error:
        raise RecipeError(*(replace(problem, where="--boundary") for problem in error.problems)) from None
