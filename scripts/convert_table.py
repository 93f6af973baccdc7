"""What llama.cpp computes from converted models, by type of weights: the table of docs/deploy.md.

    python scripts/quickstart_texts.py runs/texts
    python scripts/convert_table.py runs/convert_table --llama-cpp llama.cpp [--only NAME ...]

Every row is one `hybridize convert --windows 4` with the text that the command has, so that its checks apply; a refusal
is a row too. The Qwen3 is SmolLM2 with norms on queries and keys, set to the size that these have, so that its
perplexity is that of a language model and shows where positions are lost; that of random weights does not. The
falcon_h1 is SmolLM2 with branches of larger weights than a new one has, which changes perplexity by less than 0.01%.
Every row is kept in OUT/rows.json, so an interrupted run resumes. The files are deleted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from smollm2 import REFERENCE, copy_tokenizer, smollm2_folder
from torch import Tensor, nn

from hybridizer.convert import spelling
from hybridizer.convert.request import TYPES, ConvertRequest
from hybridizer.core.errors import HybridizerError
from hybridizer.core.files import write_file
from hybridizer.core.progress import Monitor, SilentMonitor
from hybridizer.models.load import load_causal_lm, random_causal_lm
from hybridizer.pipeline import convert
from hybridizer.pipeline.build import build

SWAPPED = (4, 8, 12)
WINDOWS = 4
SPOILED = ", spelled as it is"
LOUDER = {"mamba.in_proj.weight": 30.0, "mamba.out_proj.weight": 20.0}  # of branches


@dataclass(frozen=True)
class Case:
    """A model: slices and more of `layout`, the donor, and the types that it is converted to.

    `spoiled` leaves the architecture as transformers names it, which is how llama.cpp's converter is used by hand.
    """

    layout: Mapping[str, Any]
    donor: str = "smollm2"
    types: tuple[str, ...] = ("f32",)
    spoiled: bool = False


def swap(layers: int, swapped: Sequence[int], mixer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One slice for each of `layers`, those of `swapped` with the mixer."""
    return [{"donor": "a", "layers": n, **({"mixer": dict(mixer)} if n in swapped else {})} for n in range(layers)]


def fitted(texts: Path, kind: str, **more: Any) -> dict[str, Any]:
    """The layout of recipes/hybrid.yaml, with mixers of `kind`."""
    return {
        "slices": swap(30, SWAPPED, {"kind": kind, "init": "attention", "fit": "ridge"}),
        "calibration": {"path": str((texts / "python.jsonl").absolute()), "tokens": "8k"},
        **more,
    }


def cases(texts: Path) -> dict[str, Case]:
    """The models by name."""
    whole = [{"donor": "a"}]
    branches = swap(30, SWAPPED, {"kind": "mamba2", "parallel": True})
    delta = swap(30, SWAPPED, {"kind": "gated_delta_net"})
    return {
        "identity": Case({"deep": "a", "shallow": "a", "boundary": 0.5}, types=tuple(TYPES)),
        "hybrid": Case(fitted(texts, "mamba2"), types=tuple(TYPES)),
        f"hybrid{SPOILED}": Case(fitted(texts, "mamba2"), spoiled=True),
        "attention alone": Case({"slices": whole, "target": "granitemoehybrid"}),
        "new branches": Case({"slices": branches}),
        "branches": Case({"slices": [{"donor": "a"}]}, "falcon_h1"),
        "convolutions": Case(fitted(texts, "short_conv"), "qwen3"),
        "delta nets": Case(fitted(texts, "gated_delta_net"), "qwen3"),
        "delta nets, qwen3_next": Case({"slices": delta, "target": "qwen3_next"}, "qwen3"),
    }


@torch.no_grad()
def as_qwen3(folder: Path, texts: Path) -> str:
    """SmolLM2 as a Qwen3: the norms of queries and keys multiply by the root mean square that these have on a text."""
    if not (folder / "config.json").exists():
        source = smollm2_folder()
        model, tokenizer = load_causal_lm(source, torch.float32)
        text = json.loads((texts / "python.jsonl").read_text(encoding="utf-8").splitlines()[0])["text"]
        scales: dict[str, Tensor] = {}
        for layer, block in enumerate(model.get_submodule("model.layers").children()):
            for part in "qk":
                name = f"model.layers.{layer}.self_attn.{part}_norm.weight"
                hook = partial(_measure, scales, name)
                block.get_submodule(f"self_attn.{part}_proj").register_forward_hook(hook)
        model(torch.tensor([tokenizer(text, verbose=False)["input_ids"][:512]]))
        config = {**json.loads((source / "config.json").read_text(encoding="utf-8")), "model_type": "qwen3"}
        config |= {"architectures": ["Qwen3ForCausalLM"], "head_dim": 64, "use_sliding_window": False}
        donor = random_causal_lm(config, torch.float32)
        donor.load_state_dict({**model.state_dict(), **scales})
        donor.save_pretrained(folder)
        copy_tokenizer(folder)
    return str(folder.absolute())


