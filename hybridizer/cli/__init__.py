"""The command line, `hybridize`: the commands on recipes, on donors and on models, each group in its module."""

from __future__ import annotations

import click

from hybridizer import __version__
from hybridizer.cli.donor_commands import rank, scan, trace
from hybridizer.cli.model_commands import convert, eval_, graft, inspect, pack, verify
from hybridizer.cli.program import Program
from hybridizer.cli.recipe_commands import build, check, init, plan, schema, trial

_COMMANDS = (init, schema, check, plan, build, trial, trace, rank, scan, eval_, verify, convert, pack, graft, inspect)


@click.group(cls=Program, commands=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hybridize")
def main() -> None:
    """Build hybrid language models from pretrained checkpoints by YAML recipe.

    Exit codes: 0 done, 1 the run failed or a limit is broken, 2 the input is invalid, 3 a limit cannot be decided, 70 a
    bug in hybridizer, 130 stopped by Ctrl-C, 143 by SIGTERM.
    """
