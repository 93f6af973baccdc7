"""Rank correlation of the study in scripts/trace_outcome.py: known values."""

import math

import numpy as np
import pytest

from support.scripts import load_script

rank_correlation = load_script("rank_correlation")
correlate, partial, permutation_p, ranks = (
    getattr(rank_correlation, name) for name in ("correlate", "partial", "permutation_p", "ranks")
)


def test_equal_values_share_the_mean_of_their_ranks():
    assert ranks(np.array([3.0, 1.0, 3.0, 7.0])).tolist() == [2.5, 1.0, 2.5, 4.0]


def test_rho_is_that_of_the_textbook():
    # 1 - 6 sum(d^2) / (n (n^2 - 1)) with d = 1, 1, 0, 1, 1
    assert float(correlate(np.array([1, 2, 3, 4, 5.0]), np.array([2, 1, 3, 6, 4.5]))) == pytest.approx(1 - 6 * 4 / 120)
    assert math.isnan(float(correlate(np.ones(4), np.arange(4.0))))


def test_the_p_value_counts_all_orders():
    x = np.arange(6.0)
    assert permutation_p(x, x**3) == pytest.approx(2 / 720)  # this order and its reverse
    assert permutation_p(x[:3], np.array([1.0, 0.0, 2.0])) == 1.0  # every |rho| of three points is 0.5 or more


def test_nothing_is_left_of_a_predictor_that_is_the_boundary_in_other_units():
    b = np.array([4.0, 9, 13, 17, 21, 26])
    gain = np.array([0.1, 0.3, 0.2, 0.5, 0.4, 0.6])
    assert math.isnan(float(partial(b**2, gain, b)))
    assert abs(float(partial(np.array([1.0, 3, 2, 5, 4, 6]), gain, b))) == pytest.approx(1)


def test_the_partial_correlation_is_that_of_the_residuals_of_ranks():
    generator = np.random.default_rng(0)
    x, y, given = generator.normal(size=(3, 40))
    y = y + given
    residuals = []
    for values in (x, y):
        design = np.stack([ranks(given), np.ones(40)], axis=1)
        residuals.append(ranks(values) - design @ np.linalg.lstsq(design, ranks(values), rcond=None)[0])
    assert float(partial(x, y, given)) == pytest.approx(np.corrcoef(residuals)[0, 1])
