"""Several processes of one script that take their steps in turns, so that other work on the machine hits all alike.

Imported by the benchmarks: the parent calls `take_turns`, each child has a `Turn`. A child waits for a line on its
standard input before each step and reports the step's figures as a line of its output.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any


def take_turns(
    script: str, options: Sequence[str], kinds: Sequence[str], steps: int, threads: int, *, summary: bool = False
) -> dict[str, list[dict]]:
    """The figures of every one of `steps` steps of each kind.

    Each kind is a process of its own, `script` with this process's arguments, `options`, and `--child` with the kind.
    With `summary`, a child reports once more after its last step, and that comes last.
    """
    command = [sys.executable, script, *sys.argv[1:], *options, "--child"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    children = {
        kind: subprocess.Popen(
            [*command, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        for kind in kinds
    }
    lines = defaultdict(list)
    for _ in range(steps):
        for kind, child in children.items():
            child.stdin.write("go\n")
            child.stdin.flush()
            lines[kind].append(_next_figures(child))
    for kind, child in children.items():
        child.stdin.close()
        if summary:
            lines[kind].append(_next_figures(child))
        child.wait()
    return lines


def _next_figures(child: Any) -> dict:
    """The next line of figures of a child; whatever else it prints is passed over."""
    for line in child.stdout:
        if line.startswith("figures "):
            return json.loads(line.removeprefix("figures "))
    raise SystemExit("a child ended before its steps were done")


class Turn:
    """Waits for the parent before each step, and reports its time."""

    def __init__(self, device: str) -> None:
        import torch

        self._device = torch.device(device)
        self._began: tuple[float, float] | None = None

    def begin(self) -> None:
        """Wait until the parent starts the step."""
        if not sys.stdin.readline():
            raise SystemExit  # the parent is done, or gone
        self._began = time.process_time(), time.perf_counter()

    def end(self, **figures: object) -> None:
        """Report the step that has just ended."""
        import torch

        from hybridizer.models.memory import peak_memory_bytes

        if self._device.type == "cuda":
            torch.cuda.synchronize()
        cpu, wall = time.process_time() - self._began[0], time.perf_counter() - self._began[1]
        memory = peak_memory_bytes(self._device)
        print("figures " + json.dumps({"cpu": cpu, "wall": wall, "memory": memory, **figures}), flush=True)
