import numpy as np
import pytest

from hybridizer.trace.sensitivity import NO_PARTICLE, change_ratios, task_particles

DEFAULTS = {"tau": 0.5, "p_min": 0.1, "epsilon": 1e-10}


def particle(*probabilities, **settings):
    return task_particles(np.array([probabilities]), **{**DEFAULTS, **settings})[0]


def test_ratio_by_hand():
    assert change_ratios(np.array([0.1, 0.4, 0.2]), 0.0) == pytest.approx([0.75, 1.0])


def test_a_fall_to_nothing_divides_by_nearly_nothing():
    assert change_ratios(np.array([0.5, 1e-9]), 1e-10)[0] > 4e8
    assert change_ratios(np.array([0.5, 0.0]), 1e-10)[0] == pytest.approx(5e9)


def test_the_particle_is_the_first_steep_rise_to_a_probability_that_counts():
    assert particle(0.0, 0.01, 0.05, 0.3, 0.9) == 2  # earlier rises end below p_min
    assert particle(0.0, 0.2, 0.9) == 0
    assert particle(0.2, 0.3, 0.59, 0.9) == NO_PARTICLE  # never doubles within a layer
    assert particle(0.2, 0.3, 0.61, 0.9) == 1  # 0.61 is more than twice 0.3
    assert particle(0.9, 0.3, 0.3) == NO_PARTICLE  # a fall has a large ratio and is no rise


def test_the_settings_move_it():
    assert particle(0.2, 0.3, 0.45, 0.9, tau=0.3) == 0
    assert particle(0.0, 0.01, 0.3, p_min=0.001) == 0


def test_each_prompt_has_its_own():
    probabilities = np.array([[0.0, 0.5, 0.5], [0.0, 0.0, 0.5], [0.0, 0.0, 0.0]])
    assert task_particles(probabilities, **DEFAULTS).tolist() == [0, 1, NO_PARTICLE]