@torch.no_grad()
def as_falcon_h1(out: Path, texts: Path, donor: Path | None) -> str:
    """The model of the case "new branches", with the projections of its branches multiplied by LOUDER."""
    folder = out / "falcon_h1"
    if not (folder / "config.json").exists():
        source = make_model("new branches", cases(texts)["new branches"], out, texts, donor) / "model"
        model, tokenizer = load_causal_lm(source, torch.float32)
        for name, parameter in model.named_parameters():
            parameter.mul_(next((factor for end, factor in LOUDER.items() if name.endswith(end)), 1.0))
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
    return str(folder.absolute())


def _measure(scales: dict[str, Tensor], name: str, _: nn.Module, __: object, found: Tensor) -> None:
    scales[name] = found.pow(2).mean().sqrt().expand(64).clone()


def file_name(name: str) -> str:
    """The name of a model as one of a file."""
    return "-".join(name.replace(",", "").split())


def make_model(name: str, case: Case, out: Path, texts: Path, donor: Path | None) -> Path:
    """The folder of the run that holds the model; built once."""
    own = file_name(name.removesuffix(SPOILED))
    if case.donor == "falcon_h1":
        source = as_falcon_h1(out, texts, donor)
    elif donor is not None:
        source = str(donor.absolute())
    else:
        source = REFERENCE if case.donor == "smollm2" else as_qwen3(out / "qwen3", texts)
    recipe = {"name": own, "donors": {"a": {"source": source}}, "layout": {"host": "a", **case.layout}}
    write_file(out / f"{own}.yaml", json.dumps(recipe, indent=1))  # JSON is YAML
    build(out / f"{own}.yaml", (), out / "runs", SilentMonitor(), replace=True, deep=False, load=False)
    return out / "runs" / own


_score, _scored = convert._score, dict[Path, Any]()


def score_once(model: Path, request: ConvertRequest, monitor: Monitor) -> Any:
    """The windows and what transformers computes on them, which is the same for all types of one model."""
    if model not in _scored:
        _scored[model] = _score(model, request, monitor)
    return _scored[model]


@contextmanager
def as_named(spoiled: bool) -> Iterator[None]:
    """With `spoiled`, conversions of hybrids without Bamba's architecture, which switches rotary positions off."""
    spelled = spelling.spell_config
    wrong = lambda config: {**spelled(config), "architectures": config["architectures"]}  # noqa: E731
    with mock.patch.object(spelling, "spell_config", wrong if spoiled else spelled):
        yield


def measure(run: Path, kind: str, case: Case, llama: Path | None) -> dict[str, Any]:
    """What one conversion gave: figures, or the words of the refusal."""
    file = run.parent / "x.gguf"
    request = ConvertRequest(kind, out=file, windows=WINDOWS, llama_cpp=llama, replace=True)
    try:
        with as_named(case.spoiled), mock.patch.object(convert, "_score", score_once):
            done = convert.convert_model(run, request, SilentMonitor())
    except HybridizerError as error:
        return {"refused": error.problems[0].what}
    file.unlink()
    return {"file": done.num_bytes, "transformers": done.perplexity, **vars(done.checked[-1])}


def line(name: str, kind: str, found: Mapping[str, Any]) -> str:
    """One row of the table in Markdown."""
    if "refused" in found:
        return f"| {name} | {kind} | | | no file: {found['refused']} | |"
    figures = f"{found['transformers']:.4f} | {found['perplexity']:.4f} | {found['difference']:+.5f}"
    return f"| {name} | {kind} | {figures} | {found['file'] / 1e6:.0f} |"


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments of a table of models."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--texts", type=Path, default=Path("runs/texts"))
    parser.add_argument("--donor", type=Path, help="a folder of a model, in the place of SmolLM2")
    parser.add_argument("--only", nargs="*", help="names of rows")
    return parser


def read_rows(path: Path) -> dict[str, dict[str, Any]]:
    """The rows that an earlier run left in `path`, whose folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def main() -> int:
    """Measure the rows that are not there yet, and print them all."""
    parser = make_parser(__doc__)
    parser.add_argument("--llama-cpp", type=Path)
    options = parser.parse_args()
    path = options.out / "rows.json"
    rows = read_rows(path)
    print("| model | type | perplexity in transformers | in llama.cpp | bits per byte more | MB |", flush=True)
    print("|---|---|---|---|---|---|", flush=True)
    for name, case in cases(options.texts).items():
        if options.only and name not in options.only:
            continue
        known = rows.setdefault(name, {})
        missing = [kind for kind in case.types if kind not in known]
        run = make_model(name, case, options.out, options.texts, options.donor) if missing else options.out
        for kind in case.types:
            known[kind] = known.get(kind) or measure(run, kind, case, options.llama_cpp)
            write_file(path, json.dumps(rows, indent=1))
            print(line(name, kind, known[kind]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
