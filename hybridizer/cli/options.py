"""Arguments and options that commands share, and the commands whose options are made from a class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from hybridizer.cli.program import OutputFile, Verb
from hybridizer.recipe.sizes import MAX_SEED
from hybridizer.scan.request import ScanRequest

RECIPE = click.argument("recipe", type=click.Path(dir_okay=False, path_type=Path))
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
MODEL = click.argument("model", type=click.Path(path_type=Path))
SET = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a recipe key: a.b=c.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document, and nothing else, on stdout.")
RUNS = click.option(
    "--runs", type=click.Path(file_okay=False, path_type=Path), show_default="runs",
    help="Folder that holds one folder per run; for a stored plan, by default, the one that its run is in.",
)  # fmt: skip
DEEP = click.option("--deep-check", "deep", is_flag=True, help="Scan every donor weight for NaN and infinity.")
ALLOW = click.option(
    "--allow", multiple=True, type=click.Choice(["remote_code", "pickle"]), help="Permit donors of this kind."
)
NO_LOAD = click.option("--no-load", is_flag=True, help="Leave out the checks that need the model in memory.")


def scan_option(name: str, about: str, least: int = 1) -> Any:
    """An option for a count in ScanRequest, whose default it has."""
    default = getattr(ScanRequest, name)
    flag = f"--{name.replace('_', '-')}"
    return click.option(flag, type=click.IntRange(least), default=default, show_default=True, help=about)


JSON_FILE = click.option(
    "--json",
    "json_out",
    type=OutputFile(),
    metavar="[FILE.json]",
    help="Print one JSON document, and nothing else, on stdout; with a name, write it there instead.",
)
SEED = click.option(
    "--seed", type=click.IntRange(0, MAX_SEED), default=0, show_default=True, help="Seed of everything random."
)


class JsonFile(Verb):
    """A command whose --json may name a file."""

    takes_json_path = True


class TraceCommand(JsonFile):
    """A command with an option for every key of a recipe's `trace` section.

    They are made when the command is used or its help is shown: the sections load pydantic, which takes longer than
    all of `hybridize --help`.
    """

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        from hybridizer.recipe.options import section_options

        *own, help_option = super().get_params(ctx)
        return [*own, *section_options(trace_section()), help_option]


def trace_section() -> type:
    from hybridizer.recipe.models import Trace

    return Trace


def trace_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that trace and rank share besides those of the `trace` section."""
    for option in (
        JSON_FILE,
        ALLOW,
        SEED,
        click.option("--device-map", help="Spread the model: auto, balanced, sequential, cpu, ..."),
        click.option("--mask-positions", type=FILE, help="JSON: one list of token positions per prompt."),
    ):
        function = option(function)
    return function
