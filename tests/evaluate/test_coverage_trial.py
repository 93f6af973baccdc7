"""The simulation in scripts/coverage_trial.py judges what `hybridize trial` computes."""

import numpy as np
import pytest

from hybridizer.evaluate.figures import BITS_PER_BYTE, UNTOLD, make_figure
from hybridizer.evaluate.trial import ArmRun, summarise
from support.scripts import load_script

coverage_trial = load_script("coverage_trial")


@pytest.mark.slow
def test_the_simulation_judges_pairs_as_a_trial_does():
    case, generator = coverage_trial.Case(3, 12, 1.0, 0.5), np.random.default_rng(0)
    verdicts = []
    for gain in np.linspace(0.0, 1.5, 12):
        (arms,), (sizes,) = case.draw(generator, (0.0, gain), 1)
        names = [str(n) for n in range(12)]
        runs = [
            ArmRun(str(arm), seed, (make_figure("text", BITS_PER_BYTE, "i", row, sizes, names),))
            for arm, values in enumerate(arms)
            for seed, row in enumerate(values)
        ]
        (pair,) = summarise(runs, ["0", "1"], ("text", BITS_PER_BYTE)).pairs
        assert pair.p == pytest.approx(float(coverage_trial.ours((arms[1] - arms[0])[None], sizes[None], 0.0)[0]))
        verdicts.append(pair.verdict != UNTOLD)
    assert set(verdicts) == {True, False}


@pytest.mark.slow
@pytest.mark.parametrize("by_seed", [0.0, 3.0])
def test_intervals_cover_known_differences_and_bootstraps_do_not(by_seed):
    case = coverage_trial.Case(3, 30, by_seed, 0.0)
    assert 0.93 <= coverage_trial.cover(case, 2000)["trial"] <= 0.97  # docs/trial.md; 2000 trials have an error of 0.5%
    assert coverage_trial.cover_by_bootstrap(case, 200)["nested bootstrap"] < 0.85


@pytest.mark.slow
def test_equal_arms_are_told_apart_in_at_most_5_percent_of_trials():
    found = coverage_trial.told_apart(coverage_trial.Case(3, 30, 3.0, 1.0), (0.0,) * 5, 2000)
    assert found <= 0.05 + 0.01  # two errors of 2000 trials
