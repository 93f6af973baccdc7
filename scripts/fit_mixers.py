"""Attention of SmolLM2-135M-Instruct replaced by mixers fitted in closed form: bits per byte, and recall.

    python scripts/quickstart_texts.py runs/texts
    python scripts/fit_mixers.py runs/fit_mixers [--only NAME ...] [--recall]

Scored are the beginnings of 10 topics of the Python reference and of 10 news stories, at most 256 tokens each; the fit
sees windows of 256 tokens of the other topics and stories. Each row is measured beside its control: the same layers
with their attention dropped. Every row is kept in OUT/rows.json, so an interrupted run resumes.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from smollm2 import smollm2_folder
from torch import Tensor

from hybridizer.core.files import write_file
from hybridizer.evaluate.recall import make_recall
from hybridizer.evaluate.rows import RowScorer, encode_row
from hybridizer.families.mixer_shapes import AttentionShape, delta_net_shape, mamba2_shape, short_conv_shape
from hybridizer.mixers.choice import MEASURED, SwapScore, choose_layers
from hybridizer.mixers.choose import score_swaps
from hybridizer.mixers.fit import FitSettings, as_mixes, fit_mixers, new_mixers
from hybridizer.mixers.stream import Mix, swapped
from hybridizer.models.load import load_causal_lm
from hybridizer.models.objective import CausalLMLoss
from hybridizer.models.parts import Parts, find_parts

WINDOW = 256
NUM_TOPICS, NUM_STORIES = 10, 10
PLACEMENTS = {
    "none": (), "three": (4, 8, 12), "odd to 15": tuple(range(1, 16, 2)), "odd": tuple(range(1, 30, 2)),
    "shallow quarter": tuple(range(8)), "deep quarter": tuple(range(22, 30)), "uniform quarter": tuple(range(3, 30, 4)),
    "shallow half": tuple(range(15)), "deep half": tuple(range(15, 30)),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One hybrid: the layers that are swapped, the mixer, the text and the fit. `init` "drop" is the control."""

    placement: str
    init: str = "attention"
    kind: str = "mamba2"
    tokens: int = 8192
    text: str = "both"
    shape: Mapping[str, Any] = field(default_factory=dict)
    fit: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What distinguishes the row."""
        if self.placement == "none":
            return "donor"
        if self.init == "drop":
            return f"{self.placement}, dropped"
        kind = [] if self.kind == "mamba2" else [self.kind.replace("_", " ")]
        more = [f"{key} {value}" for key, value in (*self.shape.items(), *self.fit.items())]
        return ", ".join([self.placement, *kind, self.init, f"{self.tokens // 1024}k {self.text}", *more])


SHAPES = {"mamba2": mamba2_shape, "gated_delta_net": delta_net_shape, "short_conv": short_conv_shape}
OLD = {"normalised": False, "open_gate": False, "ridge": 0.01}  # as first measured
ROWS = (
    Row("none"),
    Row("odd", "drop"),
    Row("odd"),
    Row("odd", "fresh", fit=OLD),
    Row("odd", fit={"target": "stream"}),
    Row("odd", shape={"expand": 2}, fit={"target": "stream"}),
    Row("three", "drop"),
    Row("three", fit={"target": "stream"}),
    Row("three"),
    Row("odd", tokens=16384),
    Row("odd", shape={"expand": 2}, tokens=16384),
    *(Row(f"half by {strategy}", init) for strategy in MEASURED for init in ("drop", "attention")),
    Row("odd", kind="short_conv"),
    Row("odd", fit={"open_gate": False}),
    Row("odd", kind="gated_delta_net"),
    Row("odd", text="python"),
    Row("odd", tokens=4096),
    Row("odd", shape={"expand": 2}),
    Row("odd", shape={"state_size": 128}),
    Row("odd", shape={"has_bias": True}),
    Row("odd", fit={"normalised": False}),
    Row("odd", fit={"target": "own"}),
    Row("odd", "fresh"),
    Row("odd", tokens=32768),
    *(Row(place, init) for place in ("uniform quarter", "deep quarter", "shallow quarter", "odd to 15",
                                     "deep half", "shallow half") for init in ("drop", "attention")),
    Row("three", shape={"expand": 2}),
)  # fmt: skip


class Bench:
    """The donor, what is scored, and what is fitted on."""

    def __init__(self, folder: Path, texts: Path, out: Path) -> None:
        self.out = out
        self.model, self.tokenizer = load_causal_lm(folder, torch.float32)
        self.parts: Parts = find_parts(self.model)
        names = sorted(topics)
        chosen = names[:: max(1, len(names) // NUM_TOPICS)][:NUM_TOPICS]
        lines = (texts / "news.jsonl").read_text(encoding="utf-8").splitlines()
        news = [json.loads(line)["text"] for line in lines]
        self.scored = {
            "python": self._begin([topics[name] for name in chosen]),
            "news": self._begin(news[:NUM_STORIES]),
        }
        rest = {"python": [topics[name] for name in names if name not in chosen], "news": news[NUM_STORIES:]}
        self.rest = {name: [token for text in rest[name] for token in self._ids(text)] for name in rest}

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, verbose=False)["input_ids"])

    def _begin(self, documents: Sequence[str]) -> list[list[int]]:
        return [self._ids(document)[:WINDOW] for document in documents]

    def windows(self, text: str, tokens: int) -> Tensor:
        """Windows spread evenly over a text, int64 (tokens / 256, 256); of both texts alternately."""
        if text == "both":
            halves = [self.windows(name, tokens // 2) for name in self.rest]
            return torch.stack(halves, dim=1).flatten(0, 1)
        ids, count = self.rest[text], tokens // WINDOW
        step = (len(ids) - WINDOW) // max(1, count - 1)
        return torch.tensor([ids[i * step : i * step + WINDOW] for i in range(count)])

    def layers(self, placement: str) -> tuple[int, ...]:
        """The layers to swap: listed, or half of all by what each loses alone."""
        if placement in PLACEMENTS:
            return tuple(layer for layer in PLACEMENTS[placement] if layer < self.parts.num_layers)
        num_layers = self.parts.num_layers
        strategy = placement.removeprefix("half by ")
        return choose_layers(strategy, num_layers, num_layers - num_layers // 2, scores=self.swap_scores()).swapped

    def swap_scores(self) -> list[SwapScore]:
        """Every layer swapped alone: fitted on 4,096 tokens, scored on the last window of each text."""
        path = self.out / "swaps.json"
        if not path.exists():
            attention = AttentionShape.of_config(self.model.config.to_dict())
            make = new_mixers(self.parts, "mamba2", "attention", mamba2_shape(attention), attention, seed=0)
            windows = self.windows("both", 4608)
            every = range(self.parts.num_layers)
            scores = score_swaps(self.model, self.parts, windows[:-2], windows[-2:], every, make)
            write_file(path, json.dumps([asdict(score) for score in scores], indent=1))
        return [SwapScore(**found) for found in json.loads(path.read_text(encoding="utf-8"))]

    def fit(self, row: Row) -> tuple[dict[int, Mix], dict[str, Any]]:
        """The mixers of a row, and what the fit says and takes."""
        layers = self.layers(row.placement)
        if row.init == "drop" or not layers:
            return {layer: torch.zeros_like for layer in layers}, {}
        attention = AttentionShape.of_config(self.model.config.to_dict())
        shape = SHAPES[row.kind](attention, **row.shape)
        wall, cpu = time.perf_counter(), time.process_time()
        make = new_mixers(self.parts, row.kind, row.init, shape, attention, seed=0)
        ids = self.windows(row.text, row.tokens)
        fitted = fit_mixers(self.model, self.parts, ids, layers, make, FitSettings(**row.fit))
        spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        explained = [mixer.explained_heldout for mixer in fitted]
        return as_mixes(fitted), {"explained": explained, "ridge": [mixer.ridge for mixer in fitted], **spent}

    @torch.no_grad()
    def bits(self, mixes: Mapping[int, Mix]) -> dict[str, float]:
        """Bits per byte of each text."""
        found, objective = {}, CausalLMLoss(self.model, self.parts)
        with swapped(self.parts, mixes):
            for name, documents in self.scored.items():
                nats = sum(float(objective.token_losses(torch.tensor([ids])).double().sum()) for ids in documents)
                num_bytes = sum(len(self.tokenizer.decode(ids).encode()) for ids in documents)
                found[name] = nats / math.log(2) / num_bytes
        return found

    @torch.no_grad()
    def recall(self, mixes: Mapping[int, Mix], num_pairs: int = 4) -> dict[str, float]:
        """The share of values that are recalled greedily, and the bits of the right one, of a list of pairs."""
        questions = [question for context in make_recall(num_pairs) for question in context[:2]]
        rows = [encode_row(self.tokenizer, question.prompt, question.continuations[0]) for question in questions]
        with swapped(self.parts, mixes):
            scores = RowScorer(self.model, self.parts).score(rows, "recall")
        return {
            "recalled": sum(score.is_greedy for score in scores) / len(scores),
            "recall_bits": sum(score.bits for score in scores) / len(scores),
        }


def main() -> None:
    """Measure the rows that are not there yet, and print them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--texts", type=Path, default=Path("runs/texts"))
    parser.add_argument("--model", type=Path, help="a folder of a model, instead of SmolLM2")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of rows, counted from 0")
    parser.add_argument("--recall", action="store_true", help="recall of these rows too")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "rows.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    bench = Bench(options.model or smollm2_folder(), options.texts, options.out)
    for number, row in enumerate(ROWS):
        if options.only is not None and number not in options.only:
            continue
        known = found.get(row.name, {})
        if "python" not in known or (options.recall and "recalled" not in known):
            mixes, spent = bench.fit(row)
            known |= asdict(row) | spent | (bench.recall(mixes) if options.recall else {})
            known |= {} if "python" in known else bench.bits(mixes)
            found[row.name] = known
            write_file(path, json.dumps(found, indent=1))
        print(line(row.name, known), flush=True)


def line(name: str, found: Mapping[str, Any]) -> str:
    """One row as text."""
    explained = found.get("explained")
    more = [f"{found['python']:.3f} / {found['news']:.3f}"]
    more += [f"explained {sum(explained) / len(explained):.2f}"] if explained else []
    more += [f"{found['cpu']:.0f} s of CPU"] if "cpu" in found else []
    more += [f"recall {found['recalled']:.2f}, {found['recall_bits']:.1f} bits"] if "recalled" in found else []
    return f"{name}: {', '.join(more)}"


if __name__ == "__main__":
    main()
