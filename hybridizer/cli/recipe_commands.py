"""The commands that take a recipe: init, schema, check, plan, build and trial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hybridizer.cli.options import DEEP, JSON, JSON_FILE, NO_LOAD, RECIPE, RUNS, SET, JsonFile
from hybridizer.cli.program import OutputFile, Verb
from hybridizer.core.errors import OutputError, Problem
from hybridizer.core.files import write_file
from hybridizer.core.progress import ConsoleMonitor
from hybridizer.core.records import to_jsonable
from hybridizer.report.terminal import echo, next_command, print_json, warn, write_out


@click.command(cls=Verb)
@click.argument("target", type=click.Path(dir_okay=False, path_type=Path), default="recipe.yaml")
@JSON
def init(target: Path, as_json: bool) -> None:
    """Write a commented starter recipe to TARGET (recipe.yaml)."""
    from hybridizer.recipe.template import starter

    if target.exists():
        raise OutputError(Problem(str(target), "this file exists.", "Give another name."))
    if not target.parent.is_dir():
        raise OutputError(Problem(str(target), f"the folder {target.parent} does not exist.", "Create it first."))
    write_file(target, starter())
    if as_json:
        print_json({"recipe": target})
        return
    echo(f"wrote {target}; name your donors in it")
    echo(next_command("check", target))


@click.command(cls=Verb)
@JSON
def schema(as_json: bool) -> None:
    """Print the JSON Schema of recipes, for editors.

    The output is JSON with and without --json.
    """
    from hybridizer.recipe.schema import json_schema

    print_json(json_schema())


@click.command(cls=Verb)
@RECIPE
@SET
@DEEP
@JSON
def check(recipe: Path, overrides: tuple[str, ...], deep: bool, as_json: bool) -> None:
    """Check RECIPE without reading weights.

    All problems are reported at once, each with its line.
    """
    from hybridizer.pipeline.plan import check as check_recipe
    from hybridizer.recipe.models import AUTO

    checked = check_recipe(recipe, overrides, ConsoleMonitor(), deep=deep)
    if as_json:
        layers = len(checked.plan.layers) if checked.plan else None
        print_json({"recipe": str(recipe), "ok": True, "layers": layers, "waiting": checked.waiting})
        return
    after = next_command("plan", recipe, overrides=overrides)
    warn(*checked.warnings)
    if checked.plan is None:
        names = ", ".join(checked.waiting)
        echo(f"{recipe}: no problem found; not checked yet, because `hybridize plan` fetches them: {names}")
        echo(after)
        return
    layers, parameters = len(checked.plan.layers), checked.plan.num_parameters
    echo(f"{recipe}: no problem found; {layers} layers, {parameters:,} parameters")
    layout = checked.recipe.layout
    if layout.candidates is not None:
        echo(f"the layers are left to a scan; checked as if they were the host's, '{layout.host}'")
    for side in ("deep", "shallow"):
        if getattr(layout, side) == AUTO:
            echo(f"`{side}` is auto, which only a trace can choose; checked as if it were the host, '{layout.host}'")
    echo(after)


@click.command(cls=Verb)
@RECIPE
@SET
@RUNS
@click.option(
    "--layers", "every_layer", is_flag=True, help="Show one row for each layer instead of runs of equal ones."
)
@click.option("--probe", is_flag=True, help="Run a few steps on random weights to measure how long training will take.")
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    help="Device of the estimated cost; by default this machine's.",
)
@click.option(
    "--configs",
    "from_configs",
    is_flag=True,
    help="Plan from each donor's config.json, without weights; writes no plan.",
)
@JSON
def plan(
    recipe: Path,
    overrides: tuple[str, ...],
    runs: Path | None,
    every_layer: bool,
    probe: bool,
    device: str | None,
    from_configs: bool,
    as_json: bool,
) -> None:
    """Plan RECIPE: origin of each layer, cost of training.

    Writes RUNS/<name>/plan.json, which `hybridize build` builds unchanged.
    """
    from hybridizer.pipeline.amounts import compute_amounts
    from hybridizer.pipeline.plan import estimate_time, estimate_training_cost, plan_from_configs, plan_recipe
    from hybridizer.pipeline.run import RunFolder, write_records
    from hybridizer.report.show import show_plan, show_trial_plan

    planned = (plan_from_configs if from_configs else plan_recipe)(recipe, overrides, ConsoleMonitor())
    made = planned.plan
    run = RunFolder((runs or Path("runs")) / made.name)
    device = device or ("cuda" if any(Path("/dev").glob("nvidia[0-9]*")) else "cpu")
    cost = estimate_training_cost(planned, device)
    if not from_configs:
        write_records(run, planned, cost)
    expected = estimate_time(planned, device) if probe else None
    trial = None
    if planned.resolved.recipe.trial is not None:
        from hybridizer.pipeline.trial_plan import plan_trial

        monitor = ConsoleMonitor()
        trial = plan_trial(
            recipe, overrides, runs, monitor, device, probe=probe, from_configs=from_configs, base=planned
        )
    amounts = to_jsonable(compute_amounts(planned, cost))
    if as_json:
        extra: dict[str, Any] = {"cost": cost.to_json() if cost else None, "expected": expected}
        extra |= {"trial": to_jsonable(trial)} if trial else {}
        print_json({**made.to_json(), "amounts": amounts, **(extra if cost else {})})
        return
    show_plan(made, amounts, cost, expected, every_layer)
    if not from_configs:
        echo(f"wrote {run.plan}")
    if trial is not None:
        show_trial_plan(to_jsonable(trial))
    if from_configs:
        return
    if trial is not None:
        echo(next_command("trial", recipe, overrides=overrides))
        return
    echo(next_command("build", run.plan))


@click.command(cls=Verb)
@RECIPE
@SET
@RUNS
@DEEP
@NO_LOAD
@click.option("--replace", is_flag=True, help="Replace a model of another plan in the run's folder.")
@click.option(
    "--accept-changes", is_flag=True, help="Resume from a checkpoint although lr, schedule or clipping changed."
)
@JSON
def build(
    recipe: Path,
    overrides: tuple[str, ...],
    runs: Path | None,
    deep: bool,
    no_load: bool,
    replace: bool,
    accept_changes: bool,
    as_json: bool,
) -> int:
    """Build RECIPE: plan, splice, train, export, verify.

    The model is in RUNS/<name>/model.

    RECIPE may be the plan.json of a run: that plan is built unchanged, from the donors and texts it was made with.

    Ctrl-C or SIGTERM during training saves the state after the running step and exits with code 130 or 143; run the
    same command to resume. A second signal, a second later or more, ends it at once.
    """
    from hybridizer.pipeline.build import build as build_recipe
    from hybridizer.pipeline.run import RunFolder
    from hybridizer.report.show import show_build

    options = {"replace": replace, "deep": deep, "load": not no_load, "accept_changes": accept_changes}
    built = build_recipe(recipe, overrides, runs, ConsoleMonitor(), **options)
    if built is None:  # another process prints
        return 0
    status = 0
    if built.outcome is not None:
        from hybridizer.evaluate.gate import exit_code  # loads numpy, which a build without training does not need

        status = exit_code(built.outcome.gate)
    if (built.manifest.training or {}).get("stopped_by") == "forgetting":
        status = 1  # a limit is broken
    if as_json:
        value = {"folder": built.folder, "plan_hash": built.plan.hash, "proofs": built.proofs, "curve": built.curve}
        print_json(value if built.outcome is None else {**value, **to_jsonable(built.outcome)})
        return status
    show_build(built)
    echo(f"{RunFolder(built.folder).model} is complete and verified")
    echo(next_command("inspect", built.folder))
    return status


@click.command(cls=JsonFile)
@RECIPE
@SET
@RUNS
@click.option("--arm", metavar="NAME", help="Run this arm alone, for example one on each machine; --gather follows.")
@click.option("--gather", is_flag=True, help="Train nothing: collect the arms that were run before.")
@JSON_FILE
@click.option("--plot", type=OutputFile(".svg", ".png"), help="Draw the trial into this file, .svg or .png.")
def trial(
    recipe: Path,
    overrides: tuple[str, ...],
    runs: Path | None,
    arm: str | None,
    gather: bool,
    json_out: Path | None,
    plot: Path | None,
) -> None:
    """Run the trial of RECIPE: train its arms with several seeds, and compare them.

    Arms are sets of overrides in the recipe's `trial` section. Each is trained with every learning rate on the first
    seed and with the best one on the others. The result is in RUNS/<name>/trial.json. Whatever is finished is kept: run
    the same command again to resume.
    """
    from hybridizer.pipeline.trial import run_trial
    from hybridizer.report.show import plot_trial, show_trial

    done = run_trial(recipe, overrides, runs, ConsoleMonitor(), arm=arm, gather=gather, json_out=json_out, plot=plot)
    if done.record is None or done.times is None:
        if json_out is not None:
            write_out(json_out, {"folder": done.folder, "arm": arm})
        else:
            echo(f"arm {arm} is finished; when all arms are finished:")
            echo(next_command("trial", recipe, flag="--gather", overrides=overrides))
        return
    if plot is not None:
        plot_trial(done.record, plot, done.curves)
    if write_out(json_out, done.record.to_json()):
        show_trial(done.record, done.times, done.curves)
        echo(f"wrote {done.folder / 'trial.json'}")
