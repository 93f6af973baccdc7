"""Donors that were trained on different texts, and whether each measure picks the one trained on the text at hand.

    python scripts/quickstart_texts.py runs/texts
    python scripts/known_truth_tuned.py runs/known_truth_tuned

One side of SmolLM2-135M-Instruct is trained on the Python reference, or on news, with everything else frozen. A fifth
of the documents of each text is kept out of training, and their first bytes are what is scored. The truth is known: on
a text the side trained on that text is the right one. Every reading is kept, so an interrupted run resumes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from known_truth import BOUNDARY_SHARE, NUM_RESAMPLES, Judge, Side, decide
from known_truth_donors import Arrays, Bench, choose_prompts, make_parser, read
from smollm2 import checkpoint_folder

from hybridizer import build
from hybridizer.core.bootstrap import drawn_interval, resampling_weights
from hybridizer.models.load import load_causal_lm
from hybridizer.models.parts import find_parts
from hybridizer.scan.score import encode_text
from hybridizer.trace.competence import chance_level
from hybridizer.trace.probes import load_probes

TEXTS = ("python", "news")
SIDES = {"deep": "shallow", "shallow": "deep"}  # what is trained: what is frozen
HELD_OUT = 5  # one document in so many


def read_documents(path: Path) -> list[str]:
    """The documents of a JSON Lines file."""
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def training_recipe(donor: str, text: Path, side: str, seed: int, tokens: str) -> dict[str, Any]:
    """A recipe that trains one side on `text`; embedding, final norm and head stay as they are."""
    return {
        "name": f"{text.stem}-{side}-{seed}",
        "seed": seed,
        "donors": {"sound": donor},
        "layout": {"deep": "sound", "shallow": "sound", "boundary": BOUNDARY_SHARE},
        "train": {
            "data": [{"path": str(text.resolve())}],
            "tokens": tokens,
            "freeze": SIDES[side],
            "embedding": "freeze",
            "final_norm": "freeze",
            "head": "freeze",
            "seq_len": 256,
            "global_batch_size": 2,
            "lr": 2e-4,
        },
        "output": {"dtype": "bfloat16"},
    }


def measure_all(folder: Path, arguments: argparse.Namespace) -> tuple[list[str | None], int]:
    """Train and read what is missing in `folder`; the probes' answers and the number of documents of each text."""
    scored: list[str] = []
    for name in TEXTS:
        documents = read_documents(arguments.texts / f"{name}.jsonl")
        kept = [text for place, text in enumerate(documents) if place % HELD_OUT]
        lines = [json.dumps({"text": text}) for text in kept]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        held_out = [text for text in documents[::HELD_OUT] if len(text) >= arguments.bytes]
        scored += [text[: arguments.bytes] for text in held_out[: arguments.documents]]
    assert len(scored) == len(TEXTS) * arguments.documents, "a text has too few documents of that length"
    model, tokenizer = load_causal_lm(checkpoint_folder(arguments.model), torch.bfloat16)
    parts = find_parts(model)
    text = encode_text("held-out", tokenizer, scored)
    prompts, targets = choose_prompts(tokenizer, load_probes(arguments.probes), arguments.prompts)
    bench = Bench(model, parts, round(BOUNDARY_SHARE * parts.num_layers))
    names = [(t, side, seed) for seed in range(arguments.seeds) for t in arguments.train_on for side in SIDES]
    for name in ["own", *names]:
        label = name if isinstance(name, str) else "{}-{}-{}".format(*name)
        if (folder / f"{label}.npz").is_file():
            continue
        started = time.process_time()
        layers, places = parts.layers, range(0)
        if not isinstance(name, str):
            recipe = training_recipe(arguments.model, folder / f"{name[0]}.jsonl", name[1], name[2], arguments.tokens)
            built = build(recipe, runs=folder / "runs", load=False)
            assert built is not None
            layers = find_parts(load_causal_lm(built.model, torch.bfloat16)[0]).layers
            places = bench.sides()[name[1]]
        composed, its_parts = bench.compose(layers, places)
        np.savez(folder / f"{label}.npz", **read(composed, its_parts, prompts, text, 2))
        print(f"{label}: {time.process_time() - started:.1f} CPU seconds", file=sys.stderr, flush=True)
    return targets, arguments.documents


def on_text(run: Arrays, place: int, count: int) -> Arrays:
    """A reading with the documents of one text alone, number `place` of TEXTS."""
    chosen = slice(place * count, (place + 1) * count)
    return {**run, "bits": run["bits"][chosen], "num_bytes": run["num_bytes"][chosen]}


