import logging
import subprocess
import sys
import warnings

import click
from click.testing import CliRunner

from hybridizer.cli.program import Program

HOSTILE = "file \x1b[31mred\x1b[0m\rover\nnext"
SHOWN = "file \\x1b[31mred\\x1b[0m\\rover\nnext"


@click.group(cls=Program)
def main():
    """Commands that use libraries."""


@main.command()
def log():
    """Log as transformers does: a handler of its own on standard error."""
    logger = logging.getLogger("a library")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    logger.addHandler(handler)
    logger.warning("unused weights in %s", HOSTILE)
    logger.removeHandler(handler)


def test_log_lines_of_libraries_reach_the_terminal_without_control_sequences():
    assert CliRunner().invoke(main, ["log"]).stderr == f"a library: unused weights in {SHOWN}\n"


def test_warnings_of_libraries_reach_the_terminal_without_control_sequences():
    # In a process of its own: pytest replaces what shows warnings.
    program = f"""if True:
        import warnings, click
        from hybridizer.cli.program import Program
        main = Program("main")
        main.add_command(click.Command("warn", callback=lambda: warnings.warn({HOSTILE!r})))
        main(["warn"])
    """
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stderr
    assert f"UserWarning: {SHOWN}\n" in shown and "\x1b" not in shown


def test_what_was_set_before_a_command_is_set_after_it():
    before = logging.getLogRecordFactory(), warnings.formatwarning
    CliRunner().invoke(main, ["log"])
    assert (logging.getLogRecordFactory(), warnings.formatwarning) == before
