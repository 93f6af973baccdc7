import numpy as np
import pytest

from hybridizer.trace.sensitivity import boundary_scores, delta_js


def test_delta_js_is_of_the_means_it_is_given():
    assert delta_js(np.array([0.0, 0.3, 0.1])) == pytest.approx([0.3, 0.2])


def test_boundary_score_by_hand():
    # dJS = 0.4, 0.1, 0.2, 0.1
    js = np.array([0.0, 0.4, 0.5, 0.3, 0.4])
    assert boundary_scores(js) == pytest.approx([0.4 - 0.4 / 3, 0.25 - 0.15, 0.7 / 3 - 0.1])


def test_boundary_scores_of_a_stack_are_those_of_its_rows():
    js = np.random.default_rng(0).random((5, 7))
    assert boundary_scores(js) == pytest.approx(np.stack([boundary_scores(row) for row in js]))


def test_one_layer_has_no_boundary():
    assert boundary_scores(np.array([0.0, 0.5])).shape == (0,)
