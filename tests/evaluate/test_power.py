"""What a trial can detect: the power that is promised, what moves it, and where nothing is assumed."""

import numpy as np
import pytest

from hybridizer.evaluate.crossed import measure_crossed, p_value
from hybridizer.evaluate.power import Spread, detectable_after, detectable_before, measured_spread


@pytest.mark.slow
@pytest.mark.parametrize("by_seed", [0.0, 0.2, 2.0])
def test_the_detectable_difference_is_found_four_times_in_five(by_seed):
    spread = Spread(by_seed, 1.0, 0.5)
    found = detectable_before("bits_per_byte", 3, 20, 1, spread)
    generator = np.random.default_rng(0)
    told = 0
    for _ in range(400):
        values = found.difference + by_seed * generator.normal(size=(3, 1)) + generator.normal(size=20)
        told += p_value(measure_crossed(values + 0.5 * generator.normal(size=(3, 20)), np.ones(20))) < 0.05
    assert told / 400 == pytest.approx(0.8, abs=0.06)  # 400 trials have an error of 2%


def test_more_seeds_and_fewer_pairs_detect_smaller_differences():
    plain, seeds, pairs = (detectable_before("bits_per_byte", n, 40, k).difference for n, k in ((3, 1), (6, 1), (3, 6)))
    assert seeds < plain < pairs


def test_nothing_is_said_without_an_assumption_or_a_spread():
    assert detectable_before("margin_bits", 3, 40, 1) is None
    assert detectable_before("bits_per_byte", 1, 40, 1) is None
    assert detectable_after([]) is None


def test_the_spread_behind_the_errors_is_recovered():
    generator = np.random.default_rng(0)
    seeds = 0.3 * generator.normal(size=(400, 1)) + 2.0 * generator.normal(size=(400, 30))
    found = measured_spread(measure_crossed(seeds, np.ones(30)))
    assert (found.by_seed, found.by_chance) == pytest.approx(
        (0.3, 2.0), rel=0.15
    )  # chance alone makes means vary by 0.37
    groups = 0.7 * generator.normal(size=3000) + 2.0 * generator.normal(size=(4, 3000))
    found = measured_spread(measure_crossed(groups, np.ones(3000)))
    assert (found.by_group, found.by_chance) == pytest.approx((0.7, 2.0), rel=0.1)  # chance alone makes means vary by 1


def test_what_the_runs_show_replaces_what_was_assumed():
    generator = np.random.default_rng(0)
    pairs = [measure_crossed(generator.normal(size=(3, 20)), np.ones(20)) for _ in range(3)]
    found = detectable_after(pairs)
    assert not found.assumed and (found.num_seeds, found.num_groups, found.num_pairs) == (3, 20, 3)
    assert found.tails == pytest.approx(0.05 / 3)
