"""SIGTERM and Ctrl-C to real processes: the state is saved; the resumed run has the bits of one run through."""

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from hybridizer.train.stop_signals import REPEAT_SECONDS, StopSignals
from support.train_ranks import end, say_go, start_ranks, take_steps
from support.train_runs import SETTINGS, bytes_of, run

ROOT = Path(__file__).parents[2]


def start(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "support.train_runs", str(folder), "bfloat16", *arguments]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_the_state_and_the_resumed_run_has_the_same_bits(tmp_path, number, code):
    straight, _ = run(tmp_path / "straight", replace(SETTINGS, precision="bfloat16"))
    process = start(tmp_path / "stopped", "0.1", "paced")
    take_steps([process], 4)
    process.send_signal(number)
    say_go([process])
    _, error = process.communicate(timeout=60)
    saved = tmp_path / "stopped" / "checkpoints" / "step-00000004"
    assert process.returncode == code
    assert f"training step 4: stopped by {number.name}; the state is saved in {saved}." in error
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]  # the clock alone would have written none
    with start(tmp_path / "stopped") as process:
        assert process.stdout.read().split()[-1] == bytes_of(straight)


@pytest.mark.slow
def test_all_processes_stop_when_one_receives_a_signal(tmp_path):
    processes = start_ranks(tmp_path, "float32", pace="paced")
    take_steps(processes, 1)
    processes[1].send_signal(signal.SIGTERM)
    assert end(processes) == [143, 143]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_a_second_signal_ends_the_process_at_once_and_one_forwarded_by_a_launcher_does_not():
    clock = iter([0.0, REPEAT_SECONDS / 2, REPEAT_SECONDS])
    before = signal.getsignal(signal.SIGINT)
    received = []
    with pytest.raises(KeyboardInterrupt), StopSignals(lambda: next(clock)) as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        received.append(signals.received)
        os.kill(os.getpid(), signal.SIGINT)
    assert received == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGINT) is before


def test_handlers_are_restored_and_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGTERM)
            assert signals.received is None and signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_thread_trains_without_handlers():
    found = []

    def enter():
        with StopSignals() as signals:
            found.append(signals.received)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [None]
