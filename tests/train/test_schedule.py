import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridizer.train.schedule import rate_factor
from support.sections import train_section


def factors(num_steps=100, **settings):
    section = train_section(**settings)
    return [rate_factor(section, step, num_steps) for step in range(num_steps)]


@given(
    st.sampled_from(["cosine", "wsd", "constant"]),
    st.integers(1, 300),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_every_factor_is_above_zero_and_at_most_one(kind, num_steps, warmup, final, decay):
    found = factors(num_steps, schedule=kind, warmup_ratio=warmup, min_lr_ratio=final, decay_ratio=decay)
    assert all(0 <= factor <= 1 for factor in found)
    assert found[0] > 0


def test_warm_up_rises_to_the_peak():
    found = factors(warmup_ratio=0.1)
    assert found[:10] == sorted(found[:10]) and found[10] == 1.0


def test_cosine_falls_from_the_peak_to_the_final_share():
    found = factors(schedule="cosine", min_lr_ratio=0.1)
    assert found[10:] == sorted(found[10:], reverse=True)
    assert found[-1] == pytest.approx(0.1, abs=0.001)
    assert found[55] == pytest.approx(0.55)


def test_wsd_stays_at_the_peak_and_decays_over_its_share():
    found = factors(schedule="wsd", min_lr_ratio=0.0, decay_ratio=0.2)
    assert found[10:80] == [1.0] * 70
    assert found[90] == pytest.approx(0.5)


def test_constant_stays():
    assert factors(schedule="constant")[10:] == [1.0] * 90
