"""The command line, `hybridize`: the only file that prints or exits."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import click

from hybridizer import __version__
from hybridizer.core.errors import HybridizerError
from hybridizer.core.records import to_jsonable

_BUG = 70  # EX_SOFTWARE of sysexits.h
_RECIPE = click.argument("recipe", type=click.Path(dir_okay=False, path_type=Path))
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_MODEL = click.argument("model", type=click.Path(path_type=Path))
_SET = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a recipe key: a.b=c.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object for machines.")
_RUNS = click.option(
    "--runs", type=click.Path(file_okay=False, path_type=Path), show_default="runs",
    help="Folder that holds one folder per run; for a stored plan, by default, the one that its run is in.",
)  # fmt: skip
_DEEP = click.option("--deep-check", "deep", is_flag=True, help="Scan every donor weight for NaN and infinity.")
_NO_LOAD = click.option("--no-load", is_flag=True, help="Leave out the checks that need the model in memory.")


def _command(function: Callable[..., Any]) -> Callable[..., None]:
    """Wrap a verb: its result is printed, its errors become messages and exit codes."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        as_json = bool(kwargs.get("as_json"))
        try:
            function(*args, **kwargs)
        except HybridizerError as error:
            _print_error(error, as_json)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo(
                "interrupted; nothing half-written was left under its final name. Run it again to go on.", err=True
            )
            sys.exit(130)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception:  # noqa: BLE001  the outermost frame: a bug is shown whole, never hidden
            sys.excepthook(*sys.exc_info())
            click.echo(f"this is a bug in hybridizer {__version__}: please report it with the lines above", err=True)
            sys.exit(_BUG)

    return run


def _print_error(error: HybridizerError, as_json: bool) -> None:
    for problem in error.problems:
        click.echo(str(problem), err=True)
    if len(error.problems) > 1:
        click.echo(f"{len(error.problems)} problems", err=True)
    if as_json:
        problems = [to_jsonable(problem) for problem in error.problems]
        _print_json({"error": type(error).__name__, "exit_code": error.exit_code, "problems": problems})


def _print_json(value: Any) -> None:
    click.echo(json.dumps(to_jsonable(value), indent=2, ensure_ascii=False))


def _monitor() -> Any:
    from hybridizer.core.progress import ConsoleMonitor

    return ConsoleMonitor()


def _draw(*renderables: Any) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    for renderable in renderables:
        console.print(renderable)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hybridize")
def main() -> None:
    """Build hybrid language models from pretrained checkpoints by YAML recipe.

    Exit codes: 0 done, 1 the run failed, 2 the input is at fault, 70 a bug in hybridizer, 130 stopped by Ctrl-C, 143 by
    SIGTERM.
    """


@main.command()
@click.argument("target", type=click.Path(dir_okay=False, path_type=Path), default="recipe.yaml")
@_command
def init(target: Path) -> None:
    """Write a commented starter recipe to TARGET (recipe.yaml)."""
    from hybridizer.core.errors import OutputError, Problem
    from hybridizer.core.files import write_file
    from hybridizer.recipe.template import starter

    if target.exists():
        raise OutputError(Problem(str(target), "this file is there already.", "Give another name."))
    if not target.parent.is_dir():
        raise OutputError(Problem(str(target), f"the folder {target.parent} is not there.", "Make it first."))
    write_file(target, starter())
    click.echo(f"wrote {target}; next: edit its donors, then hybridize check {target}")


@main.command()
@_command
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from hybridizer.recipe.schema import json_schema

    _print_json(json_schema())


@main.command()
@_RECIPE
@_SET
@_DEEP
@_JSON
@_command
def check(recipe: Path, overrides: tuple[str, ...], deep: bool, as_json: bool) -> None:
    """Find everything wrong with RECIPE that can be known without weights, all problems at once."""
    from hybridizer.pipeline.plan import check as check_recipe
    from hybridizer.recipe.models import AUTO

    checked = check_recipe(recipe, overrides, _monitor(), deep=deep)
    if as_json:
        layers = len(checked.plan.layers) if checked.plan else None
        _print_json({"recipe": str(recipe), "ok": True, "layers": layers, "waiting": checked.waiting})
        return
    if checked.plan is None:
        names = ", ".join(checked.waiting)
        click.echo(f"{recipe}: no problem found; not looked into yet, since `hybridize plan` fetches them: {names}")
        return
    for warning in checked.plan.warnings:
        click.echo(f"warning: {warning}")
    click.echo(
        f"{recipe}: no problem found; {len(checked.plan.layers)} layers, {checked.plan.num_parameters:,} parameters"
    )
    layout = checked.recipe.layout
    if layout.deep == AUTO:
        click.echo(f"`deep` is auto, which only a trace can choose; checked as if it were the host, '{layout.host}'")


class _TraceCommand(click.Command):
    """A command with an option for every key of a recipe's `trace` section.

    They are made when the command is used or asked for help: the sections load pydantic, which takes longer than all of
    `hybridize --help`.
    """

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        from hybridizer.recipe.options import section_options

        *own, help_option = super().get_params(ctx)
        return [*own, *section_options(_trace_section()), help_option]


