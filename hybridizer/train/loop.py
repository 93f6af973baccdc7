"""The training loop: from a job to trained float32 tensors. It may be killed and resumed at any moment.

On one device the same settings give the same bits, interrupted or not.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from hybridizer.core.errors import InputError, Problem, RunError
from hybridizer.core.progress import Advance, Monitor
from hybridizer.models.memory import peak_memory_bytes
from hybridizer.models.sharding import is_sharded
from hybridizer.train.checkpoints import (
    ROUNDING,
    MetricsLog,
    State,
    newest_checkpoint,
    read_checkpoint,
    set_aside,
    write_checkpoint,
    write_tensors,
)
from hybridizer.train.curve import CurveSummary, Forgetting
from hybridizer.train.divergence import DivergenceGuard
from hybridizer.train.folder import CHECKPOINTS, LOG, MASTERS
from hybridizer.train.freeze import FreezeProof, apply_freeze_
from hybridizer.train.job import RunContext, TrainJob
from hybridizer.train.measuring import Measuring
from hybridizer.train.prepare import prepare
from hybridizer.train.run_state import RunState
from hybridizer.train.runtime import same_bits
from hybridizer.train.step import Gradients, OptimizerStep
from hybridizer.train.stop_signals import StopSignals, stopped_by
from hybridizer.train.truncation import Truncation, begin_truncation, end_truncation


@dataclass(frozen=True)
class TrainResult:
    """How a run ended: `stopped_by` is tokens, steps, minutes or forgetting; losses in nats per token.

    `seconds` are without the `measuring_seconds` of held-out curves. The weights are those after `kept_step` steps:
    the last, or the best measured one. `unreached` lists trained tensors that no gradient had reached in the first step
    of this process. `changes` are settings that changed between two starts: from which `step` on, the `setting`, its
    value `before` and `now`.
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
    kept_step: int
    measuring_seconds: float
    curve: CurveSummary | None
    forgetting: Forgetting | None
    truncation: Truncation | None = None


def train(job: TrainJob, context: RunContext, *, accept_changes: bool = False) -> TrainResult:
    """Train the model of `job` in place, from the newest checkpoint in the folder of `context` if there is one.

    Afterwards that folder holds masters.safetensors, the trained tensors in float32 under their names in the model,
    beside checkpoints/, log.jsonl and, where the job has a curve, curve.jsonl. The model holds them too, and its frozen
    parameters have the bytes that they were loaded with, which is checked (under FSDP2 the model stays sharded).
    `accept_changes` lets a run resume from a checkpoint written with another learning rate, schedule, clipping or
    weight decay.
    Raises InputError for a checkpoint of another run and where `prepare` does, RunError when the loss diverges, a
    trained weight is not finite or the freeze does not hold, and Interrupted or Terminated, the state saved, when
    Ctrl-C or SIGTERM stopped it.
    """
    device = context.runtime.device
    with torch.random.fork_rng(devices=[]), same_bits(device):
        context.folder.mkdir(parents=True, exist_ok=True)
        apply_freeze_(job.model.to(device).train(), job.freeze_plan)
        proof = FreezeProof(job.freeze_plan, _parameters(job.model))  # of the bytes as loaded, before any cast
        with prepare(job, device) as prepared:
            run = _Run(job, context, OptimizerStep(job, prepared, context.runtime), proof)
            run.resume(accept_changes)
            num_isolated = prepared.documents.num_modules if prepared.documents is not None else 0
            _note_start(context.monitor, num_isolated, run.state.changes, accept_changes)
            truncation = begin_truncation(job, prepared, context)
            with context.monitor.task("train", job.data.num_steps, "steps") as advance:
                advance(run.state.step)
                stopped_by = run.to_end(advance)
            truncation = end_truncation(truncation, job, prepared, context)
        context.runtime.release()
        return replace(run.finish(stopped_by, prepared.dtype), truncation=truncation)


@dataclass(frozen=True)
class _Decision:
    """What follows a step, the same in every process: the minutes are used up, the state is saved, a signal stops."""

    out_of_time: bool
    save: bool
    signal: signal.Signals | None


