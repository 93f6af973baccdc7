"""A few real steps of a training on random weights and tokens, in a separate process: what one step takes here."""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hybridizer.checkpoint.dtypes import TORCH_NAMES
from hybridizer.core.errors import HybridizerError, Problem, RunError
from hybridizer.core.progress import SilentMonitor
from hybridizer.data.batches import Source, TrainingData
from hybridizer.data.tokenize import TokenFile
from hybridizer.donors.donor import Donor
from hybridizer.models.load import random_causal_lm
from hybridizer.models.memory import forget_peak_, peak_memory_bytes
from hybridizer.models.parts import find_parts
from hybridizer.plan.cost import StepTiming, estimate_cost, main_dtype
from hybridizer.plan.flops import TokenFlops
from hybridizer.plan.objective import Pairs, keeps_largest, objective_shape, pairs_of
from hybridizer.plan.plan import Plan
from hybridizer.recipe.models import Train
from hybridizer.train.folder import LOG
from hybridizer.train.freeze import plan_freeze, plan_lora_
from hybridizer.train.job import DeviceFigures, RunContext, TrainJob
from hybridizer.train.loop import train as run_loop
from hybridizer.train.precision import product_dtype
from hybridizer.train.runtime import Runtime
from hybridizer.train.teacher import Teacher, lower_
from hybridizer.train.teacher_pass import fill, open_cache

# (rows, width) of the products that the peak is measured with. A product of the first size takes 0.02 s at 200 GFLOP/s;
# a GPU needs far larger ones before launches and memory no longer count.
PEAK_SIZES = {
    "cpu": ((2048, 1024), (2048, 2048)),
    "cuda": ((4096, 4096), (8192, 8192), (16384, 8192)),
    "mps": ((4096, 2048), (4096, 4096)),
}
MIN_PRODUCTS = 3
MIN_STEPS = 2  # the first step makes the optimizer's state, and proves the freeze


@dataclass(frozen=True)
class DryRunRequest:
    """The training to time: `config` is the model's config.json, `dtype` that of its weights, as torch names it.

    `settings` say what freezes, what a step holds and how it computes; their data and limits are not used.
    `recomputed_layers` run again in the backward pass. A teacher has the config and dtype `teacher`, and is aligned
    with at `pairs`.
    """

    config: Mapping[str, Any]
    dtype: str
    settings: Train
    boundary: int
    steps: int = 3
    cpu: bool = False
    recomputed_layers: tuple[int, ...] = ()
    teacher: tuple[Mapping[str, Any], str] | None = None
    pairs: Pairs = ()


@dataclass(frozen=True)
class DryRun:
    """What was measured: seconds and tokens of the last step, the peak of memory, and where and how it computed."""

    step_seconds: float
    tokens_per_second: float
    peak_memory_bytes: int
    device: str
    compute_dtype: str


def dry_run(request: DryRunRequest) -> DryRun:
    """Train a random model of this shape for a few steps, in a separate process, and leave no files.

    Raises whatever training raises, and RunError when the process dies, as it does when memory is short.
    """
    assert request.steps >= MIN_STEPS, request.steps
    start = multiprocessing.get_context("spawn")  # a fork would start with this process's memory
    receiver, sender = start.Pipe(duplex=False)
    child = start.Process(target=_answer, args=(request, sender))
    child.start()
    sender.close()  # only the child's end is open now, so that its death ends the wait
    try:
        found = receiver.recv()
    except EOFError:
        what = "the process of the probe died, most likely because memory was short."
        fix = "Lower `micro_batch_size` or `seq_len`, or set `gradient_checkpointing: true`."
        raise RunError(Problem("train probe", what, fix)) from None
    finally:
        child.join()
    if isinstance(found, DryRun):
        return found
    raise found[0](*found[1])


