import numpy as np
import pytest

from hybridizer.core.bootstrap import (
    biased_quantile,
    critical_value,
    debiased_abs,
    drawn_interval,
    folded_interval,
    interval,
    intervals,
    mean_samples,
    number_clusters,
    proportion_interval,
    recentred,
    resampling_weights,
    standard_errors,
    symmetric_intervals,
    weight_blocks,
)
from hybridizer.core.student import student_quantile
from hybridizer.trace.sensitivity import boundary_scores


def interval_of_mean(values, weights):
    return drawn_interval(mean_samples(values, weights))


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


@pytest.mark.slow
def test_the_mean_is_covered_about_95_times_in_100():
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        low, high = interval_of_mean(generator.exponential(size=100), resampling_weights(100, 400, trial))
        covered += low <= 1 <= high
    assert 0.90 <= covered / 300 <= 0.98  # three standard errors (1.3%) around the 94% of a skewed sample of 100


def test_missing_values_are_left_out():
    values = np.array([1.0, np.nan, 1.0, np.nan])
    assert interval_of_mean(values, resampling_weights(4, 200, 0)) == (1.0, 1.0)


def test_one_value_has_no_interval():
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
    assert drawn_interval(samples) == interval(np.array([2.0, 1.0, 3.0]))


def test_recentred_samples_have_the_estimate_as_their_mean_and_keep_their_spread():
    samples = np.abs(np.random.default_rng(0).normal(0, 1, 500))
    assert recentred(samples, 0.1).mean() == pytest.approx(0.1)
    assert recentred(samples, 0.1).std() == pytest.approx(samples.std())


@pytest.mark.parametrize("max_bytes", [1, 8 * 9 * 3, 10**9])
def test_blocks_of_weights_are_the_rows_of_the_whole_matrix(max_bytes):
    blocks = list(weight_blocks(9, 20, seed=3, max_bytes=max_bytes))
    assert all(block.nbytes <= max(max_bytes, 8 * 9) for block in blocks)
    assert (np.concatenate(blocks) == resampling_weights(9, 20, seed=3)).all()


PAIRS = np.repeat(np.arange(50), 2)  # 100 items, each asked both ways


def test_items_without_a_name_are_clusters_of_their_own():
    assert number_clusters(["a", None, "b", "a", None]).tolist() == [0, 1, 2, 0, 3]
    assert number_clusters([None, None]) is None and number_clusters(["a", "b"]) is None


def test_whole_clusters_are_drawn_and_every_resample_sums_to_1():
    clusters = np.array([0, 0, 1, 2, 2, 2])
    weights = resampling_weights(6, 200, 0, clusters)
    assert weights.sum(axis=1) == pytest.approx(np.ones(200))
    assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, 3] == weights[:, 5]).all()
    assert len(np.unique(weights[:, 2])) > 3
    blocks = list(weight_blocks(6, 200, 0, 8 * 6 * 7, clusters))
    assert (np.concatenate(blocks) == weights).all()


def test_equal_items_of_a_cluster_are_worth_one_item():
    values = np.random.default_rng(0).normal(size=50)
    twice = np.repeat(values, 2)
    low, high = interval_of_mean(values, resampling_weights(50, 2000, 0))
    assert interval_of_mean(twice, resampling_weights(100, 2000, 0, PAIRS)) == pytest.approx((low, high))
    assert standard_errors(twice[:, None], PAIRS)[0] == pytest.approx(values.std(ddof=1) / 50**0.5)
    assert standard_errors(values[:, None])[0] == pytest.approx(values.std(ddof=1) / 50**0.5)
    assert standard_errors(values[:, None], np.zeros(50, int)).tolist() == [0]


@pytest.mark.slow
def test_an_interval_that_ignores_the_clusters_is_too_narrow():
    generator = np.random.default_rng(0)
    covered = {"clusters": 0, "items": 0}
    for trial in range(300):
        values = np.repeat(generator.normal(size=50), 2) + generator.normal(0, 0.2, 100)
        for name, clusters in (("clusters", PAIRS), ("items", None)):
            low, high = interval_of_mean(values, resampling_weights(100, 300, trial, clusters))
            covered[name] += low <= 0 <= high
    assert covered["clusters"] / 300 >= 0.91 and covered["items"] / 300 <= 0.88


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (1, 10, 0.0179, 0.4042), (50, 100, 0.4038, 0.5962)],
)
def test_the_interval_of_a_proportion_is_wilsons(hits, n, low, high):
    assert proportion_interval(np.array([1.0] * hits + [0.0] * (n - hits))) == pytest.approx((low, high), abs=1e-4)


