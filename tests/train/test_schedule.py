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
    assert found[-1] == pytest.approx(0.1)
    assert found[54] > 0.55 > found[55]


def test_wsd_stays_at_the_peak_and_decays_over_its_share():
    found = factors(schedule="wsd", min_lr_ratio=0.0, decay_ratio=0.2)
    assert found[10:80] == [1.0] * 70
    assert found[79:] == pytest.approx([step / 20 for step in range(20, -1, -1)])


def test_constant_stays():
    assert factors(schedule="constant")[10:] == [1.0] * 90


@pytest.mark.parametrize("kind", ["cosine", "wsd"])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("decay", [0.01, 0.2, 1.0])
def test_every_run_of_two_steps_or_more_reaches_the_peak_and_ends_at_the_final_share(kind, warmup, decay):
    for num_steps in range(2, 51):
        found = factors(num_steps, schedule=kind, warmup_ratio=warmup, min_lr_ratio=0.1, decay_ratio=decay)
        assert found[-1] == pytest.approx(0.1), num_steps
        peak = found.index(1.0)
        assert found[: peak + 1] == sorted(found[: peak + 1]) and found[peak:] == sorted(found[peak:], reverse=True)


def test_a_run_of_one_step_takes_it_at_the_peak():
    for kind in ("cosine", "wsd", "constant"):
        assert factors(1, schedule=kind, warmup_ratio=0.1) == [1.0]


def test_any_warm_up_is_one_step_at_least_and_rounding_adds_none():
    assert factors(4, schedule="constant", warmup_ratio=0.1) == [0.5, 1.0, 1.0, 1.0]
    assert factors(30, schedule="constant", warmup_ratio=0.1)[:4] == [0.25, 0.5, 0.75, 1.0]


def test_a_decay_of_no_length_stays_at_the_peak():
    assert factors(10, schedule="wsd", warmup_ratio=0, decay_ratio=0) == [1.0] * 10
