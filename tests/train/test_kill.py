"""A real process, killed with SIGKILL at random moments, must end with the bits of one that was left alone."""

import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from support.train_runs import SETTINGS, bytes_of, run

ROOT = Path(__file__).parents[2]


def start(folder, precision):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "support.train_runs", str(folder), precision]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
def test_killed_and_started_again_gives_the_same_bits(tmp_path):
    precision = "bfloat16"  # the harder one: masters and parameters differ
    straight, _ = run(tmp_path / "straight", replace(SETTINGS, precision=precision))
    seed = random.randrange(2**32)
    dice = random.Random(seed)
    kills = 0
    for _ in range(10):
        with start(tmp_path / "killed", precision) as process:
            for _ in range(dice.randrange(1, 5)):
                process.stdout.readline()
            time.sleep(dice.random() * 0.1)  # anywhere inside a step or a checkpoint
            process.kill()
        if process.returncode == 0:  # it was over before this busy process could kill it
            shutil.rmtree(tmp_path / "killed")
            kills = 0
            continue
        assert process.returncode == -9, f"seed {seed}"
        kills += 1
        if kills == 2:
            break
    assert kills == 2, f"never twice killed before it was over (seed {seed})"
    with start(tmp_path / "killed", precision) as process:
        lines = process.stdout.read().split()
    assert process.returncode == 0
    assert lines[-1] == bytes_of(straight), f"seed {seed}"
