"""Student's t: published values, closed forms, and what broadcasts."""

import math

import numpy as np
import pytest

from hybridizer.core.student import student_quantile, student_tails


@pytest.mark.parametrize(
    ("degrees", "quantile"),  # the 97.5% column of Abramowitz and Stegun, table 26.10
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (10, 2.228), (30, 2.042), (120, 1.980)],
)
def test_the_quantiles_are_the_published_ones(degrees, quantile):
    assert student_quantile(degrees) == pytest.approx(quantile, abs=5e-4)


def test_the_tails_of_one_and_two_degrees_have_closed_forms():
    x = np.array([0.0, 0.01, 0.5, 1.0, 4.0, 50.0])
    assert student_tails(x, 1) == pytest.approx(1 - 2 * np.arctan(x) / math.pi, rel=1e-9)
    assert student_tails(x, 2) == pytest.approx(1 - x / np.sqrt(x**2 + 2), rel=1e-9)


def test_many_degrees_are_the_normal_distribution():
    assert float(student_tails(1.5, 1e6)) == pytest.approx(math.erfc(1.5 / math.sqrt(2)), rel=1e-5)


def test_an_infinite_distance_has_no_tail_and_none_has_all_of_it():
    assert student_tails([0.0, math.inf], [0.5, 3.7]) == pytest.approx([1.0, 0.0])


def test_quantiles_between_whole_degrees_lie_between():
    assert student_quantile(3) < student_quantile(2.5) < student_quantile(2)
    assert float(student_tails(student_quantile(2.5, 0.01), 2.5)) == pytest.approx(0.01)
