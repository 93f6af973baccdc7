"""Small training runs over byte tokens, in this process or, run as a program, in a process that a test may kill."""

import hashlib
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from hybridizer.core.errors import HybridizerError
from hybridizer.core.progress import SilentMonitor
from hybridizer.data.batches import Source, TrainingData
from hybridizer.plan.flops import TokenFlops
from hybridizer.train.freeze import plan_freeze
from hybridizer.train.job import DeviceFigures, RunContext, TrainJob
from hybridizer.train.loop import train
from hybridizer.train.runtime import Runtime
from support.sections import train_section
from support.token_texts import token_file_of
from support.train_models import plain_model

TEXTS = [f"document {i} " + "abc " * (i % 11) for i in range(120)]
SETTINGS = train_section(lr=1e-2, precision="float32", checkpoint_minutes=0.0)
FIGURES = DeviceFigures(TokenFlops(1e6, 1e6, 1e6), 1e9)


def data_in(folder, seed=0, **settings):
    folder.mkdir(parents=True, exist_ok=True)
    source = Source("texts", (token_file_of(TEXTS, folder),))
    return TrainingData([source], train_section(**{"seq_len": 64, "global_batch_size": 4, **settings}), seed)


def run(
    folder, settings=SETTINGS, data=None, model=None, freeze="deep", plan_hash="sha256:plan", dropout=0.1, **options
):
    """Train a fresh plain model in `folder`; the model and the result."""
    model, parts = model or plain_model(dropout=dropout)
    plan = plan_freeze(model, parts, train_section(freeze=freeze), boundary=2)
    return model, run_model(folder, model, parts, plan, settings, data, plan_hash=plan_hash, **options)


def run_model(
    folder, model, parts, plan, settings=SETTINGS, data=None, plan_hash="sha256:plan", seed=0, accept_changes=False,
    runtime=None, monitor=None, recomputed_layers=(), curve=None, teacher=None, **context,
):  # fmt: skip
    """Train any model of at least 257 tokens as planned; the result."""
    job = TrainJob(model, parts, plan, data or data_in(folder / "data"), settings, plan_hash, seed)
    job = replace(job, recomputed_layers=recomputed_layers, curve=curve, teacher=teacher)
    where = RunContext(folder, runtime or Runtime(cpu=True), monitor or SilentMonitor(), FIGURES, **context)
    return train(job, where, accept_changes=accept_changes)


def bytes_of(model):
    """One hash over all parameters of a model."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode() + parameter.detach().numpy().tobytes())
    return digest.hexdigest()


class StepPrinter(SilentMonitor):
    """Writes a line after every step, so that another process can follow; `paced`, it then waits for a line."""

    def __init__(self, paced=False):
        self._paced = paced

    @contextmanager
    def task(self, label, total, unit):
        def advance(steps, status=""):
            sys.stdout.write("step\n")
            sys.stdout.flush()
            if self._paced:
                sys.stdin.readline()

        yield advance


if __name__ == "__main__":
    folder, precision, dropout, pace, kind = [*sys.argv[1:], *("0.1", "free", "keep")[len(sys.argv) - 3 :]]
    minutes = 60.0 if pace == "paced" else 0.0
    settings = replace(SETTINGS, precision=precision, checkpoint_minutes=minutes, frozen_dtype=kind)
    try:
        trained, _ = run(Path(folder), settings, monitor=StepPrinter(pace == "paced"), dropout=float(dropout))
    except HybridizerError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    sys.stdout.write(bytes_of(trained) + "\n")
