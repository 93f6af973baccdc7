"""The command line, `hybridize`: the only file that prints or exits."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from hybridizer import __version__
from hybridizer.errors import HybridizerError
from hybridizer.records import to_jsonable

_BUG = 70  # EX_SOFTWARE of sysexits.h
_RECIPE = click.argument("recipe", type=click.Path(dir_okay=False, path_type=Path))
_MODEL = click.argument("model", type=click.Path(path_type=Path))
_SET = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a recipe key: a.b=c.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object for machines.")
_RUNS = click.option(
    "--runs", type=click.Path(file_okay=False, path_type=Path), default="runs", show_default=True,
    help="Folder that holds one folder for each run.",
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
            click.echo("interrupted; nothing half-written was left under its final name", err=True)
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
    from hybridizer.progress import ConsoleMonitor

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

    Exit codes: 0 done, 1 the run failed, 2 the input is at fault, 70 a bug in hybridizer.
    """


@main.command()
@click.argument("target", type=click.Path(dir_okay=False, path_type=Path), default="recipe.yaml")
@_command
def init(target: Path) -> None:
    """Write a commented starter recipe to TARGET (recipe.yaml)."""
    from hybridizer.durable import write_file
    from hybridizer.errors import OutputError, Problem
    from hybridizer.recipe.starter import starter

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
    from hybridizer import build as line

    checked = line.check(recipe, overrides, _monitor(), deep=deep)
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


@main.command()
@_RECIPE
@_SET
@_RUNS
@_JSON
@_command
def plan(recipe: Path, overrides: tuple[str, ...], runs: Path, as_json: bool) -> None:
    """Show where every output layer of RECIPE comes from, and write plan.json into the run's folder."""
    from hybridizer import build as line
    from hybridizer.terminal import plan_table, unused_lines

    resolved, made, _ = line.plan_recipe(recipe, overrides, _monitor())
    folder = runs / resolved.name
    line.write_records(folder, resolved, made)
    if as_json:
        _print_json(made.to_json())
        return
    _draw(plan_table(made))
    for text in [*unused_lines(made), *(f"warning: {warning}" for warning in made.warnings)]:
        click.echo(text)
    click.echo(f"wrote {folder / 'plan.json'}; next: hybridize build {recipe}")


@main.command()
@_RECIPE
@_SET
@_RUNS
@_DEEP
@_NO_LOAD
@click.option("--replace", is_flag=True, help="Replace a model of another plan in the run's folder.")
@_JSON
@_command
def build(
    recipe: Path, overrides: tuple[str, ...], runs: Path, deep: bool, no_load: bool, replace: bool, as_json: bool
) -> None:
    """Run the whole line of RECIPE: plan, splice, export, verify. The model is in RUNS/<name>/model."""
    from hybridizer import build as line
    from hybridizer.terminal import origins_table, proofs_table

    built = line.build(recipe, overrides, runs, _monitor(), replace=replace, deep=deep, load=not no_load)
    if as_json:
        _print_json({"folder": built.folder, "plan_hash": built.plan.hash, "proofs": built.proofs})
        return
    for warning in built.plan.warnings:
        click.echo(f"warning: {warning}")
    _draw(origins_table(built.manifest), proofs_table(built.proofs))
    click.echo(f"{built.folder / 'model'} is complete and verified; next: hybridize inspect {built.folder}")


@main.command()
@_MODEL
@_NO_LOAD
@_JSON
@_command
def verify(model: Path, no_load: bool, as_json: bool) -> None:
    """Prove that MODEL (a model folder, or a run) is what its manifest says, loads, and computes."""
    from hybridizer import build as line
    from hybridizer.terminal import proofs_table

    manifest, proofs = line.verify_folder(model, _monitor(), load=not no_load)
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
    from hybridizer import build as line
    from hybridizer.terminal import origins_table

    manifest = line.read_model_manifest(model)
    if as_json:
        _print_json(manifest.to_json())
        return
    _draw(origins_table(manifest))
    for name, donor in manifest.donors.items():
        click.echo(f"donor '{name}': {donor.reference}, {donor.family}, {donor.num_layers} layers, {donor.fingerprint}")
    if tensors:
        for name, tensor in manifest.tensors.items():
            origins = " + ".join(tensor.origins)
            click.echo(f"{name}  {tensor.dtype} {list(tensor.shape)}  {tensor.method} of {origins}")
