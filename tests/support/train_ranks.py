"""Real training processes: started as a launcher would, and paced by the test that started them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_ranks(
    folder, precision, num_ranks=2, pace="free", module="support.train_runs", frozen_dtype=None, **environment
):
    """`num_ranks` processes of `module` that find each other as accelerate's launcher would let them."""
    port = str(free_port())
    common = {
        **os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(num_ranks),
        "LOCAL_WORLD_SIZE": str(num_ranks), **environment,
    }  # fmt: skip
    command = [sys.executable, "-m", module, str(folder), precision, "0", pace]
    command += [frozen_dtype] if frozen_dtype is not None else []
    return [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(num_ranks)
    ]  # fmt: skip


def say_go(processes):
    """Let paced processes take their next step."""
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()


def take_steps(processes, count):
    """Let paced processes take their first `count` steps; they wait after the last one."""
    for number in range(count + 1):
        for process in processes:
            assert process.stdout.readline() == "step\n"
        if number < count:
            say_go(processes)


def end(processes):
    """Let paced processes go on, and wait for them; their exit codes."""
    say_go(processes)
    for process in processes:
        process.communicate(timeout=120)
    return [process.returncode for process in processes]
