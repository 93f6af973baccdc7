"""Figures of a trial: means over seeds, pairs, Holm's correction, and what is refused."""

import numpy as np
import pytest

from hybridizer.core.errors import InputError
from hybridizer.evaluate.figures import ACCURACY, B_BETTER, BITS_PER_BYTE, UNTOLD, make_figure
from hybridizer.evaluate.trial import ArmRun, holm, seed_mean, summarise

PRIMARY = ("news", BITS_PER_BYTE)


def bits(values, what="news", items="i"):
    names = [str(n) for n in range(len(values))]
    return make_figure(what, BITS_PER_BYTE, items, values, [1.0] * len(values), names)


def trial(effects, seeds=(0, 1, 2), groups=20, noise=0.01, whats=("news",)):
    """Runs of arms that differ by `effects` on documents of very different difficulty."""
    generator = np.random.default_rng(0)
    documents = generator.normal(size=groups) + 3
    runs = []
    for arm, effect in effects.items():
        for seed in seeds:
            figures = [bits(documents + effect + noise * generator.normal(size=groups), what) for what in whats]
            runs.append(ArmRun(arm, seed, tuple(figures)))
    return runs


def test_a_real_difference_is_told_and_documents_that_differ_do_not_hide_it():
    found = summarise(trial({"base": 0.0, "frozen": -0.02}), ["base", "frozen"], PRIMARY)
    (pair,) = found.pairs
    assert (pair.a, pair.b, pair.verdict, pair.caveat) == ("base", "frozen", B_BETTER, None)
    assert pair.difference_ci[0] < -0.02 < pair.difference_ci[1] < 0
    low, high = found.arms[0].value_ci
    assert high - low > 10 * (pair.difference_ci[1] - pair.difference_ci[0])  # an arm's own interval is over documents


def test_a_pair_of_equal_arms_is_not_told_apart():
    (pair,) = summarise(trial({"a": 0.0, "b": 0.0}), ["a", "b"], PRIMARY).pairs
    assert pair.verdict == UNTOLD and pair.p == pair.p_holm > 0.05


def test_the_mean_of_an_arm_and_each_seed_are_given():
    runs = [ArmRun("a", seed, (bits([level] * 6),)) for seed, level in ((7, 1.0), (8, 2.0), (9, 6.0))]
    (arm,) = summarise(runs, ["a"], PRIMARY).arms
    assert arm.value == 3.0 and arm.by_seed == ((7, 1.0), (8, 2.0), (9, 6.0))
    assert (arm.n, arm.num_groups) == (6, 6)


def test_holms_correction_is_the_published_one():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_the_primary_outcome_is_corrected_for_pairs_and_the_others_for_pairs_and_figures():
    whats = ("news", "code", "talk")
    effects = {"a": 0.0, "b": -0.004, "c": 0.002}
    pairs = summarise(trial(effects, whats=whats), list(effects), PRIMARY).pairs
    for primary, number in ((True, 3), (False, 6)):
        family = sorted((pair for pair in pairs if pair.primary is primary), key=lambda pair: pair.p)
        assert len(family) == number
        assert family[0].p_holm == pytest.approx(min(1, number * family[0].p))
    assert [pair.what for pair in pairs if pair.primary] == ["news"] * 3


def test_a_correction_can_take_a_difference_away():
    effects = {"a": 0.0, "b": -0.003}
    alone = summarise(trial(effects), ["a", "b"], PRIMARY).pairs[0]
    among = {**effects, **{f"c{n}": 0.0 for n in range(4)}}
    crowded = summarise(trial(among), list(among), PRIMARY).pairs[0]
    assert alone.verdict == B_BETTER and crowded.p == pytest.approx(alone.p)
    assert crowded.p_holm > 0.05 > crowded.p and crowded.verdict == UNTOLD


def test_one_seed_has_no_interval_and_says_why():
    found = summarise(trial({"a": 0.0, "b": -1.0}, seeds=(0,)), ["a", "b"], PRIMARY)
    for figure, ends in ((found.arms[0], found.arms[0].value_ci), (found.pairs[0], found.pairs[0].difference_ci)):
        assert ends is None and "one seed" in figure.caveat
    assert found.pairs[0].p is None and found.pairs[0].verdict == UNTOLD and found.detectable is None


def test_two_seeds_or_five_groups_show_no_difference_however_large():
    few = summarise(trial({"a": 0.0, "b": -1.0}, seeds=(0, 1)), ["a", "b"], PRIMARY).pairs[0]
    assert few.difference_ci[1] < 0 and few.verdict == UNTOLD and "2 seeds" in few.caveat
    short = summarise(trial({"a": 0.0, "b": -1.0}, groups=5), ["a", "b"], PRIMARY).pairs[0]
    assert short.difference_ci[1] < 0 and short.verdict == UNTOLD and "5 groups" in short.caveat


def test_arms_are_paired_by_the_seeds_that_both_have():
    runs = trial({"a": 0.0, "b": -0.02}, seeds=(0, 1, 2, 3))
    runs = [run for run in runs if (run.arm, run.seed) not in {("a", 0), ("b", 3)}]
    runs.append(ArmRun("c", 9, runs[0].figures))
    pairs = summarise(runs, ["a", "b", "c"], PRIMARY).pairs
    assert [(pair.a, pair.b, pair.seeds) for pair in pairs] == [("a", "b", (1, 2))]


def test_runs_are_paired_by_seed_and_not_by_the_order_of_the_runs():
    levels = {0: 1.0, 1: 5.0, 2: 9.0}
    runs = [ArmRun("a", seed, (bits([level] * 6),)) for seed, level in levels.items()]
    runs += [ArmRun("b", seed, (bits([levels[seed] + 0.1] * 6),)) for seed in (2, 0, 1)]
    (pair,) = summarise(runs, ["a", "b"], PRIMARY).pairs
    assert pair.difference_ci == pytest.approx((0.1, 0.1))


def test_runs_on_other_items_are_refused():
    runs = trial({"a": 0.0, "b": 0.0})
    runs[1] = ArmRun("a", 1, (bits([1.0] * 20, items="other"),))
    with pytest.raises(InputError, match="scored on different items"):
        summarise(runs, ["a", "b"], PRIMARY)


def test_a_primary_outcome_that_no_run_has_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'news bits_per_byte'"):
        summarise(trial({"a": 0.0}), ["a"], ("new", BITS_PER_BYTE))


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_an_accuracy_without_any_spread_still_has_an_interval(right):
    names = [str(n) for n in range(24)]
    figure = make_figure("recall-8", ACCURACY, "i", [right] * 24, [1] * 24, names, 0.125)
    runs = [ArmRun("a", seed, (figure,)) for seed in range(3)]
    (arm,) = summarise(runs, ["a"], ("recall-8", ACCURACY)).arms
    low, high = arm.value_ci
    assert 0 <= low < high <= 1 and high - low == pytest.approx(0.16, abs=0.02)


def test_a_mean_of_seconds_has_students_interval():
    mean, ends = seed_mean([10.0, 12.0, 14.0])
    assert mean == 12.0 and ends == pytest.approx((12 - 4.9683, 12 + 4.9683), abs=1e-3)  # 4.3027 * 2 / sqrt(3)
    assert seed_mean([10.0]) == (10.0, None)


def test_what_the_trial_could_detect_comes_from_its_own_pairs():
    effects = {"a": 0.0, "b": -0.02, "c": 0.0}
    found = summarise(trial(effects), list(effects), PRIMARY).detectable
    assert (found.num_pairs, found.num_seeds, found.num_groups, found.assumed) == (3, 3, 20, False)
    assert 0 < found.difference < 0.02