class _Run:
    """One process of one training, from its first step to its last."""

    def __init__(self, job: TrainJob, context: RunContext, step: OptimizerStep, proof: FreezeProof) -> None:
        self._job, self._context, self._step, self._proof = job, context, step, proof
        self._runtime, self._clock = context.runtime, context.clock
        self._checkpoints = context.folder / CHECKPOINTS
        self._facts = job.facts(self._runtime.num_ranks, self._runtime.device.type)
        self._sources = [drawn.name for drawn in job.data.drawn]
        self.state = RunState(DivergenceGuard(job.vocab_size, self._sources))
        self._unreached: tuple[str, ...] = ()
        self._measuring = Measuring(job.curve, context, job.last_step)

    def resume(self, accept_changes: bool) -> None:
        """Go to where the newest checkpoint was written, or to the beginning, and start the clock there."""
        checkpoint = read_checkpoint(self._checkpoints, self._facts, accept_changes, self._job.details())
        self._runtime.barrier()
        if checkpoint is None:
            self._step.load_(self._job.first_state())
        else:
            self._refuse_nothing_to_do(checkpoint)
        self._measuring.begin(checkpoint.step if checkpoint else 0, self._step.token_losses, self._step.masters.tensors)
        if checkpoint is not None:
            self._step.load_(checkpoint.tensors)
            self.state = RunState.resumed(checkpoint, self._job.vocab_size, self._sources)
        self._proof.begin(self._step.masters.tensors, _parameters(self._job.model))
        self._saved_at, self._first_step = self._clock(), self.state.step
        self._started = self._saved_at - self._measuring.seconds
        self._log_file = MetricsLog(self._context.folder / LOG, self.state.step) if self._runtime.is_main else None

    def to_end(self, advance: Advance) -> str:
        """Take steps until the data, the steps or the minutes are used up; which of them it was.

        Raises Interrupted or Terminated after the step during which any of the processes received a signal.
        """
        last_step = self._job.last_step
        with StopSignals() as signals:
            out_of_time = self._decide(signals).out_of_time  # a restart after the minutes were used up
            if self._measure(ended=out_of_time):
                return "forgetting"
            if out_of_time:
                return "minutes"
            self._runtime.start_tracking("train", self._facts["train"])
            while self.state.step < last_step:
                status = self._take_step()
                advance(1, status)
                decided = self._decide(signals)
                forgets = self._measure(ended=decided.out_of_time)
                if decided.save or forgets or self.state.step == last_step:
                    self._save()
                if decided.signal is not None:
                    self._runtime.stop_tracking()
                    raise stopped_by(decided.signal, self.state.step, str(newest_checkpoint(self._checkpoints)))
                if forgets:
                    return "forgetting"
                if decided.out_of_time:
                    minutes = self._job.settings.max_minutes
                    self._context.monitor.note(f"stopped after {minutes:g} minutes, at step {self.state.step}")
                    return "minutes"
        for source, count in self.state.guard.above.items():
            losses = "losses" if len(self._sources) == 1 else f"losses of {source}"
            self._context.monitor.note(f"warning: the last {count} {losses} are higher than those before: see {LOG}")
        return "tokens" if last_step == self._job.data.num_steps else "steps"

    def finish(self, stopped_by: str, dtype: torch.dtype) -> TrainResult:
        """Write the masters, put them into a model that is not sharded, and prove that frozen tensors are unchanged."""
        self._runtime.stop_tracking()
        kept_step, trained = self._measuring.result(self.state.step, self._step.masters.tensors)
        if self._runtime.is_main:
            write_tensors(self._context.folder / MASTERS, trained)
        parameters = _parameters(self._job.model)
        for name, whole in trained.items():
            parameters[name].grad = None
            if not is_sharded(parameters[name]):
                parameters[name].data = whole
        self._proof.check_end(parameters)
        self._runtime.barrier()
        return TrainResult(
            steps=self.state.step,
            tokens=self.state.tokens,
            seconds=self._elapsed(),
            first_loss=self.state.first_loss,
            last_loss=self.state.last_loss,
            stopped_by=stopped_by,
            dtype=str(dtype).removeprefix("torch."),
            unreached=self._unreached,
            frozen_sha256=self._proof.frozen_sha256,
            changes=self.state.changes,
            kept_step=kept_step,
            measuring_seconds=self._measured(),
            curve=self._measuring.summary(),
            forgetting=self._measuring.forgetting,
        )

    def _measure(self, ended: bool) -> bool:
        """Measure the held-out curve if that is due or the run has `ended`; whether what it forgets must stop it."""
        losses, masters = self._step.token_losses, self._step.masters.tensors
        return self._measuring.take(self.state, self._elapsed(), losses, masters, ended)

    def _take_step(self) -> str:
        """One optimizer step, refused if its loss is not sound, and proved if it is the first of this process.

        Returns its figures in a few words.
        """
        began, step = self._clock(), self.state.step
        gradients = self._step.compute_gradients(step)
        self._check_loss(gradients)
        if step == self._first_step:
            self._unreached = self._step.update_(gradients, self._proof)
        else:
            self._step.update_(gradients)
        self.state.count_step(gradients.loss, self._job.data.num_tokens(step))
        return self._log(step, gradients, self._clock() - began)

    def _check_loss(self, gradients: Gradients) -> None:
        """Raise RunError for a loss that is not finite, and for one that diverges where the settings stop for it."""
        loss, norm = gradients.loss, gradients.norms["total"]
        if not (math.isfinite(loss) and math.isfinite(norm)):
            fault = f"loss {loss:.4g} and gradient norm {norm:.4g} are not finite."
            raise self._diverged(fault, gradients.lr, self.state.step)
        if self._job.settings.divergence == "off":
            return
        fault_found = self.state.guard.fault(self.state.step, gradients.source_losses)
        if fault_found is None:
            return
        if self._job.settings.divergence == "stop":
            raise self._diverged(fault_found.words, gradients.lr, fault_found.first_step)
        self._context.monitor.note(f"warning: training step {self.state.step}: {fault_found.words}")
        self.state.guard.forget_fault_()

    def _log(self, step: int, gradients: Gradients, seconds: float) -> str:
        """Write the line of `step`, which took `seconds`; its main figures in a few words."""
        figures, data = self._context.figures, self._job.data
        tokens = data.num_tokens(step)
        flops = figures.token_flops.total * tokens / seconds
        mean_seconds = (self._elapsed() - self.state.seconds) / (step + 1 - self._first_step)
        values = {
            "loss": gradients.loss,
            "lr": gradients.lr,
            "tokens": self.state.tokens,
            "tokens_per_second": tokens / seconds,
            "flops_per_second": flops,
            **figures.shares(flops, self._runtime.num_ranks),
            **{f"gradient_norm_{side}": norm for side, norm in gradients.norms.items()},
            **self._source_losses(gradients),
            **{f"loss_{name}": value for name, value in gradients.terms.items()},
            "memory_bytes": peak_memory_bytes(self._runtime.device),
            "seconds": self._elapsed(),
            "seconds_left": mean_seconds * (data.num_steps - step - 1),
        }
        if self._log_file is not None:
            self._log_file.write(step, values)
            self._runtime.track(values, self._job.earlier.steps + step)
        return (
            f"loss {gradients.loss:.4f}, {tokens / seconds:,.0f} tokens/s, learning rate {gradients.lr:.2e}, "
            f"{values['memory_bytes'] / 1e9:.1f} GB"
        )

    def _source_losses(self, gradients: Gradients) -> dict[str, float]:
        """The loss of each source in the step by name, where there are several."""
        losses = gradients.source_losses if len(self._sources) > 1 else {}
        return {f"loss_{self._sources[source]}": loss for source, loss in losses.items()}

    def _decide(self, signals: StopSignals) -> _Decision:
        """What all processes do after this step: the main one's clock decides, and a signal to any of them."""
        over = due = False
        if self._runtime.is_main:
            limit = self._job.settings.max_minutes
            over = limit is not None and self._elapsed() >= 60 * limit
            due = self._clock() - self._saved_at >= 60 * self._job.settings.checkpoint_minutes
        received = [float(signals.received == number) for number in (signal.SIGINT, signal.SIGTERM)]
        out_of_time, save, interrupted, terminated = self._runtime.sum(float(over), float(due), *received)
        stop = signal.SIGTERM if terminated else signal.SIGINT if interrupted else None
        # Weights whose loss is suspicious would take the place of good ones.
        save = save and not self.state.guard.above
        return _Decision(bool(out_of_time), bool(save or out_of_time or stop), stop)

    def _elapsed(self) -> float:
        return self.state.seconds + self._clock() - self._started - self._measuring.seconds

    def _measured(self) -> float:
        return self.state.measuring_seconds + self._measuring.seconds

    def _save(self, bad: bool = False) -> None:
        """Write a checkpoint. Raises RunError where a trained tensor is not finite: nothing could resume from it."""
        self._saved_at = self._clock()
        self._refuse_not_finite()
        tensors = self._step.state()
        if self._runtime.is_main:
            state = State(self.state.step, tensors, self.state.figures(self._elapsed(), self._measured()))
            write_checkpoint(self._checkpoints, state, self._facts, self._job.details(), bad)
            self._measuring.saved()
        self._runtime.barrier()

    def _refuse_not_finite(self) -> None:
        names = self._step.masters.not_finite()
        if self._runtime.sum(float(len(names)))[0]:
            what = f"training made weights that are NaN or infinite: {', '.join(names[:5]) or 'in another process'}."
            good = newest_checkpoint(self._checkpoints)
            again = f"it resumes from {good}" if good else "it starts again"
            fix = f"Lower `lr` or lengthen the warm-up, and build with --accept-changes: {again}."
            raise RunError(Problem(f"training step {self.state.step}", what, fix))

    def _diverged(self, fault: str, lr: float, first_bad: int) -> RunError:
        """The error of a `fault` whose losses began at the step `first_bad`; the state at the stop is kept, as .bad."""
        step, settings = self.state.step, self._job.settings
        if not self._runtime.sum(float(len(self._step.masters.not_finite())))[0]:
            self._save(bad=True)
        if self._runtime.is_main:
            set_aside(self._checkpoints, first_bad)
        self._runtime.barrier()
        good = newest_checkpoint(self._checkpoints)
        again = "and build again, from the start: no earlier checkpoint exists."
        if good is not None:
            again = f"and build again with --accept-changes: it resumes from {good}, the last good state."
        advice = f"Lower `lr` (it was {lr:.2g} here), lengthen the warm-up or lower `max_grad_norm`, {again}"
        if settings.divergence == "stop" and math.isfinite(self.state.last_loss) and first_bad < step:
            kept = self._checkpoints / f"step-{step:08d}.bad"
            advice += f" If such losses are expected, rename {kept} to {kept.stem} and set `divergence: warn`."
        return RunError(Problem(f"training step {step}", fault, advice))

    def _refuse_nothing_to_do(self, checkpoint: State) -> None:
        folder, last_step = str(self._context.folder), self._job.last_step
        if checkpoint.step > last_step:
            what = f"its newest checkpoint is at step {checkpoint.step}, and `max_steps` is {last_step}."
            raise InputError(Problem(folder, what, "Raise max_steps, or give the recipe another name."))
        if any(change.setting not in ROUNDING for change in checkpoint.changes) and checkpoint.step == last_step:
            what = f"all {last_step} steps were taken with the settings from before; the new ones would have no effect."
            raise InputError(Problem(folder, what, "Give the recipe another name, or restore the settings."))


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters())


def _note_start(
    monitor: Monitor, num_isolated: int, changes: tuple[Mapping[str, Any], ...], accept_changes: bool
) -> None:
    if num_isolated:
        monitor.note(f"modules that would mix the documents of a row and run on each separately: {num_isolated}")
    for change in changes:
        rounding = ": sums are taken in another order, and dropout draws other numbers, so that the bits differ"
        monitor.note(
            f"from step {change['step']} on {change['setting']} is {change['now']}, before {change['before']}"
            + (rounding if change["setting"] in ROUNDING else "")
        )
    if accept_changes and not any(change["setting"] not in ROUNDING for change in changes):
        monitor.note("no setting has changed since the last start: nothing to accept")
