"""Intervals and differences: known values, coverage, symmetry, and what is refused."""

import math

import numpy as np
import pytest

from hybridizer.core.bootstrap import wilson_interval
from hybridizer.core.errors import InputError
from hybridizer.evaluate.figures import (
    A_BETTER,
    ACCURACY,
    B_BETTER,
    BITS_PER_BYTE,
    UNTOLD,
    compare_figures,
    compare_pairs,
    estimate,
    make_figure,
    mcnemar_p,
)


def bits_figure(bits, sizes=None, groups=None, items="i"):
    groups = groups or [str(n) for n in range(len(bits))]
    return make_figure("news", BITS_PER_BYTE, items, bits, sizes or [10] * len(bits), groups)


def accuracy_figure(right, groups=None, items="i"):
    return make_figure(
        "exam", ACCURACY, items, right, [1] * len(right), groups or list(map(str, range(len(right)))), 0.25
    )


def test_a_figure_is_a_sum_over_a_sum():
    assert bits_figure([10, 30], [10, 5]).value == 40 / 15


def test_wilsons_interval_is_the_published_one():
    # Newcombe 1998 (doi 10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E), table I: 81/263 and 15/148
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15 / 148, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)


def test_alike_items_of_one_group_widen_the_interval_of_an_accuracy():
    right = [1.0] * 30 + [0.0] * 30
    alone = estimate(accuracy_figure(right))
    together = estimate(accuracy_figure(right, [str(n // 5) for n in range(60)]))
    assert alone.value == together.value == 0.5
    width = [found.value_ci[1] - found.value_ci[0] for found in (alone, together)]
    assert width[1] > 2 * width[0]  # 12 independent groups in place of 60 items: sqrt(5) times as wide


def test_groups_whose_items_differ_like_any_others_widen_it_by_little():
    generator = np.random.default_rng(0)
    right = generator.integers(0, 2, 1000).astype(float)
    alone, grouped = (estimate(accuracy_figure(right, g)) for g in (None, [str(n % 50) for n in range(1000)]))
    width = [found.value_ci[1] - found.value_ci[0] for found in (alone, grouped)]
    assert width[1] == pytest.approx(width[0], rel=0.35)  # the variance of 50 group sums has a spread of 20%


@pytest.mark.slow
@pytest.mark.parametrize("count", [10, 40])
def test_intervals_cover_the_truth_in_about_95_of_100_cases(count):
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        sizes = generator.integers(50, 150, count)
        bits = sizes * (1 + 0.2 * generator.standard_normal(count))
        low, high = estimate(bits_figure(bits.tolist(), sizes.tolist())).value_ci
        hits += low <= 1 <= high
    assert 0.917 <= hits / 400 <= 0.983  # 0.95 +- 3 standard errors of 400 cases


def test_pairs_find_a_difference_that_is_small_beside_the_spread_of_documents():
    generator = np.random.default_rng(2)
    bits = generator.uniform(5, 20, 30)
    left, right = bits_figure(bits.tolist()), bits_figure((bits - generator.uniform(0.01, 0.05, 30)).tolist())
    found = compare_figures("a", left, "b", right)
    assert found.verdict == B_BETTER and -0.005 < found.difference_ci[0] < found.difference < found.difference_ci[1] < 0
    assert compare_figures("b", right, "a", left).verdict == A_BETTER
    spread = estimate(left).value_ci
    assert spread[1] - spread[0] > 20 * abs(found.difference)


def test_equal_models_and_few_groups_give_no_difference():
    bits = [10.0, 20.0, 30.0, 5.0, 6.0, 7.0]
    assert compare_figures("a", bits_figure(bits), "b", bits_figure(bits)).verdict == UNTOLD
    lower = [value - 1 for value in bits]
    assert compare_figures("a", bits_figure(bits), "b", bits_figure(lower)).verdict == B_BETTER
    few = compare_figures("a", bits_figure(bits[:5]), "b", bits_figure(lower[:5]))
    assert few.verdict == UNTOLD and "5 groups" in few.caveat
    alone = compare_figures("a", bits_figure(bits, groups=["x"] * 6), "b", bits_figure(lower, groups=["x"] * 6))
    assert alone.verdict == UNTOLD and alone.difference_ci is None


def test_more_accuracy_is_better_and_mcnemar_is_exact():
    left, right = [0.0] * 20 + [1.0] * 10, [1.0] * 30
    found = compare_figures("a", accuracy_figure(left), "b", accuracy_figure(right))
    assert found.verdict == B_BETTER and (found.only_a, found.only_b) == (0, 20)
    assert found.mcnemar_p == 2 / 2**20
    assert mcnemar_p(3, 9) == pytest.approx(2 * sum(math.comb(12, k) for k in range(4)) / 2**12)
    assert mcnemar_p(0, 0) == mcnemar_p(4, 4) == 1
    assert compare_figures("a", bits_figure([1.0] * 9), "b", bits_figure([2.0] * 9)).mcnemar_p is None


def test_different_items_are_refused():
    with pytest.raises(InputError, match="different items"):
        compare_figures("a", bits_figure([1, 2]), "b", bits_figure([1, 2], items="j"))
    with pytest.raises(InputError, match="different items"):
        compare_figures("a", bits_figure([1, 2]), "b", bits_figure([1, 2], sizes=[10, 11]))


def test_every_two_models_are_compared_in_what_both_have():
    news, exam = bits_figure([1, 2]), accuracy_figure([1, 0])
    found = compare_pairs([("a", [news, exam]), ("b", [news]), ("c", [exam, news])])
    assert [(p.a, p.b, p.what) for p in found] == [
        ("a", "b", "news"), ("a", "c", "news"), ("a", "c", "exam"), ("b", "c", "news")]  # fmt: skip
