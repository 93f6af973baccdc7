"""The outermost frame of the command line: every error becomes a message, with --json also an object, and an exit code.

0    done                         3    a limit of a gate cannot be decided
1    the run failed, or a limit   70   a bug in hybridizer (EX_SOFTWARE of sysexits.h), with its traceback
     of a gate is broken          130  interrupted by Ctrl-C
2    the input is invalid
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from hybridizer import __version__
from hybridizer.core.errors import HybridizerError, InputError, Problem, RunError, from_os_error
from hybridizer.report.terminal import echo, echo_block, escaping_libraries, print_json, writing_output

BUG = 70
INTERRUPTED = 130


class Verb(click.Command):
    """A command with `--json`. `--json -` is `--json`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse `args` as click does, with the values of --json joined to it or dropped."""
        return super().parse_args(ctx, _join_json(args, self.takes_json_path))

    takes_json_path = False


class Program(click.Group):
    """A group of commands whose errors are reported in one place."""

    def main(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        **extra: Any,
    ) -> NoReturn:
        """Run the command in `args`, by default those of the process, and exit."""
        words = sys.argv[1:] if args is None else list(args)
        options = words[: words.index("--")] if "--" in words else words
        as_json = any(word == "--json" or word.startswith("--json=") for word in options)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        extra["standalone_mode"] = False
        with escaping_libraries():
            status = run_reported(lambda: super(Program, self).main(words, prog_name, complete_var, **extra), as_json)
        sys.exit(status)


class OutputFile(click.Path):
    """A file to write: its folder must be there. With `suffixes`, its name must end in one of them."""

    def __init__(self, *suffixes: str) -> None:
        super().__init__(dir_okay=False, writable=True, path_type=Path)
        self._suffixes = suffixes

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path, or an error that names the option."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if str(path) != "-" and not path.parent.is_dir():
            self.fail(f"the folder {str(path.parent)!r} does not exist.", param, ctx)
        if str(path) != "-" and not os.access(path.parent, os.W_OK):
            self.fail(f"the folder {str(path.parent)!r} is not writable.", param, ctx)
        if self._suffixes and path.suffix.lower() not in self._suffixes:
            self.fail(f"cannot write '{path.suffix}'. Name it {' or '.join(self._suffixes)}.", param, ctx)
        return path


def run_reported(function: Callable[[], Any], as_json: bool) -> int:
    """Call `function`; its exit code, after every error that it raises was reported."""
    try:
        status = function()
        if sys.stdout is not None:
            with writing_output():
                sys.stdout.flush()  # a full disk or a closed pipe shows here, and not when Python has ended
        return status if isinstance(status, int) else 0
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        _discard_output()
        return 1
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  the outermost frame: nothing is hidden
        try:
            return _report_any(error, as_json)
        except OSError:  # not even the report can be written
            _discard_output()
            return 1


def _report_any(error: BaseException, as_json: bool) -> int:
    match error:
        case HybridizerError():
            return _report(error, as_json)
        case click.ClickException():
            return _report_usage(error, as_json)
        case click.Abort() | KeyboardInterrupt():
            return _report(_interrupted(), as_json, INTERRUPTED)
        case OSError():
            return _report(from_os_error(error), as_json)
        case MemoryError():
            problem = Problem("memory", "there is not enough of it for this run.", "Close other programs.")
            return _report(RunError(problem), as_json)
        case _:
            return _report_bug(error, as_json)


def _report(error: HybridizerError, as_json: bool, status: int | None = None) -> int:
    status = error.exit_code if status is None else status
    for problem in error.problems:
        echo_block(str(problem), err=True)
    if len(error.problems) > 1:
        echo(f"{len(error.problems)} problems", err=True)
    _print_problems(error.problems, status, as_json)
    return status


def _report_usage(error: click.ClickException, as_json: bool) -> int:
    shown = io.StringIO()
    error.show(file=shown)
    echo_block(shown.getvalue().rstrip("\n"), err=True)
    where = getattr(getattr(error, "ctx", None), "command_path", "hybridize")
    problem = Problem(where, error.format_message(), f"See {where} --help.")
    _print_problems((problem,), error.exit_code, as_json)
    return error.exit_code


def _report_bug(error: BaseException, as_json: bool) -> int:
    echo_block("".join(traceback.format_exception(error)).rstrip("\n"), err=True)
    echo(f"this is a bug in hybridizer {__version__}: please report it with the lines above", err=True)
    fix = "This is a bug: report it with the traceback on standard error."
    problem = Problem(f"hybridizer {__version__}", f"{type(error).__name__}: {error}", fix)
    _print_problems((problem,), BUG, as_json)
    return BUG


def _print_problems(problems: Sequence[Problem], status: int, as_json: bool) -> None:
    if as_json:
        print_json({"error": {"exit_code": status, "problems": problems}})


def _interrupted() -> HybridizerError:
    what = "no incomplete file was left under its final name."
    return InputError(Problem("interrupted", what, "Re-run the command to resume."))


def _discard_output() -> None:
    """Let Python's own flush at its end go nowhere."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def _join_json(args: Sequence[str], takes_path: bool) -> list[str]:
    """`args` with `--json -` as `--json`, and with `takes_path` also `--json x.json` as `--json=x.json`.

    With `takes_path` a word after --json that is neither is an argument of its own, such as a donor.
    """
    words, joined = list(args), list[str]()
    while words:
        word = words.pop(0)
        if word == "--":
            return [*joined, word, *words]
        following = words[0] if words else ""
        if word == "--json" and (following == "-" or (takes_path and following.endswith(".json"))):
            words.pop(0)
            word = f"--json={following}" if takes_path else "--json"
        elif word == "--json" and takes_path:
            word = "--json=-"
        joined.append(word)
    return joined
