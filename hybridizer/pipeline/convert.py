"""A finished model as a GGUF file, written only where llama.cpp computes from it what transformers computes."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridizer.checkpoint.hashing import hash_file
from hybridizer.checkpoint.publish import check_free_space, lock
from hybridizer.checkpoint.reader import open_checkpoint
from hybridizer.convert.request import FLOATS, QUANTISED, TYPES, ConvertRequest
from hybridizer.convert.spelling import GRANITE_HYBRID, converter_options, copy_spelled, spell_config
from hybridizer.convert.tools import Tools, find_tools, run_tool
from hybridizer.core.errors import InputError, OutputError, Problem, VerificationError
from hybridizer.core.files import new_file, remove_stale
from hybridizer.core.progress import Monitor
from hybridizer.core.records import to_jsonable
from hybridizer.donors.files import read_object
from hybridizer.families.reading import read_structure
from hybridizer.families.target import Served, read_facts
from hybridizer.families.targets import TARGETS
from hybridizer.pipeline.faults import reporting_os_errors
from hybridizer.pipeline.run import find_model
from hybridizer.pipeline.verify import verify_folder

if TYPE_CHECKING:
    from hybridizer.convert.perplexity import Windows

SCHEMA = "hybridizer.convert/1"


@dataclass(frozen=True)
class Measured:
    """One file by llama.cpp: perplexity, bits per byte, how far the latter is from transformers', and the limit."""

    type: str
    perplexity: float
    bits_per_byte: float
    difference: float
    limit: float


