"""The training loop: from a model, a freeze plan and data to trained float32 tensors, killed and resumed at will.

A run on one device with the same settings gives the same bits, whether it was interrupted or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hybridizer.core.errors import InputError, Problem, RunError
from hybridizer.core.progress import Monitor
from hybridizer.data.batches import Batch
from hybridizer.models.matmul import UpcastMatmul, matmul_dtype
from hybridizer.models.memory import peak_memory_bytes
from hybridizer.models.objective import CausalLMLoss, TrainableParts
from hybridizer.models.parts import MODEL_FAULTS
from hybridizer.models.sharding import is_sharded, unshard
from hybridizer.models.wrapping import compiled, recomputing
from hybridizer.train.checkpoints import (
    MetricsLog,
    State,
    newest_before,
    read_checkpoint,
    set_aside,
    write_checkpoint,
    write_tensors,
)
from hybridizer.train.freeze import FreezeProof, apply_freeze_, check_freeze
from hybridizer.train.fused import fused
from hybridizer.train.isolation import FEW_TOKENS, documents_leak, isolate_documents
from hybridizer.train.job import RunContext, TrainJob
from hybridizer.train.optimizer import Masters, make_optimizer, set_rate_
from hybridizer.train.precision import choose_dtype, working_precision
from hybridizer.train.schedule import rate_factor

TRAINED = "trained.safetensors"


@dataclass(frozen=True)
class TrainResult:
    """How a run ended: `stopped_by` is tokens, steps or minutes; losses in nats a token.

    `unreached` lists trained tensors that no gradient had reached in the first step of this process. `changes` are
    settings that became others on the way: from which `step` on, the `setting`, its value `before` and `now`.
    """

    steps: int
    tokens: int
    seconds: float
    first_loss: float
    last_loss: float
    stopped_by: str
    dtype: str
    unreached: tuple[str, ...]
    frozen_sha256: Mapping[str, str]
    changes: tuple[Mapping[str, Any], ...]


def train(job: TrainJob, context: RunContext, *, accept_changes: bool = False) -> TrainResult:
    """Train the model of `job` in place, from the newest checkpoint in the folder of `context` if there is one.

    Afterwards that folder holds trained.safetensors, the trained tensors in float32 under their names in the model,
    beside checkpoints/ and log.jsonl. The trained parameters of the model are those, and the frozen ones hold the bytes
    they came with, which is checked (under FSDP2 the model stays sharded). `accept_changes` lets a run resume from a
    checkpoint written with another learning rate, schedule, clipping or weight decay.
    Raises InputError for a checkpoint of another run and for packed rows whose documents cannot be kept apart,
    RunError when the loss explodes or the freeze does not hold.
    """
    monitor = context.monitor
    with ExitStack() as stack, torch.random.fork_rng(devices=[]), _same_bits(context.runtime.device):
        run = _Run(job, context, accept_changes, stack)
        if run.num_apart:
            monitor.note(f"modules that would mix the documents of a row, and run each by itself: {run.num_apart}")
        for change in run.changes:
            monitor.note(
                f"from step {change['step']} on {change['setting']} is {change['now']}, before {change['before']}"
            )
        if accept_changes and not run.changes:
            monitor.note("no setting has changed since the last start: nothing to accept")
        with monitor.task("train", job.data.num_steps, "step") as advance:
            advance(run.step)
            stopped_by = run.to_end(advance, monitor)
        stack.close()
        return run.finish(stopped_by)


class _Run:
    """One process of one training: everything that lives from its first step to its last."""

    def __init__(self, job: TrainJob, context: RunContext, accept_changes: bool, stack: ExitStack) -> None:
        model, parts, plan, data, settings = job.model, job.parts, job.freeze_plan, job.data, job.settings
        folder, runtime, figures, clock = context.folder, context.runtime, context.figures, context.clock
        self._job = job
        self._model, self._plan, self._data, self._settings = model, plan, data, settings
        self._folder, self._runtime, self._figures, self._clock = folder, runtime, figures, clock
        self._facts = job.facts(runtime.num_ranks)
        folder.mkdir(parents=True, exist_ok=True)
        model.to(runtime.device).train()
        apply_freeze_(model, plan)
        self._proof = FreezeProof(plan, dict(model.named_parameters()))
        self._dtype = choose_dtype(settings.precision, runtime.device)
        stack.callback(working_precision(model, plan, self._dtype, _vocabulary(parts)).restore_)
        if not settings.compile:  # either would break the compiled graphs at every operation
            stack.enter_context(fused(model))
            if matmul_dtype(self._dtype, runtime.device) != self._dtype:
                stack.enter_context(UpcastMatmul())
        objective = CausalLMLoss(model, parts, job.loss_chunk_bytes)
        apart = _packed_apart(objective, parts, data.settings.seq_len) if data.settings.packed else nullcontext(0)
        self.num_apart = stack.enter_context(apart)
        if settings.compile:  # not before: each trial above would take up one of the few graphs
            stack.enter_context(compiled(parts.layers))
        if settings.gradient_checkpointing:
            stack.enter_context(recomputing(parts.layers))
        self._objective = runtime.wrap(objective)
        check_freeze(model, plan)
        self._masters = Masters(model, plan)
        self._optimizer = make_optimizer(self._masters.tensors, settings)
        self._guard = DivergenceGuard()
        self.step, self._tokens, self._seconds = 0, 0, 0.0
        self._first_loss = self._last_loss = float("nan")
        self._unreached: tuple[str, ...] = ()
        self.changes: list[dict[str, Any]] = []
        self._resume(accept_changes)
        self._proof.begin(self._masters.tensors, self._parameters())
        self._started, self._first_step = clock(), self.step
        self._saved_at = self._started
        self._journal = MetricsLog(folder / "log.jsonl", self.step) if runtime.is_main else None

    def to_end(self, advance: Callable[[int], None], monitor: Monitor) -> str:
        """Take steps until the data, the steps or the minutes are used up; which of them it was."""
        last_step = self._job.last_step
        if self._runtime.sum(*self._clock_decisions())[0]:  # a restart after the minutes were used up
            return "minutes"
        self._runtime.start_tracking("train", self._facts["train"])
        while self.step < last_step:
            self._take_step()
            advance(1)
            out_of_time, save = self._runtime.sum(*self._clock_decisions())
            if save or out_of_time or self.step == last_step:
                self._save()
            if out_of_time:
                monitor.note(f"stopped after {self._settings.max_minutes:g} minutes, at step {self.step}")
                return "minutes"
        return "tokens" if last_step == self._data.num_steps else "steps"

    def finish(self, stopped_by: str) -> TrainResult:
        """Write the trained tensors, put them into the model where it is whole here, and prove the frozen untouched."""
        self._runtime.stop_tracking()
        trained = {name: unshard(master.detach()) for name, master in self._masters.tensors.items()}
        if self._runtime.is_main:
            write_tensors(self._folder / TRAINED, trained)
        parameters = self._parameters()
        for name, whole in trained.items():
            parameters[name].grad = None
            if not is_sharded(parameters[name]):
                parameters[name].data = whole
        self._proof.check_end(parameters)
        self._runtime.barrier()
        return TrainResult(
            self.step,
            self._tokens,
            self._elapsed(),
            self._first_loss,
            self._last_loss,
            stopped_by,
            str(self._dtype).removeprefix("torch."),
            self._unreached,
            self._proof.frozen_sha256,
            tuple(self.changes),
        )

    def _take_step(self) -> None:
        """One optimizer step: all micro-batches, the guard, the update, the log."""
        began = self._clock()
        torch.manual_seed(self._job.seed + 1_000_003 * self.step + self._runtime.rank)  # dropout, the same anew
        lr = self._settings.lr * rate_factor(self._settings, self.step, self._data.num_steps)
        set_rate_(self._optimizer, lr)
        loss = self._backward()
        norms = self._masters.gradient_norms()
        if fault := self._guard.fault(loss, norms["total"]):
            raise self._stopped(fault, lr)
        clip = self._settings.max_grad_norm
        if clip and norms["total"] > clip:
            self._masters.scale_gradients_(clip / norms["total"])
        proving = self.step == self._first_step
        reached = self._masters.reached() if proving else set()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._masters.publish_()
        if proving:
            self._unreached = self._proof.check_first_step(self._masters.tensors, self._parameters(), reached)
        self._first_loss = loss if self.step == 0 else self._first_loss
        self._last_loss = loss
        self._tokens += self._data.num_tokens(self.step)
        self._log(loss, lr, norms, self._clock() - began)
        self.step += 1

    def _backward(self) -> float:
        """Gradients of the step's mean loss in the masters; the loss in nats a token, over all processes."""
        ranks, rank = self._runtime.num_ranks, self._runtime.rank
        targets = self._data.num_targets(self.step)
        batches = self._data.batches(self.step, rank, ranks, self._settings.micro_batch_size or None)
        total = 0.0
        for number, batch in enumerate(batches, start=1):
            # Low-precision gradients move to the masters after each batch, so they must be the processes' mean by then.
            last = number == len(batches) or self._dtype != torch.float32
            with self._runtime.without_sync(self._objective, last):
                loss = self._objective(*self._on_device(batch))
                self._runtime.backward(loss * (ranks / targets))  # the wrapper averages over processes
            self._masters.collect_gradients_()
            total += float(loss.detach())
        return self._runtime.sum(total)[0] / targets

    def _on_device(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        tensors = (batch.input_ids, batch.position_ids, batch.targets)
        ids, positions, targets = (tensor.to(self._runtime.device, non_blocking=True) for tensor in tensors)
        return ids, positions, targets

    def _log(self, loss: float, lr: float, norms: Mapping[str, float], seconds: float) -> None:
        if self._journal is None:
            return
        tokens = self._data.num_tokens(self.step)
        flops = self._figures.token_flops.total * tokens / seconds
        left = (
            (self._clock() - self._started)
            / (self.step + 1 - self._first_step)
            * (self._data.num_steps - self.step - 1)
        )
        values = {
            "loss": loss,
            "lr": lr,
            "tokens": self._tokens,
            "tokens_per_second": tokens / seconds,
            "flops_per_second": flops,
            "share_of_peak": flops / self._figures.peak_flops if self._figures.peak_flops else 0.0,
            **{f"gradient_norm_{side}": norm for side, norm in norms.items()},
            "memory_bytes": peak_memory_bytes(self._runtime.device),
            "seconds": self._elapsed(),
            "seconds_left": left,
        }
        self._journal.write(self.step, values)
        self._runtime.track(values, self.step)

    def _clock_decisions(self) -> tuple[float, float]:
        """Out of time, and due for a checkpoint: the main process's clock decides for all of them."""
        if not self._runtime.is_main:
            return 0.0, 0.0
        limit = self._settings.max_minutes
        over = limit is not None and self._elapsed() >= 60 * limit
        due = self._clock() - self._saved_at >= 60 * self._settings.checkpoint_minutes
        return float(over), float(due)

    def _parameters(self) -> dict[str, nn.Parameter]:
        return dict(self._model.named_parameters())

    def _elapsed(self) -> float:
        return self._seconds + self._clock() - self._started

    def _stopped(self, fault: str, lr: float) -> RunError:
        folder = self._folder / "checkpoints"
        good = newest_before(folder, self.step)
        if self._runtime.is_main:
            set_aside(folder, self.step)
        again = "and build again: no good state was written before."
        if good is not None:
            again = f"and build again with --accept-changes: it goes on from {good}, the last good state."
        advice = f"Lower `lr` (it was {lr:.2g} here), lengthen the warm-up or lower `max_grad_norm`, {again}"
        return RunError(Problem(f"training step {self.step}", fault, advice))

    def _save(self) -> None:
        self._saved_at = self._clock()
        tensors = self._masters.state(self._optimizer)
        if self._runtime.is_main:
            figures = {
                "tokens": self._tokens,
                "seconds": self._elapsed(),
                "first_loss": self._first_loss,
                "last_loss": self._last_loss,
                "smoothed": self._guard.smoothed,
                "lowest": self._guard.lowest,
                "changes": self.changes,
            }
            state = State(self.step, tensors, figures)
            write_checkpoint(self._folder / "checkpoints", state, self._facts)
        self._runtime.barrier()

    def _resume(self, accept_changes: bool) -> None:
        state = read_checkpoint(self._folder / "checkpoints", self._facts, accept_changes)
        self._runtime.barrier()
        if state is None:
            return
        if state.step > self._job.last_step:
            what = f"its newest checkpoint is at step {state.step}, and `max_steps` is {self._job.last_step}."
            raise InputError(Problem(str(self._folder), what, "Raise max_steps, or give the recipe another name."))
        if state.changes and state.step == self._job.last_step:
            what = f"all {state.step} steps were taken with the settings from before; the new ones would train nothing."
            raise InputError(Problem(str(self._folder), what, "Give the recipe another name, or restore the settings."))
        self._masters.load_(self._optimizer, state.tensors)
        figures = state.figures
        self._guard = DivergenceGuard(figures["smoothed"], figures["lowest"])
        self.step, self._tokens, self._seconds = state.step, figures["tokens"], figures["seconds"]
        self._first_loss, self._last_loss = figures["first_loss"], figures["last_loss"]
        changes = [{"step": state.step, **asdict(change)} for change in state.changes]
        self.changes = [*figures.get("changes", []), *changes]


@contextmanager
def _same_bits(device: torch.device) -> Iterator[None]:
    """While it lasts, sums of experts on a CPU come in one order, whatever the threads: gpt_oss's did not."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # a search for bugs, which takes time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = filled


def _vocabulary(parts: TrainableParts) -> int:
    return len(next(parts.embedding.parameters()))


@contextmanager
def _packed_apart(objective: CausalLMLoss, parts: TrainableParts, row_tokens: int) -> Iterator[int]:
    """While it lasts, documents that share a row stay apart, tried on whole rows; how many modules need help with that.

    Raises InputError where no module that could be helped explains the leak.
    """
    vocabulary, tokens = _vocabulary(parts), max(row_tokens, FEW_TOKENS)
    for tried in (FEW_TOKENS, tokens):
        with isolate_documents(objective.model, parts.layers, vocabulary, tried) as count:
            fault = _packing_fault(objective, vocabulary, tokens)
            if fault is None:
                yield count
                return
    what = f"its layers let a document of a packed row reach the next one, and {fault}."
    raise InputError(Problem("train.packed", what, "Set `packed: false`: one document a row, rows of like length."))


def _packing_fault(objective: CausalLMLoss, vocabulary: int, tokens: int) -> str | None:
    try:
        leaks = documents_leak(objective, vocabulary, tokens)
    except MODEL_FAULTS as error:
        return f"running each by itself fails: {type(error).__name__}: {str(error)[:200]}"
    return "no module was found that could run over each by itself instead" if leaks else None


EXPLODED = 2.0  # times the lowest smoothed loss so far, plus one nat: noise of small batches stays below
SMOOTHING = 0.9


class DivergenceGuard:
    """Watches the loss (nats a token) and the gradient norm of every step before the weights change."""

    def __init__(self, smoothed: float | None = None, lowest: float | None = None) -> None:
        self.smoothed, self.lowest = smoothed, lowest

    def fault(self, loss: float, gradient_norm: float) -> str | None:
        """What is wrong with a step of this loss and gradient, or None: it may be taken, and its loss is remembered."""
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            return f"loss {loss:.4g} and gradient norm {gradient_norm:.4g} are not finite."
        if self.lowest is not None and loss > EXPLODED * self.lowest + 1:
            return f"the loss exploded: {loss:.4g} nats a token after {self.lowest:.4g}."
        self.smoothed = loss if self.smoothed is None else SMOOTHING * self.smoothed + (1 - SMOOTHING) * loss
        self.lowest = self.smoothed if self.lowest is None else min(self.lowest, self.smoothed)
        return None