def tuned_runs(runs: Mapping[str, Arrays]) -> list[tuple[str, str, int]]:
    """The text, the side and the seed of each trained donor in `runs`."""
    found = [tuple(name.split("-")) for name in runs if name != "own"]
    return [(text, side, int(seed)) for text, side, seed in found]


def table(runs: Mapping[str, Arrays], judge: Judge, count: int, depth: int) -> str:
    """How often each measure picks the side that was trained on the text that is scored, as right / tie / wrong."""
    boundary = round(BOUNDARY_SHARE * depth)
    ranges = {"deep": range(boundary, depth), "shallow": range(boundary)}
    head = ("trained on this text, or sound", "trained on this text, or on the other")
    lines = ["| measure | " + " | ".join(head) + " | sound, or trained on the other text |", "|---|---|---|---|"]
    for label, measure in judge.measures().items():
        answers: tuple[list[str], ...] = ([], [], [])
        for text, side, seed in tuned_runs(runs):
            other = TEXTS[1 - TEXTS.index(text)]
            rival = f"{other}-{side}-{seed}"
            for place in range(len(TEXTS)):
                trained, sound = (_side(runs[n], place, count, ranges[side]) for n in (f"{text}-{side}-{seed}", "own"))
                if TEXTS[place] != text:
                    answers[2].append(decide(measure(sound), measure(trained)))
                    continue
                answers[0].append(decide(measure(trained), measure(sound)))
                if rival in runs:
                    answers[1].append(decide(measure(trained), measure(_side(runs[rival], place, count, ranges[side]))))
        cells = [" / ".join(str(found.count(word)) for word in ("right", "tie", "wrong")) for found in answers]
        if any(answer != "none" for found in answers for answer in found):
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _side(run: Arrays, place: int, count: int, layers: range) -> Side:
    chosen = on_text(run, place, count)
    return Side(chosen, chosen, layers)  # nothing but this side differs from the sound donor


def bits_table(runs: Mapping[str, Arrays], count: int) -> str:
    """Bits per byte of each donor on each text, and its paired difference from the sound one with a 95% interval."""
    weights = resampling_weights(count, NUM_RESAMPLES, 0)
    lines = ["| trained side | on | " + " | ".join(f"bits per byte of {t}" for t in TEXTS) + " | accuracy |"]
    lines.append("|---" * (len(TEXTS) + 3) + "|")
    own = [on_text(runs["own"], place, count) for place in range(len(TEXTS))]
    cells = [f"{run['bits'].sum() / run['num_bytes'].sum():.4f}" for run in own]
    lines.append("| none | - | " + " | ".join(cells) + f" | {runs['own']['hit'].mean():.3f} |")
    for text, side, seed in sorted(tuned_runs(runs), key=lambda each: (each[1], each[0], each[2])):
        run, cells = runs[f"{text}-{side}-{seed}"], []
        for place in range(len(TEXTS)):
            here = on_text(run, place, count)
            change, sizes = here["bits"] - own[place]["bits"], here["num_bytes"]
            low, high = drawn_interval((weights @ change) / (weights @ sizes))
            cells.append(f"{change.sum() / sizes.sum():+.4f} ({low:+.4f} to {high:+.4f})")
        lines.append(f"| {side}, seed {seed} | {text} | " + " | ".join(cells) + f" | {run['hit'].mean():.3f} |")
    return "\n".join(lines)


def main() -> None:
    """Train, measure and print the tables."""
    parser = make_parser(__doc__)
    parser.add_argument("--texts", type=Path, default=Path("runs/texts"), help="what quickstart_texts.py wrote")
    parser.add_argument("--train-on", nargs="+", choices=TEXTS, default=TEXTS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--tokens", default="12k", help="tokens to train on")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--documents", type=int, default=12, help="documents of each text that are scored")
    parser.add_argument("--bytes", type=int, default=500, help="bytes of each document that are scored")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    targets, count = measure_all(arguments.folder, arguments)
    runs = {path.stem: dict(np.load(path)) for path in sorted(arguments.folder.glob("*.npz"))}
    own = runs["own"]
    judge = Judge(len(own["hit"]), len(own["layer_js"]), count, chance_level(targets))
    print("\n\n".join((bits_table(runs, count), table(runs, judge, count, own["js"].shape[1] - 1))))


if __name__ == "__main__":
    main()