def _answer(request: DryRunRequest, sender: Connection) -> None:
    """The child's work. Errors are sent as their problems: pickle would keep only their text."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            sender.send(_train(request, Path(folder)))
    except HybridizerError as error:
        sender.send((type(error), error.problems))


def _train(request: DryRunRequest, folder: Path) -> DryRun:
    model = random_causal_lm(request.config, getattr(torch, request.dtype))
    parts = find_parts(model)
    plan = plan_freeze(model, parts, request.settings, request.boundary)
    if request.settings.lora is not None:
        plan = plan_lora_(model, parts, plan, request.settings.lora)
    settings = replace(request.settings, max_steps=None, max_minutes=None, checkpoint_minutes=1e9)
    runtime = Runtime(cpu=request.cpu)
    data = _random_data(request, parts.vocab_size)
    forget_peak_(runtime.device)  # random weights need a second table where head and embedding are tied
    again = request.recomputed_layers
    job = TrainJob(model, parts, plan, data, settings, plan_hash="probe", recomputed_layers=again)
    if request.teacher is not None:
        job = _with_teacher(job, request, request.teacher, runtime, folder)
    result = run_loop(job, RunContext(folder, runtime, SilentMonitor(), DeviceFigures(TokenFlops(0, 0, 0))))
    last = json.loads((folder / LOG).read_text().splitlines()[-1])
    tokens = settings.seq_len * settings.global_batch_size
    seconds = tokens / last["tokens_per_second"]
    peak = peak_memory_bytes(runtime.device)
    return DryRun(seconds, last["tokens_per_second"], peak, str(runtime.device), result.dtype)


def _with_teacher(
    job: TrainJob, request: DryRunRequest, theirs: tuple[Mapping[str, Any], str], runtime: Runtime, folder: Path
) -> TrainJob:
    """`job` with a random teacher, or with what is kept of one that has run before."""

    def load() -> Teacher:
        config, dtype = theirs
        model = random_causal_lm(config, getattr(torch, dtype))
        return Teacher(model, find_parts(model), "probe", request.pairs)

    if not keeps_largest(request.settings):
        teacher = load()
        lower_(teacher.model, product_dtype(request.settings.precision, runtime.device), job.model)
        return replace(job, teacher=teacher)
    cache = open_cache(job, "probe", runtime.device, folder)
    fill(cache, job, load, runtime, SilentMonitor())
    forget_peak_(runtime.device)
    return replace(job, kept=cache)


def _random_data(request: DryRunRequest, vocabulary: int) -> TrainingData:
    """Rows full to the last position, of one document or of two."""
    size, rows, packed = request.settings.seq_len, request.settings.global_batch_size, request.settings.packed
    half = size // 2
    lengths = [size - half, half] if packed and half > 1 else [size]
    ends = np.cumsum(lengths * (request.steps * rows))
    tokens = np.random.default_rng(0).integers(vocabulary, size=int(ends[-1]), dtype=np.uint32)
    keys = np.zeros(len(ends), np.uint64)
    token_file = TokenFile(Path("random"), "random", tokens, ends, keys, np.diff(ends, prepend=0))
    settings = replace(request.settings, tokens=int(ends[-1]), heldout_ratio=0.0)
    return TrainingData([Source("random", (token_file,))], settings)


def measure_peak(
    device: str, dtype: str, sizes: Sequence[tuple[int, int]] | None = None, seconds: float = 0.3
) -> float:
    """FLOP/s of the fastest matrix product (rows, width) x (width, width) on `device`, above 0.

    `sizes` are the (rows, width) to try, by default those of the kind of device, smallest first. Each size is warmed up
    and timed MIN_PRODUCTS times at least; no new size is started after `seconds`.
    """
    place = torch.device(device)
    best, deadline = 0.0, time.perf_counter() + seconds
    for rows, width in sizes or PEAK_SIZES.get(place.type, PEAK_SIZES["cpu"]):
        if best and time.perf_counter() > deadline:
            break
        a, b = (torch.ones(n, width, dtype=getattr(torch, dtype), device=place) for n in (rows, width))
        best = max(best, 2 * rows * width * width / _product_seconds(a, b))
    return best


def _product_seconds(a: Tensor, b: Tensor) -> float:
    """The least time that `a @ b` takes. The first product is not counted: it loads kernels, 0.3 s on a busy CPU."""
    kind, times = a.device.type, []
    for _ in range(1 + MIN_PRODUCTS):
        _wait(kind)
        start = time.perf_counter()
        torch.mm(a, b)
        _wait(kind)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _wait(kind: str) -> None:
    if kind != "cpu":
        getattr(torch, kind).synchronize()


def expect_time(
    plan: Plan, train: Train, boundary: int, device: str, *, num_steps: int, teacher: Donor | None = None
) -> StepTiming:
    """Run a few real steps of this training on random weights, in a separate process that writes no files.

    One process's steps: `num_steps` of them take `run_seconds`. `teacher` is that of the objective. Raises RunError
    when the process dies, and whatever training raises.
    """
    planned = plan.train.settings if plan.train is not None else {}
    objective = objective_shape(train, planned, teacher)
    again = estimate_cost(plan, train, boundary, device, objective=objective).asked.recomputed_layers
    request = DryRunRequest(
        plan.config, main_dtype(plan), train, boundary, cpu=device == "cpu", recomputed_layers=again
    )
    if teacher is not None:
        theirs = teacher.config, TORCH_NAMES[teacher.main_dtype]
        request = replace(request, teacher=theirs, pairs=pairs_of(planned))
    found = dry_run(request)
    as_run: dict[str, Any] = {"precision": found.compute_dtype}
    return StepTiming(
        found.step_seconds,
        found.step_seconds * num_steps,
        found.tokens_per_second,
        found.peak_memory_bytes,
        estimate_cost(
            plan, replace(train, **as_run), boundary, found.device.partition(":")[0], objective=objective
        ).asked.peak_bytes,
        found.device,
        found.compute_dtype,
    )
