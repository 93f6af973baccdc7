"""The statistics of a scan, by simulation: no winner where there is no difference, and a real one is found."""

import numpy as np
import pytest

from hybridizer.core.bootstrap import interval, resampling_weights
from hybridizer.scan.select import (
    BETTER,
    LEAST_ITEMS,
    LEAST_TO_SCREEN,
    NO_DIFFERENCE,
    WORSE,
    decide,
    divide,
    find_null,
    sum_groups,
)

NUM_ITEMS, NUM_TRIED, NUM_BEST = 32, 60, 5


def draw_differences(generator, shape, kind):
    """Differences with mean 0 in the population; candidates share half of their variance, as in one model."""
    if kind == "skewed":
        parts = [generator.exponential(size=size) - 1 for size in (shape, shape[1])]
    elif kind == "hits":
        parts = [generator.choice([-1.0, 0, 1], p=[0.05, 0.9, 0.05], size=size) for size in (shape, shape[1])]
    else:
        parts = [generator.normal(size=size) for size in (shape, shape[1])]
    return (parts[0] + parts[1]) / np.sqrt(2)


def scan_once(generator, kind, effect, seed):
    """Search on one half of the items, test the best on the other: the verdicts, best of the search first."""
    search, test = (
        draw_differences(generator, (NUM_TRIED, 2 * NUM_ITEMS), kind).reshape(NUM_TRIED, 2, -1).swapaxes(0, 1)
    )
    search[0] += effect
    test[0] += effect
    best = np.argsort(search.sum(axis=1))[:NUM_BEST]
    sizes = generator.integers(50, 150, NUM_ITEMS).astype(float)
    found = decide(test[best] * sizes, sizes, lower_is_better=True, seed=seed, num_resamples=500)
    return best, [decision.verdict for decision in found]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["normal", "skewed", "hits"])
def test_where_nothing_differs_a_winner_is_called_in_at_most_one_of_twenty_scans(kind):
    generator = np.random.default_rng(5)
    called = sum(BETTER in scan_once(generator, kind, 0.0, seed)[1] for seed in range(300))
    assert called <= 15 + 1.64 * np.sqrt(300 * 0.05 * 0.95), called  # 5% and the error of 300 simulations


def test_a_real_difference_is_found_and_no_other_one():
    generator = np.random.default_rng(6)
    found = false = 0
    for seed in range(40):
        best, verdicts = scan_once(generator, "normal", -1.2, seed)
        found += best[0] == 0 and verdicts[0] == BETTER
        false += BETTER in verdicts[1:]
    assert found >= 38 and false <= 4, (found, false)


def test_one_candidate_has_the_interval_of_the_studentised_bootstrap():
    generator = np.random.default_rng(0)
    values = generator.exponential(size=40)
    (decision,) = decide(values[None], np.ones(40), lower_is_better=True, seed=3)
    drawn = resampling_weights(40, 2000, 3)
    means = drawn @ values
    errors = np.sqrt((drawn @ values**2 - means**2) / 39)
    low, high = interval((means - values.mean()) / errors)
    error = values.std(ddof=1) / np.sqrt(40)
    assert decision.change == pytest.approx(values.mean())
    assert decision.change_ci == pytest.approx((values.mean() - high * error, values.mean() - low * error), rel=0.02)


def test_the_interval_widens_with_the_number_of_candidates_and_not_with_copies_of_one():
    generator = np.random.default_rng(1)
    many = generator.normal(size=(20, 30))
    width = [np.subtract(*decide(x, np.ones(30), lower_is_better=True, seed=0)[0].change_ci) for x in (many[:1], many)]
    assert abs(width[1]) > 1.2 * abs(width[0])
    copies = decide(np.repeat(many[:1], 20, axis=0), np.ones(30), lower_is_better=True, seed=0)
    assert np.subtract(*copies[0].change_ci) == pytest.approx(width[0])


