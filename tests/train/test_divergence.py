"""The guard on simulated losses: rates of false stops and of misses are stated here and in docs/training.md."""

import json
import random

import pytest

from hybridizer.train.divergence import STEPS, DivergenceGuard

VOCABULARY = 49_152  # ln: 10.8


def first_fault(losses, guard=None):
    """The step at which the guard of one source stops, or None."""
    guard = guard or DivergenceGuard(VOCABULARY, ["text"])
    return next((step for step, loss in enumerate(losses) if guard.fault(step, {0: loss}) is not None), None)


def first_fault_of(steps):
    """The step at which the guard of several sources stops and what it says, or None."""
    guard = DivergenceGuard(VOCABULARY, ["easy.jsonl", "hard.jsonl"])
    found = ((step, guard.fault(step, losses)) for step, losses in enumerate(steps))
    return next(((step, fault) for step, fault in found if fault is not None), None)


def two_sources(dice, weight, rising=lambda step: (0.0, 0.0), steps=600, documents=24, levels=(0.72, 4.46)):
    """Steps of 24 documents, of the easy source and one in `weight` of the hard one, with what `rising` adds to both.

    Losses fall for 30 steps; those of documents have a deviation of 0.6.
    """
    for step in range(steps):
        begin, losses = max(0.0, 10 * (1 - step / 30)), ([], [])
        for _ in range(documents):
            source = int(dice.random() < 1 / (1 + weight))
            losses[source].append(max(0.01, levels[source] + begin + rising(step)[source] + dice.gauss(0, 0.6)))
        yield {source: sum(found) / len(found) for source, found in enumerate(losses) if found}


def mixture(dice, steps, share, easy=0.72, hard=4.46, start=22.0):
    """Losses that fall from `start` to `easy` over 30 steps; a share of the steps is of a hard source all along."""
    for step in range(steps):
        level = hard if dice.random() < share else easy
        yield max(0.01, level + max(0.0, (start - level) * (1 - step / 30)) + dice.gauss(0, 0.1))


@pytest.mark.parametrize("share", [0.01, 0.05, 0.1, 0.2, 0.3, 0.5])
def test_a_hard_source_in_a_mixture_stops_no_run(share):
    dice = random.Random(share)
    assert [first_fault(mixture(dice, 500, share)) for _ in range(40)] == [None] * 40


@pytest.mark.slow
@pytest.mark.parametrize("weight", [1, 10, 50])
def test_a_hard_source_beside_an_easy_one_stops_no_run(weight):
    dice = random.Random(weight)
    assert [first_fault_of(two_sources(dice, weight)) for _ in range(20)] == [None] * 20


@pytest.mark.parametrize("weight", [1, 10, 50])
def test_a_source_that_rises_from_2_4_to_5_7_is_stopped_and_named_however_rare(weight):
    dice = random.Random(weight)
    for _ in range(20):
        start = dice.randrange(150, 200)
        steps = two_sources(dice, weight, lambda step: (0.0, 3.3 * (step >= start)), levels=(0.72, 2.4))  # noqa: B023
        step, fault = first_fault_of(steps)
        seen = 1 - (1 - 1 / (1 + weight)) ** 24  # the share of steps that have a document of the source
        # Two single documents may have been above before.
        assert start + STEPS - 3 <= step <= start + 3 * STEPS / seen
        assert fault.words.startswith("the loss of hard.jsonl diverged: 12 steps in a row above ")
        assert start - 5 / seen <= fault.first_step <= step - STEPS + 1


def test_a_rise_of_all_sources_is_stopped_by_the_one_that_is_seen_most():
    dice = random.Random(0)
    for weight in (1, 10, 50):
        start = dice.randrange(100, 200)
        step, fault = first_fault_of(two_sources(dice, weight, lambda step: (3.3 * (step >= start),) * 2))  # noqa: B023
        assert step == start + STEPS - 1 and fault.first_step == start


def test_a_rise_that_heals_within_few_steps_stops_nothing():
    dice = random.Random(0)
    for weight in (1, 10, 50):
        steps = two_sources(dice, weight, lambda step: (3.0 * (100 <= step < 110),) * 2)
        assert first_fault_of(steps) is None


def test_the_losses_of_a_source_count_while_it_is_away():
    guard = DivergenceGuard(VOCABULARY, ["a", "b"])
    for step in range(40):
        assert guard.fault(step, {0: 2.0, 1: 2.4}) is None
    assert guard.fault(40, {0: 2.0, 1: 5.7}) is None
    assert guard.above == {"b": 1}
    assert guard.fault(41, {0: 2.0}) is None
    assert guard.above == {}, "the weights of this step are not suspicious"
    found = [guard.fault(42 + step, {0: 2.0, 1: 5.7}) for step in range(STEPS - 1)]
    assert found[:-1] == [None] * (STEPS - 2) and found[-1].first_step == 40


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
        guard = DivergenceGuard(VOCABULARY, ["text"])
        assert first_fault(losses[:stop], guard) is None
        figures = json.loads(json.dumps(guard.figures()))
        assert first_fault(losses[stop:], DivergenceGuard(VOCABULARY, ["text"], figures)) == first_fault(losses) - stop


def test_a_fault_that_is_forgotten_is_reported_again_for_a_further_rise_only():
    guard = DivergenceGuard(VOCABULARY, ["text"])
    assert first_fault([2.4] * 30 + [5.7] * STEPS, guard) == 30 + STEPS - 1
    guard.forget_fault_()
    assert first_fault([5.7] * 100, guard) is None
    assert first_fault([7.5] * STEPS, guard) == STEPS - 1
