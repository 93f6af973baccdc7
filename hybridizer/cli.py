"""The command line, `hybridize`: its commands and options, and the order in which their results are shown."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from hybridizer import __version__
from hybridizer.convert.request import TYPES, ConvertRequest
from hybridizer.core.records import to_jsonable
from hybridizer.report.options import (
    ALLOW,
    DEEP,
    FILE,
    JSON,
    JSON_FILE,
    MODEL,
    NO_LOAD,
    RECIPE,
    RUNS,
    SEED,
    SET,
    JsonFile,
    TraceCommand,
    scan_option,
    trace_options,
    trace_section,
)
from hybridizer.report.program import OutputFile, Program
from hybridizer.report.terminal import draw, echo, print_json, warn
from hybridizer.scan.request import BY, KINDS, ScanRequest


def _monitor() -> Any:
    from hybridizer.core.progress import ConsoleMonitor

    return ConsoleMonitor()


def _next(*words: object, overrides: Sequence[str] = (), flag: str = "") -> str:
    """The command to run next, as it can be pasted into a shell."""
    settings = [word for override in overrides for word in ("--set", override)]
    paths = (f"./{word}" if str(word).startswith("-") else str(word) for word in words)
    return f"next: {shlex.join(['hybridize', *paths, *([flag] if flag else []), *settings])}"


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hybridize")
def main() -> None:
    """Build hybrid language models from pretrained checkpoints by YAML recipe.

    Exit codes: 0 done, 1 the run failed or a limit is broken, 2 the input is invalid, 3 a limit cannot be decided, 70 a
    bug in hybridizer, 130 stopped by Ctrl-C, 143 by SIGTERM.
    """


@main.command()
@click.argument("target", type=click.Path(dir_okay=False, path_type=Path), default="recipe.yaml")
@JSON
def init(target: Path, as_json: bool) -> None:
    """Write a commented starter recipe to TARGET (recipe.yaml)."""
    from hybridizer.core.errors import OutputError, Problem
    from hybridizer.core.files import write_file
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
    echo(_next("check", target))


@main.command()
@JSON
def schema(as_json: bool) -> None:
    """Print the JSON Schema of recipes, for editors.

    The output is JSON with and without --json.
    """
    from hybridizer.recipe.schema import json_schema

    print_json(json_schema())


@main.command()
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

    checked = check_recipe(recipe, overrides, _monitor(), deep=deep)
    if as_json:
        layers = len(checked.plan.layers) if checked.plan else None
        print_json({"recipe": str(recipe), "ok": True, "layers": layers, "waiting": checked.waiting})
        return
    after = _next("plan", recipe, overrides=overrides)
    for warning in checked.warnings:
        warn(warning)
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


def _trace_request(options: dict[str, Any]) -> Any:
    from hybridizer.recipe.options import read_section
    from hybridizer.trace.probes import load_probes
    from hybridizer.trace.runs import TraceRequest

    settings = read_section(trace_section(), options, click.get_current_context().command_path)
    probes = load_probes(settings.probes)
    return TraceRequest(probes, settings, options["seed"], options["device_map"], options["mask_positions"])


@main.command(cls=TraceCommand)
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
    traces = trace_donors(donors, request, allow, _monitor(), baselines=baselines, plot=plot, json_out=json_out)
    if plot is not None:
        plot_traces(traces, plot)
    if options["json_out"] is not None:
        records = [{**t.record.to_json(), **({"baselines": t.baselines} if baselines else {})} for t in traces]
        _write_out(options["json_out"], records[0] if len(records) == 1 else records)
    if str(options["json_out"]) != "-":
        show_traces(traces)


@main.command(cls=TraceCommand)
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
        _monitor(),
        boundary=requested,
        by=by,
        host=host,
        side=side,
        json_out=options["json_out"],
    )
    if options["json_out"] is not None:
        _write_out(options["json_out"], ranking.to_json())
    if str(options["json_out"]) != "-":
        show_ranking(ranking.to_json())


@main.command(cls=JsonFile)
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
    record = scan_donors(donors, request, _monitor(), probes=probes, text=entry, allow=allow, **outputs).to_json()
    if plot is not None:
        plot_scan(record, plot)
    if json_out is not None:
        _write_out(json_out, record)
    if str(json_out) != "-":
        show_scan(record, out)


@main.command("eval", cls=JsonFile)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--text", "texts", multiple=True, metavar="NAME=PATH", help="Held-out text: a file or a glob.")
@click.option("--items", multiple=True, metavar="NAME[=PATH]", help="Multiple choice: exam-en, exam-zh, or a file.")
@click.option("--shots", type=click.IntRange(0, 64), help="Examples before each question of --items and --task.")
@click.option("--style", type=click.Choice(["letters", "text"]), help="What answers the questions of --items.")
@click.option("--recall", multiple=True, type=int, metavar="PAIRS", help="Recall probe with so many keys and values.")
@click.option("--chat", "chats", multiple=True, metavar="NAME=PATH", help="Held-out chats under each chat template.")
@click.option("--task", "tasks", multiple=True, metavar="NAME", help="A task or group of lm-eval (extra: eval).")
@click.option("--include-path", type=click.Path(file_okay=False), help="Folder with the task files of --task.")
@click.option("--limit", type=click.IntRange(1), help="The most items of each --task.")
@click.option("--set-file", type=FILE, help="YAML with the same, and more: see docs/evaluation.md.")
@click.option("--max-bytes", help="The most bytes of each text.  [default: 400k]")
@click.option("--context", type=int, help="Tokens per window of a text.  [default: 1024]")
@click.option("--training-text", multiple=True, metavar="GLOB", help="Training text to look for overlaps in.")
@click.option("--gate", help="YAML of limits: exit code 1 if one is broken, 3 if it cannot be told.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for the results of each item.")
@ALLOW
@SEED
@JSON_FILE
def eval_(models: tuple[str, ...], out: Path | None, json_out: Path | None, **options: Any) -> int:
    """Evaluate MODEL... on the same texts and tasks, and compare.

    A model is a folder, a run, a GGUF file, org/name on the hub, or pkg:package/path. The limits of a --gate are on
    what the others lose against the first.
    """
    from hybridizer.evaluate.gate import exit_code
    from hybridizer.evaluate.request import gather_request
    from hybridizer.pipeline.eval_models import eval_models, write_details
    from hybridizer.report.show import show_evaluation

    request = gather_request(options, click.get_current_context().command_path)
    found = eval_models(models, request, _monitor(), allow=options["allow"], seed=options["seed"])
    record = found.to_json()
    if out is not None:
        write_details(found, out)
    if json_out is not None:
        _write_out(json_out, record)
    if str(json_out) != "-":
        show_evaluation(record, [str(result) for result in found.gate])
    return exit_code(found.gate)


@main.command(cls=JsonFile)
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

    done = run_trial(recipe, overrides, runs, _monitor(), arm=arm, gather=gather, json_out=json_out, plot=plot)
    if done.record is None or done.times is None:
        if json_out is not None:
            _write_out(json_out, {"folder": done.folder, "arm": arm})
        else:
            echo(f"arm {arm} is finished; once all are:")
            echo(_next("trial", recipe, flag="--gather", overrides=overrides))
        return
    if plot is not None:
        plot_trial(done.record, plot, done.curves)
    if json_out is not None:
        _write_out(json_out, done.record.to_json())
    if str(json_out) != "-":
        show_trial(done.record, done.times, done.curves)
        echo(f"wrote {done.folder / 'trial.json'}")


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
        print_json(value)
    else:
        from hybridizer.core.records import write_json

        write_json(path, value)


@main.command()
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

    planned = (plan_from_configs if from_configs else plan_recipe)(recipe, overrides, _monitor())
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

        monitor = _monitor()
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
        echo(_next("trial", recipe, overrides=overrides))
        return
    echo(_next("build", run.plan))


@main.command()
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
    built = build_recipe(recipe, overrides, runs, _monitor(), **options)
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
    echo(_next("inspect", built.folder))
    return status


@main.command()
@MODEL
@NO_LOAD
@JSON
def verify(model: Path, no_load: bool, as_json: bool) -> None:
    """Verify MODEL against its manifest, then load and run it.

    MODEL is a model folder or the folder of a run.
    """
    from hybridizer.pipeline.verify import verify_folder
    from hybridizer.report.plan_tables import proofs_table

    manifest, proofs = verify_folder(model, _monitor(), load=not no_load)
    if as_json:
        print_json({"model": manifest.name, "plan_hash": manifest.plan_hash, "proofs": proofs})
        return
    draw(proofs_table(proofs))


@main.command(cls=JsonFile)
@MODEL
@click.option("--to", type=click.Choice(["gguf"]), required=True, help="The format: gguf, which llama.cpp runs.")
@click.option(
    "--type",
    type=click.Choice(list(TYPES)),
    default=ConvertRequest.type,
    show_default=True,
    help="Type of the weights.",
)
@click.option("--out", type=OutputFile(".gguf"), help="The file; by default NAME-TYPE.gguf beside the model.")
@click.option("--text", type=FILE, help="UTF-8 text that both engines score; by default the Python reference.")
@click.option(
    "--context",
    type=click.IntRange(16),
    default=ConvertRequest.context,
    show_default=True,
    help="Tokens per window of the text.",
)
@click.option(
    "--windows", type=click.IntRange(2), default=ConvertRequest.windows, show_default=True, help="The most windows."
)
@click.option(
    "--llama-cpp",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="LLAMA_CPP",
    show_envvar=True,
    help="Source tree of llama.cpp, built; by default the programs that are installed.",
)
@click.option("--replace", is_flag=True, help="Replace the file.")
@JSON_FILE
def convert(model: Path, to: str, json_out: Path | None, **options: Any) -> None:
    """Convert MODEL for llama.cpp, and compare the two.

    MODEL is a model folder or the folder of a run. The file appears under its name only if llama.cpp's perplexity from
    it is that of transformers, within a limit for each type.
    """
    from hybridizer.pipeline.convert import convert_model
    from hybridizer.report.convert_table import conversion_table

    done = convert_model(model, ConvertRequest(**options), _monitor())
    record = done.to_json()
    if json_out is not None:
        _write_out(json_out, record)
    if str(json_out) != "-":
        draw(conversion_table(record))
        echo(f"wrote {done.file}")


@main.command()
@MODEL
@click.option("--base", required=True, help="The donor that the training started from: a folder, hub id, or pkg: file.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the pack; a new one.")
@ALLOW
@JSON
def pack(model: Path, base: str, out: Path, allow: tuple[str, ...], as_json: bool) -> None:
    """Write what a training changed in MODEL as a small pack.

    MODEL is a model folder or the folder of a run. The pack holds the tensors that differ from the base's, and names
    the base by its fingerprint; `hybridize graft` makes the model from both again.
    """
    from hybridizer.pipeline.packs import pack_model
    from hybridizer.report.cost_tables import readable

    made = pack_model(model, base, out, allow, _monitor())
    if as_json:
        print_json({"folder": out, **to_jsonable(made)})
        return
    share = made.pack_bytes / (made.pack_bytes + made.shared_bytes)
    echo(f"wrote {out}: {len(made.tensors)} tensors, {readable(made.pack_bytes, 'B')}, {share:.0%} of the model")
    echo(f"{_next('graft', base, out)} --out model")


@main.command()
@click.argument("base")
@click.argument("pack", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the model.")
@click.option("--replace", is_flag=True, help="Replace a finished model in that folder.")
@ALLOW
@JSON
def graft(base: str, pack: Path, out: Path, replace: bool, allow: tuple[str, ...], as_json: bool) -> None:
    """Make the full model from BASE and PACK, bit for bit.

    BASE is the donor that the pack was made on, by content; another one is refused. Every file is compared with the
    hash that the pack records before the model appears under its name.
    """
    from hybridizer.pipeline.packs import graft_pack

    made = graft_pack(base, pack, out, allow, _monitor(), replace=replace)
    if as_json:
        print_json({"folder": out, **to_jsonable(made)})
        return
    echo(f"wrote {out}: model '{made.model}', all {len(made.files)} files as recorded")
    echo(_next("verify", out))


@main.command()
@MODEL
@click.option("--tensors", is_flag=True, help="List every tensor with its origin.")
@JSON
def inspect(model: Path, tensors: bool, as_json: bool) -> None:
    """Show where each layer of MODEL comes from.

    MODEL is a model folder or the folder of a run.
    """
    from hybridizer.pipeline.run import read_model_manifest
    from hybridizer.report.plan_tables import origins_table

    manifest = read_model_manifest(model)
    if as_json:
        print_json(manifest.to_json())
        return
    draw(origins_table(manifest))
    for name, donor in manifest.donors.items():
        echo(f"donor '{name}': {donor.reference}, {donor.family}, {donor.num_layers} layers, {donor.fingerprint}")
    if tensors:
        for name, tensor in manifest.tensors.items():
            echo(f"{name}  {tensor.dtype} {list(tensor.shape)}  {tensor}")
