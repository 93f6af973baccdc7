"""Devices and processes through accelerate: one loop for a laptop, a GPU, and many nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hybridizer.core.errors import InputError, Problem

# The others wait while the main process splices and evaluates; the timeout of torch is ten or thirty minutes.
PATIENCE = timedelta(hours=6)


class Runtime:
    """The processes that train together, and this one's device. Precision is the caller's: there is no autocast."""

    def __init__(self, trackers: tuple[str, ...] = (), folder: Path | None = None, cpu: bool = False) -> None:
        """`trackers` are accelerate's (tensorboard, wandb, ...), logging into `folder`. `cpu` ignores accelerators.

        Raises InputError for a tracker that is unknown or not installed.
        """
        from accelerate import Accelerator, InitProcessGroupKwargs
        from accelerate.tracking import get_available_trackers

        available = [str(name) for name in get_available_trackers()]
        missing = [name for name in trackers if name not in available]
        if missing:
            what = f"no tracker {', '.join(missing)} here; installed: {', '.join(available) or 'none'}."
            raise InputError(Problem("train.trackers", what, "Install its package, or remove it."))
        patience = InitProcessGroupKwargs(timeout=PATIENCE)
        # Without `cpu`, accelerate treats every process of a launcher on a CPU as the only one.
        cpu = cpu or not torch.accelerator.is_available()
        self._accelerator = Accelerator(
            cpu=cpu, log_with=list(trackers) or None, project_dir=folder, kwargs_handlers=[patience]
        )
        self._tracks = bool(trackers)

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        device: torch.device = self._accelerator.device
        return device

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""
        return int(self._accelerator.process_index)

    @property
    def num_ranks(self) -> int:
        """How many processes train together."""
        return int(self._accelerator.num_processes)

    def all_gather(self, text: str) -> list[str]:
        """The `text` of every process, in the order of their numbers. Every process must call this."""
        from accelerate.utils import gather_object

        texts: list[str] = gather_object([text])
        return texts

    @property
    def is_main(self) -> bool:
        """Whether this process writes what is written once."""
        return bool(self._accelerator.is_main_process)

    def wrap(self, module: nn.Module) -> nn.Module:
        """`module` on this device, its gradients averaged over the processes.

        Parameter objects stay the same, except under FSDP2, which replaces them by shards.
        """
        wrapped: nn.Module
        if self._accelerator.is_fsdp2:
            # accelerate requires an optimizer with the module; ours is made afterwards, over the shards.
            placeholder = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.0)
            wrapped, _ = self._accelerator.prepare(module, placeholder)
        else:
            wrapped = self._accelerator.prepare_model(module)
        return wrapped

    def release(self) -> None:
        """Forget the modules that were wrapped, which accelerate holds as long as it lives: a model and its masters."""
        self._accelerator.free_memory()

    def backward(self, loss: Tensor) -> None:
        """Gradients of `loss`."""
        self._accelerator.backward(loss)

    def without_sync(self, module: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """A context in which the backward pass keeps gradients local, except in the `last` one before a step."""
        return nullcontext() if last else self._accelerator.no_sync(module)

    def sum(self, *values: float) -> list[float]:
        """Each of `values` summed over all processes."""
        if self.num_ranks == 1:
            return list(values)
        total: Tensor = self._accelerator.reduce(torch.tensor(values, dtype=torch.float64).to(self.device), "sum")
        return [float(value) for value in total]

    @property
    def is_fsdp(self) -> bool:
        """Whether each process holds only its part of every parameter (FSDP2)."""
        return bool(self._accelerator.is_fsdp2)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process runs the block first, then the others, which find its files on disk."""
        with self._accelerator.main_process_first():
            yield

    def barrier(self) -> None:
        """Return when all processes have reached this call."""
        self._accelerator.wait_for_everyone()

    def start_tracking(self, name: str, settings: Mapping[str, Any]) -> None:
        """Open the trackers; `settings` are shown beside the curves, structured ones as text."""
        if self._tracks:
            plain = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in settings.items()}
            self._accelerator.init_trackers(name, config=plain)

    def track(self, values: Mapping[str, float], step: int) -> None:
        """Log `values` to the trackers."""
        if self._tracks:
            self._accelerator.log(dict(values), step=step)

    def stop_tracking(self) -> None:
        """Close the trackers."""
        if self._tracks:
            self._accelerator.end_training()


@contextmanager
def same_bits(device: torch.device) -> Iterator[None]:
    """Inside the block, sums over experts on a CPU have one order for any number of threads; gpt_oss's had not."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid, which takes time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = filled