@pytest.mark.parametrize(("lower", "verdicts"), [(True, [BETTER, WORSE]), (False, [WORSE, BETTER])])
def test_better_is_lower_for_bits_and_higher_for_hits(lower, verdicts):
    values = np.random.default_rng(0).normal(size=(2, 30)) * 0.1 + [[-1.0], [1.0]]
    assert [d.verdict for d in decide(values, np.ones(30), lower_is_better=lower, seed=0)] == verdicts


def test_long_documents_weigh_more():
    (decision,) = decide(np.array([[10.0, -1, -1, -1]]), np.array([1.0, 9, 9, 9]), lower_is_better=True, seed=0)
    assert decision.change == pytest.approx(7 / 28)


@pytest.mark.parametrize("count", range(1, LEAST_ITEMS))
def test_few_items_show_no_difference(count):
    values = -np.ones((1, count)) - 0.01 * np.arange(count)
    (decision,) = decide(values, np.ones(count), lower_is_better=True, seed=0)
    assert decision.verdict == NO_DIFFERENCE


def test_a_candidate_that_equals_the_host_everywhere_is_no_different():
    (decision,) = decide(np.zeros((1, 20)), np.ones(20), lower_is_better=True, seed=0)
    assert (decision.change, decision.change_ci, decision.verdict) == (0, (0, 0), NO_DIFFERENCE)


def test_a_single_item_that_differs_bounds_nothing():
    values = np.zeros((1, 20))
    values[0, 0] = -1
    (decision,) = decide(values, np.ones(20), lower_is_better=True, seed=0)
    assert decision.change_ci is None and decision.verdict == NO_DIFFERENCE


def test_by_chance_alone_as_many_are_found_as_expected():
    generator = np.random.default_rng(2)
    nulls = [
        find_null(
            draw_differences(generator, (100, 24), "normal"), np.ones(24), lower_is_better=True, seed=s, num_flips=300
        )
        for s in range(40)
    ]
    found, expected = (np.mean([getattr(null, name) for null in nulls]) for name in ("num_found", "num_expected"))
    assert expected == pytest.approx(2.5, abs=0.3)  # of 100, at the 97.5% point
    assert found == pytest.approx(expected, abs=1.5)
    above = np.mean([null.best_found > null.best_by_chance for null in nulls])
    assert above <= 0.05 + 1.64 * np.sqrt(0.05 * 0.95 / 40)


def test_real_differences_lower_the_false_discovery_rate():
    values = draw_differences(np.random.default_rng(3), (100, 24), "normal")
    values[:20] -= 2
    null = find_null(values, np.ones(24), lower_is_better=True, seed=0)
    assert null.num_tried == 100 and null.num_found >= 19 and null.false_discovery_rate < 0.15
    assert null.best_found > null.best_by_chance > null.threshold > 1.9
    opposite = find_null(values, np.ones(24), lower_is_better=False, seed=0)
    assert opposite.num_found < 10


def test_where_nothing_is_found_there_is_no_rate():
    null = find_null(np.ones((3, 12)) + 0.1 * np.arange(12), np.ones(12), lower_is_better=True, seed=0)
    assert null.num_found == 0 and null.false_discovery_rate is None and null.best_found < 0


@pytest.mark.parametrize("shape", [(0, 9), (3, 1)])
def test_without_candidates_or_with_one_item_there_is_no_null(shape):
    assert find_null(np.zeros(shape), np.ones(shape[1]), lower_is_better=True, seed=0) is None


@pytest.mark.parametrize("count", [2, 3, LEAST_TO_SCREEN - 1, LEAST_TO_SCREEN, 100])
def test_items_are_divided_without_overlap_or_loss(count):
    screen, search, test = divide(count, seed=1)
    assert sorted([*screen, *search, *test]) == list(range(count))
    assert len(screen) == (count // 9 if count >= LEAST_TO_SCREEN else 0) and len(search) - len(test) in (0, 1)
    assert [*search] != [*divide(count, seed=4)[1]] or count < 4


def test_groups_are_summed_in_the_order_of_their_numbers():
    values = np.array([[1.0, 2, 4], [8, 16, 32]])
    assert sum_groups(values, [7, 3, 7]).tolist() == [[2, 5], [16, 40]]
