import numpy as np
import pytest

from hybridizer.core.bootstrap import (
    drawn_interval,
    folded_interval,
    interval,
    intervals,
    mean_interval,
    mean_samples,
    recentred,
    resampling_weights,
    weight_blocks,
)
from hybridizer.trace.sensitivity import boundary_scores


def test_every_resample_draws_as_many_prompts_as_there_are():
    weights = resampling_weights(40, 100, seed=1)
    assert weights.shape == (100, 40)
    assert weights.sum(axis=1) == pytest.approx(np.ones(100))
    assert (weights * 40 == np.round(weights * 40)).all()


def test_the_same_seed_draws_the_same():
    assert (resampling_weights(9, 5, 3) == resampling_weights(9, 5, 3)).all()
    assert (resampling_weights(9, 5, 3) != resampling_weights(9, 5, 4)).any()


def test_the_interval_is_the_middle_95_percent():
    assert interval(np.arange(1001.0)) == pytest.approx((25, 975))


def test_the_mean_is_covered_about_95_times_in_100():
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        low, high = mean_interval(generator.exponential(size=100), resampling_weights(100, 400, trial))
        covered += low <= 1 <= high
    assert 0.90 <= covered / 300 <= 0.98  # three standard errors (1.3%) around the 94% of a skewed sample of 100


def test_missing_values_are_left_out():
    values = np.array([1.0, np.nan, 1.0, np.nan])
    assert mean_interval(values, resampling_weights(4, 200, 0)) == (1.0, 1.0)


def test_one_value_has_no_interval():
    assert mean_interval(np.array([1.0, np.nan]), resampling_weights(2, 10, 0)) is None
    assert intervals(np.zeros((10, 3)), num_items=1) == [None, None, None]


def test_the_interval_of_an_absolute_value_holds_it_even_near_zero():
    signed = np.random.default_rng(0).normal(0.001, 1.0, 2000)
    low, high = folded_interval(signed)
    assert low == 0
    assert high == pytest.approx(1.96, abs=0.1)
    low, high = folded_interval(signed - 10)
    assert (low, high) == pytest.approx((8.04, 11.96), abs=0.2)


def test_the_boundary_score_is_covered_where_its_true_value_is_known():
    # JS(l) rises by 0.05 a layer in the shallow half and by 0.02 in the deep one, with noise of the prompts on top.
    true = np.cumsum([0.0] + [0.05] * 5 + [0.02] * 5)
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        js = true + generator.normal(0, 0.05, (100, 1)) + generator.normal(0, 0.02, (100, 11))
        weights = resampling_weights(100, 400, trial)
        low, high = interval(boundary_scores(weights @ js)[:, 4])
        covered += low <= 0.03 <= high
    assert covered / 200 >= 0.9  # 95% less three standard errors


def test_a_sample_that_drew_no_known_value_has_no_mean_and_is_left_out_of_the_interval():
    values = np.array([1.0, 3.0, np.nan])
    weights = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.0, 1 / 3, 2 / 3], [0.0, 0.0, 1.0]])
    samples = mean_samples(values, weights)
    assert samples[:3].tolist() == [2, 1, 3] and np.isnan(samples[3])
    assert drawn_interval(samples) == interval(np.array([2.0, 1.0, 3.0])) == mean_interval(values, weights)


def test_recentred_samples_have_the_estimate_as_their_mean_and_keep_their_spread():
    samples = np.abs(np.random.default_rng(0).normal(0, 1, 500))
    assert recentred(samples, 0.1).mean() == pytest.approx(0.1)
    assert recentred(samples, 0.1).std() == pytest.approx(samples.std())


@pytest.mark.parametrize("max_bytes", [1, 8 * 9 * 3, 10**9])
def test_blocks_of_weights_are_the_rows_of_the_whole_matrix(max_bytes):
    blocks = list(weight_blocks(9, 20, seed=3, max_bytes=max_bytes))
    assert all(block.nbytes <= max(max_bytes, 8 * 9) for block in blocks)
    assert (np.concatenate(blocks) == resampling_weights(9, 20, seed=3)).all()