def test_a_proportion_of_clusters_is_as_uncertain_as_one_of_so_many_items():
    hits = np.array([1.0] * 20 + [0.0] * 30)
    whole = proportion_interval(hits)
    low, high = proportion_interval(np.repeat(hits, 2), PAIRS)
    assert (low, high) == pytest.approx(whole, abs=0.005)
    assert proportion_interval(np.zeros(100), PAIRS) == proportion_interval(np.zeros(50))
    assert proportion_interval(np.full(3, np.nan)) is None
    alternating = np.tile([0.0, 1.0], 50)  # pairs that differ: no design effect below 1
    assert proportion_interval(alternating, PAIRS) == proportion_interval(alternating)


def test_a_debiased_absolute_value_is_right_on_average_wherever_the_mean_is():
    noise = np.random.default_rng(0).normal(size=200_000)
    for mean in (0, 0.3, 0.6, 1.0, 1.5, 2.0, 3.0, 5.0):
        plain = np.abs(mean + noise).mean() - mean
        assert abs(debiased_abs(mean + noise, np.ones(200_000)).mean() - mean) < 0.16
        assert plain > 0.5 if mean < 0.3 else plain > -0.01
    assert debiased_abs(np.array([-7.0, 0.0]), np.array([1.0, 0.0])).tolist() == [7.0, 0.0]


def test_intervals_of_a_search_hold_for_all_columns_at_once():
    generator = np.random.default_rng(0)
    missed = {"one": 0, "all": 0}
    for _ in range(400):
        estimate = generator.normal(size=20)
        samples = estimate + generator.normal(size=(400, 20))
        missed["one"] += (np.abs(estimate) > critical_value(samples[:, :1], 1000)).any()
        missed["all"] += (np.abs(estimate) > critical_value(samples, 1000)).any()
    assert critical_value(samples[:, :0], 1000) == student_quantile(999)
    assert missed["one"] / 400 > 0.5 and 0.02 <= missed["all"] / 400 <= 0.09


def test_symmetric_intervals_are_about_the_estimate():
    samples = np.random.default_rng(0).normal(size=(2000, 1)) + 5
    ((low, high),) = symmetric_intervals(np.array([1.0]), samples, 1000)
    assert (low + high) / 2 == pytest.approx(1) and high - low == pytest.approx(3.92, abs=0.2)
    assert symmetric_intervals(np.array([1.0]), samples, 1) == [None]


@pytest.mark.parametrize(("bias", "reach"), [(0, 1.960), (0.1, 1.970), (0.5, 2.181), (1, 2.646), (3, 4.645)])
def test_an_interval_reaches_as_far_as_the_bias_that_may_be_left_takes(bias, reach):
    """The table of Armstrong and Kolesar (2018): cv of 0.05."""
    assert biased_quantile(bias) == pytest.approx(reach, abs=0.001)
    samples = np.random.default_rng(0).normal(size=(2000, 1)) + 5
    plain, biased = (
        symmetric_intervals(np.array([1.0]), samples, 1000, left)[0] for left in (None, bias * samples.std(axis=0))
    )
    assert (biased[1] - 1) / (plain[1] - 1) == pytest.approx(biased_quantile(bias) / 1.96, abs=0.001)
    assert symmetric_intervals(np.array([1.0]), np.full((9, 1), 1.0), 9, np.array([0.0])) == [(1.0, 1.0)]


def test_a_pair_is_told_apart_where_the_intervals_of_each_overlap():
    generator = np.random.default_rng(0)
    first = generator.normal(size=100)
    second = first + 0.1 + generator.normal(0, 0.1, 100)
    weights = resampling_weights(100, 1000, 0)
    low, high = interval_of_mean(first - second, weights)
    assert high < 0 and low == pytest.approx(-0.12, abs=0.03)
    alone = [interval_of_mean(values, weights) for values in (first, second)]
    assert alone[0][1] > alone[1][0]
