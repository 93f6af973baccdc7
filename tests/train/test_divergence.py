"""The guard on simulated losses: rates of false stops and of misses are stated here and in docs/training.md."""

import json
import random

import pytest

from hybridizer.train.divergence import STEPS, DivergenceGuard

VOCABULARY = 49_152  # ln: 10.8


def first_fault(losses, guard=None):
    """The step at which the guard stops, or None."""
    guard = guard or DivergenceGuard(VOCABULARY)
    return next((step for step, loss in enumerate(losses) if guard.fault(loss) is not None), None)


def mixture(dice, steps, share, easy=0.72, hard=4.46, start=22.0):
    """Losses that fall from `start` to `easy` over 30 steps; a share of the steps is of a hard source all along."""
    for step in range(steps):
        level = hard if dice.random() < share else easy
        yield max(0.01, level + max(0.0, (start - level) * (1 - step / 30)) + dice.gauss(0, 0.1))


@pytest.mark.parametrize("share", [0.01, 0.05, 0.1, 0.2, 0.3, 0.5])
def test_a_hard_source_in_a_mixture_stops_no_run(share):
    dice = random.Random(share)
    assert [first_fault(mixture(dice, 500, share)) for _ in range(40)] == [None] * 40


@pytest.mark.parametrize("noise", [0.05, 0.3, 1.0])
def test_noise_of_small_batches_stops_no_run(noise):
    dice = random.Random(noise)
    runs = [[2.4 + 2 * 0.98**step + dice.gauss(0, noise) for step in range(500)] for _ in range(40)]
    assert [first_fault(run) for run in runs] == [None] * 40


@pytest.mark.parametrize(("level", "after"), [(5.7, STEPS), (4.5, STEPS), (40.0, 3)])
def test_a_loss_that_rises_and_stays_is_stopped_within_few_steps(level, after):
    dice = random.Random(0)
    for _ in range(40):
        start = dice.randrange(20, 200)
        losses = [(2.4 if step < start else level) + dice.gauss(0, 0.2) for step in range(start + 50)]
        assert start + after - 1 <= first_fault(losses) <= start + 2 * STEPS


def test_a_mixture_that_collapses_is_stopped():
    dice = random.Random(0)
    for share in (0.05, 0.1, 0.2):
        for _ in range(40):
            losses = [*mixture(dice, dice.randrange(70, 200), share), *(7.5 + dice.gauss(0, 0.5) for _ in range(60))]
            assert first_fault(losses) is not None


def test_a_slow_rise_is_stopped_too():
    assert first_fault([2.4 + 0.01 * max(0, step - 100) for step in range(600)]) == 100 + 101 + STEPS - 1


def test_a_single_loss_stops_nothing_however_high():
    assert first_fault([2.0] * 50 + [900.0] + [2.0] * 50) is None


def test_a_guard_resumes_with_the_figures_it_was_stopped_with():
    losses = [2.4] * 30 + [5.7] * 20
    for stop in (1, 12, 31, 38):
        guard = DivergenceGuard(VOCABULARY)
        assert first_fault(losses[:stop], guard) is None
        figures = json.loads(json.dumps(guard.figures()))
        assert first_fault(losses[stop:], DivergenceGuard(VOCABULARY, figures)) == first_fault(losses) - stop


def test_a_fault_that_is_forgotten_is_reported_again_for_a_further_rise_only():
    guard = DivergenceGuard(VOCABULARY)
    assert first_fault([2.4] * 30 + [5.7] * STEPS, guard) == 30 + STEPS - 1
    guard.forget_fault_()
    assert first_fault([5.7] * 100, guard) is None
    assert first_fault([7.5] * STEPS, guard) == STEPS - 1
