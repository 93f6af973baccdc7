"""Held-out curves inside the training loop: when a run measures, what it keeps of the best step, and when it stops."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from hybridizer.models.sharding import unshard
from hybridizer.train.best import BestWeights
from hybridizer.train.checkpoints import KEPT, checkpoint_steps
from hybridizer.train.curve import STOP, Curve, CurvePoint, CurveRequest, CurveSummary, Forgetting, TokenLosses, trim
from hybridizer.train.folder import CHECKPOINTS
from hybridizer.train.job import RunContext
from hybridizer.train.run_state import RunState


class Measuring:
    """The measurements of one process of a training; one without a `request` measures nothing."""

    def __init__(self, request: CurveRequest | None, context: RunContext, last_step: int) -> None:
        self._request, self._context, self._last_step = request, context, last_step
        self._curve = Curve(request, context.folder, context.runtime) if request is not None else None
        self._best = BestWeights(context.folder)
        self.seconds = 0.0  # in this process, so far
        self.forgetting: Forgetting | None = None

    def begin(self, step: int, losses: TokenLosses, masters: Mapping[str, Tensor]) -> None:
        """Take the rows of a run that resumes at `step`, and measure step 0, whose weights the model must have.

        Raises InputError where the weights of the best step so far are gone.
        """
        if self._curve is None:
            if self._context.runtime.is_main:
                trim(self._context.folder, step)
            return
        if dropped := self._curve.begin(step):
            what = "were of other documents or windows, and are dropped"
            self._context.monitor.note(f"earlier measurements of {', '.join(dropped)} {what}")
        self.take(RunState.untrained(), 0.0, losses, masters)
        best = self._curve.best_step()
        if not self._keeps_best or best is None:
            return
        if best == 0:
            self._write(0, masters)
        else:
            self._best.check(best)
        self._context.runtime.barrier()

    def take(
        self, state: RunState, seconds: float, losses: TokenLosses, masters: Mapping[str, Tensor], ended: bool = False
    ) -> bool:
        """Measure, `seconds` into the training, if that is due or the run has `ended`; whether it must stop for it.

        `losses` are those of the model as it is now, `masters` what trains of it. Every process must call this.
        """
        curve, step = self._curve, state.step
        if curve is None or not (ended or curve.is_due(step) or step == self._last_step):
            return False
        if not curve.has(step):
            began = self._context.clock()
            flop = self._context.figures.token_flops.total * state.tokens
            rows = curve.measure(CurvePoint(step, state.tokens, flop, seconds), losses)
            if self._keeps_best and curve.best_step() == step:
                self._write(step, masters)
            curve.store(rows)
            self.seconds += self._context.clock() - began
            self._context.monitor.note(curve.words(step))
            self._context.runtime.track({f"bits_per_byte_{row.set}": row.bits_per_byte for row in rows}, step)
        return self._forgets(curve, step)

    def saved(self) -> None:
        """Delete, after a checkpoint was written, the weights of steps that are no longer the best of anything."""
        if self._curve is not None and (best := self._curve.best_step()) is not None:
            self._best.keep((best, *self._best_of_checkpoints()))

    def result(self, step: int, masters: Mapping[str, Tensor]) -> tuple[int, dict[str, Tensor]]:
        """The step whose weights are the result of a run of `step` steps, and its trained tensors in float32."""
        trained = {name: unshard(master.detach()) for name, master in masters.items()}
        best = self._curve.best_step() if self._curve is not None and self._keeps_best else None
        if best is None:
            return step, trained
        (kept,) = self._context.runtime.sum(float(best if self._context.runtime.is_main else 0))  # as the main one says
        if int(kept) == step:
            return step, trained
        self._context.monitor.note(f"the result has the weights of step {int(kept)}, the best in domain")
        found = self._best.read(int(kept))
        return int(kept), {name: found[name].to(tensor.device) for name, tensor in trained.items()}

    def summary(self) -> CurveSummary | None:
        """The best measured step beside the last one."""
        return self._curve.summary() if self._curve is not None else None

    @property
    def _keeps_best(self) -> bool:
        return self._request is not None and self._request.keeps_best

    def _write(self, step: int, masters: Mapping[str, Tensor]) -> None:
        trained = {name: unshard(master.detach()) for name, master in masters.items()}
        if self._context.runtime.is_main and not self._best.path(step).is_file():
            self._best.write(step, trained, self._best_of_checkpoints())

    def _best_of_checkpoints(self) -> list[int]:
        """The best steps of the runs that would resume from each of the checkpoints."""
        assert self._curve is not None, "called where there is a curve"
        found = [self._curve.best_step(step) for step in checkpoint_steps(self._context.folder / CHECKPOINTS)[-KEPT:]]
        return [step for step in found if step is not None]

    def _forgets(self, curve: Curve, step: int) -> bool:
        """Whether a general text is above the limit and the settings stop for it; a warning is given once."""
        assert self._request is not None, "called where there is a curve"
        found, runtime = curve.forgetting(step), self._context.runtime
        if not runtime.sum(float(found is not None and runtime.is_main))[0]:  # as the main one says
            return False
        if self._request.settings.on_forgetting == STOP:
            self.forgetting = found
            self._context.monitor.note(f"stopped: {found}")
            return True
        if not curve.warned_before(step):
            self._context.monitor.note(f"warning: {found}")
        return False
