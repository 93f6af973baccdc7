import io

import pytest
from rich.console import Console

from hybridizer.core.progress import ConsoleMonitor, SilentMonitor, duration


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def monitor_on(*, terminal, width=100):
    clock = Clock()
    monitor = ConsoleMonitor(clock)
    monitor.__dict__["console"] = Console(file=io.StringIO(), force_terminal=terminal, width=width)
    return monitor, clock, monitor.console.file


def test_a_long_task_without_a_terminal_gives_a_line_at_its_first_step_and_then_at_intervals():
    monitor, clock, out = monitor_on(terminal=False)
    with monitor.task("train", 100, "steps") as advance:
        for step in range(100):
            clock.now += 2.0
            advance(1, f"loss {4 - step / 100:.2f}")
    lines = out.getvalue().splitlines()
    assert lines[0] == "train: 1 of 100 steps  loss 4.00  3 min left"
    assert lines[1] == "train: 16 of 100 steps  loss 3.85  3 min left"
    assert len(lines) == 7  # at 2 s, then every 30 s


def test_a_short_task_without_a_terminal_gives_no_line():
    monitor, clock, out = monitor_on(terminal=False)
    with monitor.task("splice", 10, "bytes") as advance:
        for _ in range(10):
            clock.now += 0.5
            advance(1)
    assert out.getvalue() == ""


@pytest.mark.parametrize(("total", "amount"), [(4_100_000_000, "2.1 MB of 4.1 GB"), (0, "2.1 MB")])
def test_bytes_are_shown_by_their_size(total, amount):
    monitor, clock, out = monitor_on(terminal=False)
    with monitor.task("hash", total, "bytes") as advance:
        clock.now += 11
        advance(2_100_000)
    assert out.getvalue().startswith(f"hash: {amount}")


def test_steps_of_an_earlier_start_say_nothing_about_the_time_left():
    monitor, clock, out = monitor_on(terminal=False)
    with monitor.task("train", 100, "steps") as advance:
        advance(90)
        clock.now += 5.0
        advance(1)
    assert out.getvalue() == "train: 91 of 100 steps  45 s left\n"


def test_a_terminal_shows_a_bar_with_the_figures_of_the_moment():
    monitor, _, out = monitor_on(terminal=True)
    with monitor.task("train [b]x", 4, "steps") as advance:
        advance(1, "loss 2.5 [/b]")
    assert "train [b]x" in out.getvalue() and "loss 2.5 [/b]" in out.getvalue()


def test_notes_write_out_what_a_terminal_would_act_on():
    monitor, _, out = monitor_on(terminal=False)
    monitor.note("donor '\x1b[31mred' [bold]")
    assert out.getvalue() == "donor '\\x1b[31mred' [bold]\n"


def test_silence():
    with SilentMonitor().task("x", 1, "steps") as advance:
        advance(1, "anything")


@pytest.mark.parametrize(("seconds", "text"), [(8, "8 s"), (99, "99 s"), (150, "2 min"), (12000, "3 h 20 min")])
def test_durations(seconds, text):
    assert duration(seconds) == text
