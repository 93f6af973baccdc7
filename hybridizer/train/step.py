"""One optimizer step: gradients of all micro-batches, then the update of the tensors that train."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hybridizer.data.batches import Batch
from hybridizer.models.batching import to_device
from hybridizer.models.objective import predicted_places
from hybridizer.train.freeze import FreezeProof, check_freeze
from hybridizer.train.isolation import in_eval
from hybridizer.train.job import TrainJob
from hybridizer.train.optimizer import Masters, make_optimizer, set_rate_
from hybridizer.train.prepare import Prepared
from hybridizer.train.runtime import Runtime
from hybridizer.train.schedule import rate_factor


@dataclass(frozen=True)
class Gradients:
    """The figures of a step before the weights change: mean loss in nats per token, learning rate, gradient norms.

    `source_losses` maps the numbers of the sources that the step has tokens of to their mean losses, `terms` the names
    of the terms of an objective that has several to theirs.
    """

    loss: float
    lr: float
    norms: Mapping[str, float]
    source_losses: Mapping[int, float]
    terms: Mapping[str, float] = field(default_factory=dict)


class OptimizerStep:
    """The optimizer step of a prepared model over all processes, each of which must call it."""

    def __init__(self, job: TrainJob, prepared: Prepared, runtime: Runtime) -> None:
        """Raises RunError if the wrapper for several processes made a frozen tensor trainable."""
        self._job, self._prepared, self._runtime = job, prepared, runtime
        self._objective = runtime.wrap(prepared.objective)
        check_freeze(job.model, job.freeze_plan)
        self.masters = Masters(job.model, job.freeze_plan)  # of the parameters as the wrapper left them
        factors = job.lr_factors()
        self._optimizer = make_optimizer(self.masters.tensors, job.settings, factors)
        self._slow = {name for name, factor in factors.items() if factor < 1}

    def compute_gradients(self, step: int) -> Gradients:
        """Fill the gradients of `step`, counted from 0; the weights stay as they are."""
        job = self._job
        all_steps = job.earlier.steps + step
        torch.manual_seed(job.seed + 1_000_003 * all_steps + self._runtime.rank)  # dropout draws the same when resumed
        lr = job.settings.lr * rate_factor(job.settings, step, job.data.num_steps)
        set_rate_(self._optimizer, lr)
        loss, source_losses, terms = self._backward(step)
        return Gradients(loss, lr, self.masters.gradient_norms(), source_losses, terms)

    def update_(self, gradients: Gradients, proof: FreezeProof | None = None) -> tuple[str, ...]:
        """Clip the gradients, take the step, and free them.

        With `proof`, for the first step of a process, the trained tensors that no gradient reached; raises RunError
        where the freeze did not hold.
        """
        clip, norm = self._job.settings.max_grad_norm, gradients.norms["total"]
        if clip and norm > clip:
            self.masters.scale_gradients_(clip / norm)
        reached = set() if proof is None else self.masters.reached()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.masters.publish_()
        if proof is None:
            return ()
        parameters = dict(self._job.model.named_parameters())
        return proof.check_first_step(self.masters.tensors, parameters, reached, self._slow)

    def token_losses(self, ids: Tensor) -> Tensor:
        """-ln p of every token but the first of each row, float32, as the model computes now, in eval mode.

        `ids` are (rows, tokens) on the host; a row is one document or a part of one. Nothing that training depends on
        changes: its random numbers are drawn again for each step, and compiled graphs see no rows of other lengths.
        """
        device, documents = self._runtime.device, self._prepared.documents
        positions = torch.arange(ids.shape[1]).repeat(len(ids), 1)
        if documents is not None:
            documents.announce(positions, device)
        compiles = self._job.compiles(device.type)
        eager = torch.compiler.set_stance("force_eager") if compiles else nullcontext()
        objective = self._prepared.objective
        with in_eval(objective), eager:
            return objective.token_losses(to_device(ids, device), to_device(positions, device))

    def state(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint. Every process must call this."""
        return self.masters.state(self._optimizer)

    def load_(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        self.masters.load_(self._optimizer, tensors)

    def _backward(self, step: int) -> tuple[float, dict[int, float], dict[str, float]]:
        """Gradients of the step's mean loss in the masters; the loss in nats per token, whole, by source, by term."""
        names = self._prepared.objective.term_names
        data, ranks, rank = self._job.data, self._runtime.num_ranks, self._runtime.rank
        targets = data.num_targets(step)
        batches = data.batches(step, rank, ranks, self._job.settings.micro_batch_size or None)
        # In float64, and read once, after the last batch: each reading would stop the host until the device is done.
        device = self._runtime.device
        documents = self._prepared.documents
        exact = torch.float32 if device.type == "mps" else torch.float64
        sizes = 1 + len(data.drawn) + len(names)  # of all, then of each source, then of each term
        sums = torch.zeros(sizes, dtype=exact, device=device)
        for number, batch in enumerate(batches, start=1):
            # Low-precision gradients move to the masters after each batch, so they must be the processes' mean by then.
            last = number == len(batches) or self._prepared.dtype != torch.float32
            if documents is not None:
                documents.announce(batch.position_ids, device)
            with self._runtime.without_sync(self._objective, last):
                loss, source_sums = self._objective(*self._on_device(batch))
                self._runtime.backward(loss * (ranks / targets))  # the wrapper averages over processes
            self.masters.collect_gradients_()
            sums[0] += loss.detach()
            sums[1:] += source_sums
        total, *rest = self._runtime.sum(*sums.tolist())
        counts = data.num_source_targets(step)
        found = zip(rest[: len(counts)], counts, strict=True)
        by_source = {source: loss / count for source, (loss, count) in enumerate(found) if count}
        by_term = zip(names, rest[len(counts) :], strict=True)
        return total / targets, by_source, {name: term / targets for name, term in by_term}

    def _on_device(self, batch: Batch) -> list[Tensor | None]:
        """What the objective takes. What it asks of their values is found here, on the host."""
        places = predicted_places(batch.targets)
        kept = () if self._job.kept is None else self._job.kept.read(batch.rows)
        tensors = (batch.input_ids, batch.position_ids, batch.targets, batch.sources, places, *kept)
        return [None if tensor is None else to_device(tensor, self._runtime.device) for tensor in tensors]
