"""The commands that take models: eval, verify, convert, pack, graft and inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hybridizer.cli.options import ALLOW, FILE, JSON, JSON_FILE, MODEL, NO_LOAD, SEED, JsonFile
from hybridizer.cli.program import OutputFile, Verb
from hybridizer.convert.request import TYPES, ConvertRequest
from hybridizer.core.progress import ConsoleMonitor
from hybridizer.core.records import to_jsonable
from hybridizer.report.terminal import draw, echo, next_command, print_json, write_out


@click.command("eval", cls=JsonFile)
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
    from hybridizer.pipeline.eval_models import eval_models
    from hybridizer.report.show import show_evaluation

    request = gather_request(options, click.get_current_context().command_path)
    found = eval_models(models, request, ConsoleMonitor(), allow=options["allow"], seed=options["seed"], out=out)
    record = found.to_json()
    if write_out(json_out, record):
        show_evaluation(record, [str(result) for result in found.gate])
    return exit_code(found.gate)


@click.command(cls=Verb)
@MODEL
@NO_LOAD
@JSON
def verify(model: Path, no_load: bool, as_json: bool) -> None:
    """Verify MODEL against its manifest, then load and run it.

    MODEL is a model folder or the folder of a run.
    """
    from hybridizer.pipeline.verify import verify_folder
    from hybridizer.report.plan_tables import proofs_table

    manifest, proofs = verify_folder(model, ConsoleMonitor(), load=not no_load)
    if as_json:
        print_json({"model": manifest.name, "plan_hash": manifest.plan_hash, "proofs": proofs})
        return
    draw(proofs_table(proofs))


@click.command(cls=JsonFile)
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

    done = convert_model(model, ConvertRequest(**options), ConsoleMonitor())
    record = done.to_json()
    if write_out(json_out, record):
        draw(conversion_table(record))
        echo(f"wrote {done.file}")


@click.command(cls=Verb)
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

    made = pack_model(model, base, out, allow, ConsoleMonitor())
    if as_json:
        print_json({"folder": out, **to_jsonable(made)})
        return
    share = made.pack_bytes / (made.pack_bytes + made.shared_bytes)
    echo(f"wrote {out}: {len(made.tensors)} tensors, {readable(made.pack_bytes, 'B')}, {share:.0%} of the model")
    echo(f"{next_command('graft', base, out)} --out model")


@click.command(cls=Verb)
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

    made = graft_pack(base, pack, out, allow, ConsoleMonitor(), replace=replace)
    if as_json:
        print_json({"folder": out, **to_jsonable(made)})
        return
    echo(f"wrote {out}: model '{made.model}', all {len(made.files)} files as recorded")
    echo(next_command("verify", out))


@click.command(cls=Verb)
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
