"""Cost of an evaluation, side by side with what it cannot do without, in CPU seconds of one process.

    python scripts/bench_eval.py                      # SmolLM2-135M-Instruct, about four minutes on a CPU
    python scripts/bench_eval.py --model FOLDER --items 64 --kilobytes 20

Bits per byte is compared with bare forward passes over the same batches of windows, whose logits nobody reads (goal: at
most 1.15 times). Multiple choice is compared with lm-eval's own `hf` backend on the same prompts and answers, with a
batch of 32 (goal: at most 1.0), where lm-eval is installed: pip install 'hybridizer[eval]'. Both sides take turns on
small pieces of the work, so that other work on the machine hits both alike.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import pydoc_data.topics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from smollm2 import smollm2_folder

from hybridizer.core.progress import SilentMonitor
from hybridizer.data.tokenizer import TokenizerEncoder
from hybridizer.evaluate.bits import BATCH_ROWS, cut_windows, score_documents
from hybridizer.evaluate.candidate import Candidate
from hybridizer.evaluate.exam import ask, load_exam
from hybridizer.evaluate.fitting import batch_tokens
from hybridizer.evaluate.heldout import encode_heldout, read_heldout
from hybridizer.evaluate.request import SetEntry
from hybridizer.evaluate.rows import encode_row
from hybridizer.models.batching import make_batches
from hybridizer.models.load import max_tokens

PIECE = 4  # documents before the other side takes its turn; eight times as many questions


def main() -> None:
    """Print the two ratios."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, help="a model folder; SmolLM2-135M-Instruct if left out")
    parser.add_argument("--items", type=int, default=160)
    parser.add_argument("--kilobytes", type=int, default=80)
    arguments = parser.parse_args()
    candidate = Candidate("model", arguments.model or smollm2_folder(), "", SilentMonitor())
    race("bits per byte, bare forward passes", *bits_sides(candidate, 1000 * arguments.kilobytes))
    if importlib.util.find_spec("lm_eval") is None:
        print("multiple choice: not compared, lm-eval is not installed")
        return
    race("multiple choice, lm-eval's hf backend", *choice_sides(candidate, arguments.items))


def race(name: str, ours: list[Callable[[], object]], theirs: list[Callable[[], object]]) -> None:
    """Run the pieces of both sides in turns and print their CPU seconds; the first piece warms up."""
    spent = [0.0, 0.0]
    for number, pieces in enumerate(zip(ours, theirs, strict=True)):
        for side in (0, 1) if number % 2 else (1, 0):
            began = time.process_time()
            pieces[side]()
            spent[side] += (time.process_time() - began) * (number > 0 or len(ours) == 1)
    print(f"{name}: {spent[0]:.1f} s against {spent[1]:.1f} s, ratio {spent[0] / spent[1]:.3f}")


@torch.no_grad()
def bits_sides(candidate: Candidate, num_bytes: int) -> tuple[list, list]:
    """Pieces of documents: scored, and sent through the model as they are."""
    with tempfile.TemporaryDirectory() as folder:
        lines = [json.dumps({"text": text}) + "\n" for _, text in sorted(pydoc_data.topics.topics.items())]
        Path(folder, "text.jsonl").write_text("".join(lines))
        text = read_heldout(SetEntry("text", "text.jsonl"), Path(folder), num_bytes)
    encoded = encode_heldout(text, TokenizerEncoder(candidate.tokenizer))
    model, parts = candidate.model, candidate.parts
    context = min(1024, max_tokens(model.config) or 1024)
    sets = [
        replace(encoded, documents=encoded.documents[at : at + PIECE]) for at in range(0, len(encoded.documents), PIECE)
    ]

    def bare(piece):
        windows = [w for n, d in enumerate(piece.documents) for w in cut_windows(n, len(d.tokens), context)]
        for batch in make_batches([w.num_tokens for w in windows], BATCH_ROWS, batch_tokens(parts.device)):
            rows = [piece.documents[windows[i].document].tokens[windows[i].begin : windows[i].end] for i in batch]
            with torch.no_grad():
                model(input_ids=torch.tensor([row.tolist() for row in rows], device=parts.device), use_cache=False)

    ours = [lambda piece=piece: score_documents(model, parts, piece, context) for piece in sets]
    return ours, [lambda piece=piece: bare(piece) for piece in sets]


def choice_sides(candidate: Candidate, num_items: int) -> tuple[list, list]:
    """Pieces of questions with their answers: scored by us, and by lm-eval."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(pretrained=candidate.model, tokenizer=candidate.tokenizer, batch_size=32)
    questions = ask(load_exam("exam-en", None), 0)[:num_items]
    size = 8 * PIECE
    pieces = [questions[at : at + size] for at in range(0, len(questions), size)]

    def theirs(piece):
        pairs = [(question.prompt, answer) for question in piece for answer in question.continuations]
        requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
        return harness.loglikelihood(requests, disable_tqdm=True)

    def ours(piece):
        rows = [encode_row(candidate.tokenizer, q.prompt, answer) for q in piece for answer in q.continuations]
        return candidate.rows.score(rows, "bench")

    return [lambda piece=piece: ours(piece) for piece in pieces], [
        lambda piece=piece: theirs(piece) for piece in pieces
    ]


if __name__ == "__main__":
    main()
