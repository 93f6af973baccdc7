"""Ctrl-C and SIGTERM during a training: the loop saves its state at the next step boundary and ends."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from hybridizer.core.errors import Interrupted, Problem, RunError, Terminated

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A launcher forwards what the terminal has sent to its processes already: signals closer than this are one.
REPEAT_SECONDS = 1.0


class StopSignals:
    """As a context manager, replaces the handlers of SIGINT and SIGTERM and restores them afterwards.

    The first signal is only recorded in `received`. A second one, REPEAT_SECONDS later or more, ends the process as it
    would without this class. Signals that the process ignores stay ignored. Outside the main thread, where Python
    allows no handlers, nothing is replaced.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.received: signal.Signals | None = None
        self._clock, self._at = clock, 0.0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: of another language's making
                    self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._at = signal.Signals(number), self._clock()
        elif self._clock() - self._at >= REPEAT_SECONDS:
            self._restore()
            os.kill(os.getpid(), number)


def stopped_by(number: signal.Signals, step: int, checkpoint: str) -> RunError:
    """The error of a training that `number` stopped after `step` steps, its state saved in `checkpoint`."""
    kind = Interrupted if number == signal.SIGINT else Terminated
    what = f"stopped by {number.name}; the state is saved in {checkpoint}."
    return kind(Problem(f"training step {step}", what, "Re-run the same command to resume."))