@dataclass(frozen=True)
class Converted:
    """What was written. `checked` are the files that llama.cpp scored, the written one last.

    A quantised file is made from one in float32 that was compared first, so that its own loss is quantisation alone.
    """

    file: Path
    model: Path
    num_bytes: int
    sha256: str
    windows: int
    context: int
    tokens_scored: int
    perplexity: float
    bits_per_byte: float
    checked: tuple[Measured, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """The record of schema "hybridizer.convert/1"."""
        found: dict[str, Any] = to_jsonable({"schema": SCHEMA, **vars(self)})
        return found


@reporting_os_errors()
def convert_model(folder: Path, request: ConvertRequest, monitor: Monitor) -> Converted:
    """Write the model in `folder`, or of the run in it, as a GGUF file that llama.cpp was compared on.

    Raises InputError where the family is not served, a program is missing or the text is too short, OutputError for an
    occupied file or a full disk, RunError for a program that fails, VerificationError for a damaged model and for a
    file from which llama.cpp computes something else. Nothing is left under the name of the file then.
    """
    model = find_model(folder)
    out = (request.out or _default_file(folder, model, request.type)).absolute()
    _check_out(out, model, replace=request.replace)
    tools = find_tools(request.llama_cpp, quantised=request.type in QUANTISED)
    config = read_object(model / "config.json")
    _check_served(model, config)
    verify_folder(folder, monitor, load=False)
    remove_stale(out.parent)
    with lock(out), _workplace(out) as place:
        _check_room(model, out, request.type)
        windows, expected = _score(model, request, monitor)
        work = _Work(model, config, tools, place, windows, expected, monitor)
        with new_file(out) as partial:
            checked = work.convert(request.type, partial)
            size, digest = partial.stat().st_size, hash_file(partial)
    monitor.note(f"convert: wrote {out}, {size / 1e6:.0f} MB")
    counts = (len(windows.ids), windows.context, windows.num_scored)
    return Converted(out, model, size, digest, *counts, expected, windows.bits_per_byte(expected), checked)


def _default_file(folder: Path, model: Path, kind: str) -> Path:
    """RUN/RUN-f16.gguf for a run, MODEL-f16.gguf beside a model folder."""
    whole = folder.absolute()
    beside = whole if model != folder else whole.parent
    return beside / f"{whole.name}-{kind}.gguf"


def _check_out(out: Path, model: Path, *, replace: bool) -> None:
    if model.absolute() in out.parents:
        what = "is inside the model folder, which holds nothing but what its manifest lists."
        raise OutputError(Problem(str(out), what, "Choose another folder."))
    if out.is_dir() or out.is_symlink():
        raise OutputError(Problem(str(out), "a folder or link of that name is there.", "Choose another file."))
    if out.exists() and not replace:
        raise OutputError(Problem(str(out), "this file exists.", "Choose another file, or pass --replace."))
    if not out.parent.is_dir():
        raise OutputError(Problem(str(out), f"the folder {out.parent} does not exist.", "Create it first."))


def _check_served(model: Path, config: Mapping[str, Any]) -> None:
    """Raise InputError for a hybrid of which llama.cpp is known not to run the family or the order of layers."""
    shapes = {name: entry.shape for name, entry in open_checkpoint(model).tensors.items()}
    structure = read_structure(config, shapes, str(model))
    target = TARGETS.get(structure.text_family)
    if target is None:
        return
    layers = spell_config(config).get("layer_types") or [target.attention] * structure.num_layers
    served = {served.by: served for served in target.served_by(read_facts(structure), layers, config)}
    llama = served["llama.cpp"]
    if llama.answer == "no":
        what = f"llama.cpp does not run this {structure.text_family}: {llama.how}."
        raise InputError(Problem(str(model), what, _nearest(structure.text_family, served)))


def _nearest(family: str, served: Mapping[str, Served]) -> str:
    others = " and ".join(by for by, other in served.items() if other.answer == "yes")
    ways = [f"layers of {' or '.join(TARGETS[GRANITE_HYBRID].donors)} beside mamba2 ({GRANITE_HYBRID})"]
    if family == "qwen3_next":
        ways.insert(0, "the same mixers in qwen3_5_text")
    return f"Serve it with {others or 'transformers'}. Nearest for llama.cpp: {'; '.join(ways)}."


@contextmanager
def _workplace(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out`, removed when the block ends."""
    with tempfile.TemporaryDirectory(prefix=f".{out.name[:40]}.", suffix=".partial", dir=out.parent) as place:
        yield Path(place)


def _check_room(model: Path, out: Path, kind: str) -> None:
    weights = sum(math.prod(entry.shape) for entry in open_checkpoint(model).tensors.values())
    between = FLOATS["f32"].bytes_each if kind in QUANTISED else 0.0
    check_free_space(out.parent, int(weights * (TYPES[kind].bytes_each + between) * 1.02))


def _score(model: Path, request: ConvertRequest, monitor: Monitor) -> tuple[Windows, float]:
    from hybridizer.convert.perplexity import cut_text, score_transformers
    from hybridizer.evaluate.model import default_device
    from hybridizer.scan.score import builtin_documents

    if request.text is None:
        text, where = "\n\n".join(builtin_documents(max_bytes=100_000)), "the built-in text"
    else:
        text, where = request.text.read_text(encoding="utf-8").strip(), str(request.text)
    windows = cut_text(model, text, where, request.context, request.windows)
    return windows, score_transformers(model, windows, default_device(), monitor)


@dataclass(frozen=True)
class _Work:
    """One conversion: the model and what transformers computes from it, and a folder for what is not kept."""

    model: Path
    config: Mapping[str, Any]
    tools: Tools
    place: Path
    windows: Windows
    expected: float
    monitor: Monitor

    def convert(self, kind: str, file: Path) -> tuple[Measured, ...]:
        """Write `file`, and compare it; a quantised one is made from a float32 one that is compared first."""
        if kind in FLOATS:
            self._write(kind, file)
            return (self._check(kind, file),)
        whole = self.place / "f32.gguf"
        self._write("f32", whole)
        first = self._check("f32", whole)
        assert self.tools.quantize is not None
        self.monitor.note(f"convert: quantise to {kind}")
        command = [*self.tools.quantize, str(whole), str(file.absolute()), kind.upper()]
        run_tool(command, f"quantising to {kind}", self.place)
        return first, self._check(kind, file)

    def _write(self, kind: str, file: Path) -> None:
        self.monitor.note(f"convert: write {kind} by llama.cpp's converter")
        copy = self.place / "model"
        copy.mkdir()
        copy_spelled(self.model, copy, self.config)
        options = ("--outtype", kind, "--outfile", str(file.absolute()), *converter_options(self.config))
        run_tool([*self.tools.convert, str(copy), *options], "the conversion", self.place)

    def _check(self, kind: str, file: Path) -> Measured:
        import torch

        from hybridizer.convert.perplexity import score_llama

        found = score_llama(self.tools.perplexity, file, self.windows, self.place, torch.get_num_threads())
        by_llama, by_transformers = map(self.windows.bits_per_byte, (found, self.expected))
        limit = TYPES[kind].limit
        difference = by_llama - by_transformers
        self.monitor.note(
            f"convert: {kind}: perplexity {found:.4f} by llama.cpp, {self.expected:.4f} by transformers; "
            f"{difference:+.5f} bits per byte, at most {limit:g}"
        )
        # A float file that is better than the model is as wrong as one that is worse; so is a figure that is no number.
        if not abs(difference) <= limit:
            raise VerificationError(_refusal(str(self.model), kind, found, self.expected, difference, limit))
        return Measured(kind, found, by_llama, difference, limit)


def _refusal(where: str, kind: str, found: float, expected: float, difference: float, limit: float) -> Problem:
    what = (
        f"as {kind}, llama.cpp gives perplexity {found:.4f} and transformers {expected:.4f} on the same windows: "
        f"{difference:+.4f} bits per byte, and at most {limit:g} is accepted. No file was written."
    )
    if kind in QUANTISED:
        return Problem(where, what, "Choose a type with more bits: the file in float32 agreed.")
    fix = (
        "The converter, or this llama.cpp, reads the model differently (rotary positions, order of layers, tokenizer)."
    )
    return Problem(where, what, f"{fix} Serve it with transformers, or try another version of llama.cpp.")