def _trace_section() -> type:
    from hybridizer.recipe.models import Trace

    return Trace


def _trace_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that trace and rank share besides those of the `trace` section."""
    for option in (
        click.option("--json", "json_out", type=click.Path(path_type=Path), help="Write the record here; - prints it."),
        click.option(
            "--allow", multiple=True, help="Allow pickle, remote_code, vocabulary or no_tokenizer; refused otherwise."
        ),
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of everything random."),
        click.option("--device-map", help="Spread the model: auto, balanced, sequential, cpu, ..."),
        click.option("--mask-positions", type=_FILE, help="JSON: one list of token positions per prompt."),
    ):
        function = option(function)
    return function


def _trace(donors: tuple[str, ...], options: dict[str, Any], **more: Any) -> tuple[Any, Any]:
    from hybridizer.pipeline.donors import trace_donors
    from hybridizer.recipe.options import read_section
    from hybridizer.trace.probes import load_probes
    from hybridizer.trace.runs import TraceRequest

    settings = read_section(_trace_section(), options, click.get_current_context().command_path)
    request = TraceRequest(
        load_probes(settings.probes), settings, options["seed"], options["device_map"], options["mask_positions"]
    )
    traces = trace_donors(donors, request, tuple(options["allow"]), _monitor(), json_out=options["json_out"], **more)
    return traces, request


@main.command(cls=_TraceCommand)
@click.argument("donors", nargs=-1, required=True)
@_trace_options
@click.option("--plot", type=click.Path(path_type=Path), help="Draw it here: .svg or .png.")
@click.option("--baselines", is_flag=True, help="Add Spectrum's ratio, block influence and angular distance.")
@_command
def trace(donors: tuple[str, ...], plot: Path | None, baselines: bool, **options: Any) -> None:
    """Trace DONORS layer by layer: where a task is executed, and how stable each layer is."""
    traces, _ = _trace(donors, options, baselines=baselines, plot=plot)
    if plot is not None:
        _plot(traces, plot)
    if options["json_out"] is not None:
        records = [{**t.record.to_json(), **({"baselines": t.baselines} if baselines else {})} for t in traces]
        _write_out(options["json_out"], records[0] if len(records) == 1 else records)
    if str(options["json_out"]) != "-":
        from hybridizer.report.trace_tables import baseline_table, trace_table
        from hybridizer.trace.boundary import auto_layer

        for traced in traces:
            _draw(trace_table(traced.record.to_json(), auto_layer(traced.record)))
            if baselines:
                _draw(baseline_table(traced.baselines))


def _plot(traces: Sequence[Any], path: Path) -> None:
    from hybridizer.report.plots import draw_donors, draw_trace, write_figure
    from hybridizer.trace.boundary import auto_layer

    records = [traced.record.to_json() for traced in traces]
    boundaries = [auto_layer(traced.record) for traced in traces]
    if len(traces) == 1:
        write_figure(draw_trace(records[0], boundaries[0]), path)
    else:
        write_figure(draw_donors(records, boundaries), path)
    click.echo(f"drew {path}", err=True)


@main.command(cls=_TraceCommand)
@click.argument("donors", nargs=-1, required=True)
@click.option(
    "--boundary", default="auto", show_default=True, help="Strategy, share or layer: the deep side is ranked."
)
@_trace_options
@_command
def rank(donors: tuple[str, ...], boundary: str, **options: Any) -> None:
    """Rank DONORS by the stability of their deep layers, among those that can do the task."""
    from hybridizer.report.trace_tables import ranking_table
    from hybridizer.trace.ranking import rank as rank_traces

    asked = _read_boundary(boundary)
    traces, request = _trace(donors, options, ranked=True)
    ranking = rank_traces(traces, request.probes, asked, seed=options["seed"]).to_json()
    if options["json_out"] is not None:
        _write_out(options["json_out"], ranking)
    if str(options["json_out"]) != "-":
        _draw(ranking_table(ranking))


def _read_boundary(text: str) -> float | int | str:
    from dataclasses import replace

    from hybridizer.core.errors import RecipeError
    from hybridizer.recipe.fields import read_boundary
    from hybridizer.recipe.yaml import read_word

    try:
        return read_boundary(read_word(text).value)
    except RecipeError as error:
        raise RecipeError(*(replace(problem, where="--boundary") for problem in error.problems)) from None


def _write_out(path: Path, value: Any) -> None:
    if str(path) == "-":
        _print_json(value)
    else:
        from hybridizer.core.records import write_json

        write_json(path, value)


@main.command()
@_RECIPE
@_SET
@_RUNS
@click.option("--probe", is_flag=True, help="Run a few steps on random weights to tell how long training will take.")
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), help="What training is priced for; by default, what is here."
)
@_JSON
@_command
def plan(
    recipe: Path, overrides: tuple[str, ...], runs: Path | None, probe: bool, device: str | None, as_json: bool
) -> None:
    """Show where every output layer of RECIPE comes from and what training it will cost; write plan.json."""
    from hybridizer.pipeline.plan import estimate_time, estimate_training_cost, plan_recipe
    from hybridizer.pipeline.run import RunFolder, write_records
    from hybridizer.report.cost_tables import cost_table, expectation_lines
    from hybridizer.report.plan_tables import plan_table, training_lines, unused_lines

    planned = plan_recipe(recipe, overrides, _monitor())
    made = planned.plan
    run = RunFolder((runs or Path("runs")) / made.name)
    device = device or ("cuda" if any(Path("/dev").glob("nvidia[0-9]*")) else "cpu")
    cost = estimate_training_cost(planned, device)
    write_records(run, planned, cost)
    expected = estimate_time(planned, device) if probe else None
    if as_json:
        extra = {"cost": cost.to_json() if cost else None, "expected": expected}
        _print_json({**made.to_json(), **(extra if cost else {})})
        return
    _draw(plan_table(made))
    if cost is not None:
        _draw(cost_table(cost.to_json()))
    if expected is not None:
        _draw(expectation_lines(to_jsonable(expected)))
    warnings = [f"warning: {warning}" for warning in made.warnings]
    for text in [*made.evidence.reasons, *training_lines(made), *unused_lines(made), *warnings]:
        click.echo(text)
    click.echo(f"wrote {run.plan}; next: hybridize build {run.plan}")


@main.command()
@_RECIPE
@_SET
@_RUNS
@_DEEP
@_NO_LOAD
@click.option("--replace", is_flag=True, help="Replace a model of another plan in the run's folder.")
@click.option(
    "--accept-changes", is_flag=True, help="Go on from a checkpoint although lr, schedule or clipping changed."
)
@_JSON
@_command
def build(
    recipe: Path,
    overrides: tuple[str, ...],
    runs: Path | None,
    deep: bool,
    no_load: bool,
    replace: bool,
    accept_changes: bool,
    as_json: bool,
) -> None:
    """Run the whole line of RECIPE: plan, splice, train, export, verify. The model is in RUNS/<name>/model.

    RECIPE may be the plan.json of a run: that plan is built unchanged, from the donors and texts it was made with.

    Ctrl-C or SIGTERM during training saves the state after the running step and exits with code 130 or 143; run the
    same command to resume. A second signal, a second later or more, ends it at once.
    """
    from hybridizer.pipeline.build import build as build_recipe
    from hybridizer.pipeline.run import RunFolder
    from hybridizer.report.plan_tables import origins_table, proofs_table

    options = {"replace": replace, "deep": deep, "load": not no_load, "accept_changes": accept_changes}
    built = build_recipe(recipe, overrides, runs, _monitor(), **options)
    if built is None:  # another process prints
        return
    if as_json:
        value = {"folder": built.folder, "plan_hash": built.plan.hash, "proofs": built.proofs}
        _print_json(value if built.outcome is None else {**value, **to_jsonable(built.outcome)})
        return
    for warning in built.plan.warnings:
        click.echo(f"warning: {warning}")
    _draw(origins_table(built.manifest), proofs_table(built.proofs))
    if built.outcome is not None:
        _draw_outcome(built)
    click.echo(f"{RunFolder(built.folder).model} is complete and verified; next: hybridize inspect {built.folder}")


def _draw_outcome(built: Any) -> None:
    from hybridizer.report.plan_tables import trained_lines
    from hybridizer.report.score_tables import bits_table, samples_text
    from hybridizer.report.trace_tables import profile_table

    for line in trained_lines(built.manifest.training):
        click.echo(line)
    if built.outcome.scores["sets"]:
        _draw(bits_table(built.outcome.scores))
    if built.outcome.scores["samples"]:
        _draw(samples_text(built.outcome.scores))
    if built.outcome.profile is not None:
        _draw(profile_table(built.outcome.profile))


@main.command()
@_MODEL
@_NO_LOAD
@_JSON
@_command
def verify(model: Path, no_load: bool, as_json: bool) -> None:
    """Prove that MODEL (a model folder, or a run) is what its manifest says, loads, and computes."""
    from hybridizer.pipeline.verify import verify_folder
    from hybridizer.report.plan_tables import proofs_table

    manifest, proofs = verify_folder(model, _monitor(), load=not no_load)
    if as_json:
        _print_json({"model": manifest.name, "plan_hash": manifest.plan_hash, "proofs": proofs})
        return
    _draw(proofs_table(proofs))


@main.command()
@_MODEL
@click.option("--tensors", is_flag=True, help="List every tensor with its origin.")
@_JSON
@_command
def inspect(model: Path, tensors: bool, as_json: bool) -> None:
    """Show the layers of MODEL (a model folder, or a run) and where each came from."""
    from hybridizer.pipeline.run import read_model_manifest
    from hybridizer.report.plan_tables import origins_table

    manifest = read_model_manifest(model)
    if as_json:
        _print_json(manifest.to_json())
        return
    _draw(origins_table(manifest))
    for name, donor in manifest.donors.items():
        click.echo(f"donor '{name}': {donor.reference}, {donor.family}, {donor.num_layers} layers, {donor.fingerprint}")
    if tensors:
        for name, tensor in manifest.tensors.items():
            click.echo(f"{name}  {tensor.dtype} {list(tensor.shape)}  {tensor}")
