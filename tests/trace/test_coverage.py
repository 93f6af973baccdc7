"""The intervals of S(b) cover what they claim to, and false licences are rare: scripts/coverage.py in small."""

import pytest

from hybridizer.core.bootstrap import debiased_abs
from support.scripts import load_script

coverage = load_script("coverage")
TRIALS = 300


@pytest.mark.slow
@pytest.mark.parametrize("name", ["still", "flat", "stepped", "noisy", "decaying", "real"])
def test_the_intervals_of_the_debiased_score_cover_the_truth_where_the_plain_ones_do_not(name):
    """Three standard errors of 300 trials are 3.8%."""
    estimators = {"plain": coverage.plain_abs, "debiased": debiased_abs}
    rates = coverage.cover(coverage.made_profiles()[name], estimators, 100, TRIALS)
    assert all(0.91 <= rate <= 0.99 for rate in rates["debiased"])
    if name in ("still", "decaying"):
        assert max(rates["plain"]) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["all level", "one level", "one still", "one still, noise shallow"])
def test_a_setting_without_evidence_is_not_licensed_by_a_search_over_boundaries(name):
    """2.5%, and three standard errors of 200 trials."""
    corrected, _ = coverage.false_licences(coverage.made_nulls()[name], 3, 60, 200)
    assert corrected <= 0.025 + 0.033


def test_evidence_under_every_setting_is_licensed():
    sure = coverage.made_nulls()["one level"].others
    corrected, _ = coverage.false_licences(coverage.Null(sure, sure), 3, 60, 5)
    assert corrected == 1
