import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridizer.core.errors import RecipeError
from hybridizer.train.schedule import ScheduleSettings, rate_factor


def factors(num_steps=100, **settings):
    return [rate_factor(ScheduleSettings(**settings), step, num_steps) for step in range(num_steps)]


@given(
    st.sampled_from(["cosine", "wsd", "constant"]),
    st.integers(1, 300),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_every_factor_is_above_zero_and_at_most_one(kind, num_steps, warmup, final, decay):
    found = factors(num_steps, kind=kind, warmup_ratio=warmup, min_lr_ratio=final, decay_ratio=decay)
    assert all(0 <= factor <= 1 for factor in found)
    assert found[0] > 0


def test_warm_up_rises_to_the_peak():
    found = factors(warmup_ratio=0.1)
    assert found[:10] == sorted(found[:10]) and found[10] == 1.0


def test_cosine_falls_from_the_peak_to_the_final_share():
    found = factors(kind="cosine", min_lr_ratio=0.1)
    assert found[10:] == sorted(found[10:], reverse=True)
    assert found[-1] == pytest.approx(0.1, abs=0.001)
    assert found[55] == pytest.approx(0.55)


def test_wsd_stays_at_the_peak_and_decays_over_its_share():
    found = factors(kind="wsd", min_lr_ratio=0.0, decay_ratio=0.2)
    assert found[10:80] == [1.0] * 70
    assert found[90] == pytest.approx(0.5)


def test_constant_stays():
    assert factors(kind="constant")[10:] == [1.0] * 90


def test_unknown_kinds_and_shares_are_refused():
    with pytest.raises(RecipeError, match="Did you mean 'cosine'"):
        factors(kind="cosin")
    with pytest.raises(RecipeError, match="not all within 0..1"):
        factors(warmup_ratio=1.5)
