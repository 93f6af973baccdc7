"""Whether the deep side kept its profile: known changes are found, impostors are found out, noise decides nothing."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from hybridizer.core.errors import InputError
from hybridizer.models.parts import find_parts
from hybridizer.recipe.models import Trace
from hybridizer.trace.probes import Probe, ProbeSet
from hybridizer.trace.profile import compare_profiles
from hybridizer.trace.readings import Readings
from hybridizer.trace.record import TraceRun
from hybridizer.trace.tracer import trace_model
from support.trace_records import record
from support.traced_donors import load_tiny, spread, traced

DEEP = np.array([0.02, 0.10, 0.01, 0.06, 0.12, 0.03])
SHALLOW = np.array([0.08, 0.02, 0.05, 0.09])


def trace_of(steps, n=100, noise=0.0, seed=0):
    """A trace whose dJS is `steps`; prompts differ by what is the same for any seed, and by `noise` which is not."""
    depth = len(steps)
    shared = np.random.default_rng(99).normal(0, 0.02, (n, depth + 1))
    own = np.random.default_rng(seed).normal(0, noise, (n, depth + 1)) if noise else 0
    js = np.cumsum([0.1, *steps])[None] + shared - shared.mean(axis=0) + own
    prob = np.tile(np.linspace(0, 0.5, depth + 1), (n, 1))
    none = np.full(n, np.nan)
    return TraceRun("tiny", record(steps), Readings(prob, js, None, js, none, none, none))


def both(deep, shallow=SHALLOW, **kwargs):
    before = trace_of([*SHALLOW, *DEEP])
    return compare_profiles(before, trace_of([*shallow, *deep], **kwargs), len(SHALLOW))


def test_identical_traces_are_kept_with_a_change_of_exactly_zero():
    found = both(DEEP)
    assert found.verdict == "kept"
    for side in (found.shallow, found.deep):
        assert (side.delta_js_moved, side.delta_js_moved_ci) == (0, (0, 0))
        assert (side.target_prob_moved, side.target_prob_moved_ci) == (0, (0, 0))
        assert side.correlation == pytest.approx(1) and side.correlation_ci == pytest.approx((1, 1))
    assert (found.s_change, found.s_change_ci) == (0, (0, 0))
    assert all(layer.js_change == layer.delta_js_change == layer.target_prob_change == 0 for layer in found.layers)


def test_known_changes_come_back_as_figures():
    found = both(DEEP + np.array([0.01, -0.02, 0, 0, 0, 0.03]), SHALLOW + 0.02)
    assert found.deep.delta_js_moved == pytest.approx(0.01) and found.shallow.delta_js_moved == pytest.approx(0.02)
    assert [layer.delta_js_change for layer in found.layers] == pytest.approx(
        [0.02, 0.02, 0.02, 0.02, 0.01, -0.02, 0, 0, 0, 0.03]
    )
    assert found.deep.delta_js_spread == pytest.approx(np.abs(DEEP - DEEP.mean()).mean())
    scores = found.s_before, found.s_after, found.s_change
    before, change = SHALLOW.mean() - DEEP.mean(), 0.02 - 0.02 / 6
    assert scores == pytest.approx((before, before + change, change), abs=2e-4)  # debiased: dJS is 4 errors or more
    assert found.layers[3].js_change == pytest.approx(0.08)  # dJS are summed up
    assert (found.deep.first_layer, found.deep.last_layer, found.shallow.last_layer) == (4, 9, 3)


def test_the_scores_are_the_debiased_ones_of_the_traces_which_noise_does_not_draw_to_one_side():
    """Deep layers that are still look active by their noise alone: the plain S(4) would be 0.01 too low."""
    steps, truth = [*SHALLOW, *[0.0] * 6], SHALLOW.mean()
    found = [
        compare_profiles(trace_of(steps, noise=0.1, seed=seed), trace_of(steps, noise=0.1, seed=seed + 50), 4)
        for seed in range(1, 21)
    ]
    assert np.mean([change.s_before for change in found]) == pytest.approx(truth, abs=0.006)
    assert np.mean([change.s_after for change in found]) == pytest.approx(truth, abs=0.006)
    held = [change.s_change_ci[0] <= 0 <= change.s_change_ci[1] for change in found]
    assert sum(held) >= 17  # 19 expected, less two standard errors


def test_a_small_change_keeps_the_profile_and_the_sentence_says_by_how_much():
    found = both(DEEP + 0.005)
    assert found.verdict == "kept" and found.deep.correlation == pytest.approx(1)
    assert found.sentence.startswith("The deep side kept its profile: dJS of layers 4..9 moved by 0.0050 bits")
    assert "14% of the 0.0367 bits" in found.sentence


def test_shuffled_deep_layers_do_not_keep_the_profile_whatever_the_shallow_ones_do():
    for shallow in (SHALLOW, SHALLOW[::-1]):
        found = both(np.roll(DEEP, 1), shallow)
        assert found.verdict == "not kept" and found.sentence.startswith("The deep side did not keep its profile: ")
    assert both(DEEP, SHALLOW[::-1] + 0.3).verdict == "kept"


def test_the_same_layers_much_stronger_or_flat_do_not_keep_it():
    assert both(2 * DEEP).verdict == "not kept" and both(2 * DEEP).deep.correlation == pytest.approx(1)
    assert both(np.full(6, DEEP.mean())).verdict == "not kept"


def test_what_the_prompts_cannot_decide_is_left_open():
    change = 0.5 * np.abs(DEEP - DEEP.mean()).mean()
    found = both(DEEP + change, noise=0.03)
    low, high = found.deep.delta_js_moved_ci
    assert low < change < high and found.verdict == "undecided"
    assert found.sentence.startswith("Whether the deep side kept its profile is undecided: ")


def test_noise_of_the_prompts_alone_is_no_lost_profile():
    found = [both(DEEP, noise=0.05, seed=seed) for seed in range(1, 21)]
    assert "not kept" not in [change.verdict for change in found]
    middles = [sum(change.deep.delta_js_moved_ci) / 2 / change.deep.delta_js_moved for change in found]
    assert np.mean(middles) < 1.2  # samples are skewed to the right; unshifted ones would lie at 1.57


@pytest.mark.slow
def test_a_real_change_is_covered_by_its_interval():
    changed = DEEP + np.array([0.02, 0.02, -0.005, 0.02, -0.02, 0.02])
    covered = 0
    for seed in range(1, 101):
        low, high = both(changed, noise=0.02, seed=seed).deep.delta_js_moved_ci
        covered += low <= 0.105 / 6 <= high
    assert covered >= 88  # 95 less three standard errors


def test_one_deep_layer_or_one_prompt_decide_nothing():
    before = trace_of([0.1, 0.2, 0.3])
    found = compare_profiles(before, trace_of([0.1, 0.2, 0.4]), 2)
    assert found.verdict == "undecided" and found.deep.correlation is None
    assert "dJS of layer 2 moved by 0.1000" in found.sentence and "one layer alone has no profile" in found.sentence
    assert compare_profiles(before, before, 1).deep.correlation is None  # two layers always lie on a line
    one = compare_profiles(trace_of([*SHALLOW, *DEEP], n=1), trace_of([*SHALLOW, *np.roll(DEEP, 1)], n=1), 4)
    assert one.verdict == "undecided" and one.deep.delta_js_moved_ci is None and one.s_change_ci is None


def test_the_change_of_the_answers_probability_is_paired_too():
    before, after = trace_of([*SHALLOW, *DEEP]), trace_of([*SHALLOW, *DEEP])
    noise = np.random.default_rng(0).normal(0, 0.2, before.readings.target_prob.shape)
    before.readings.target_prob[:] += noise
    after.readings.target_prob[:] += noise
    after.readings.target_prob[:, 5:] += 0.03
    found = compare_profiles(before, after, 4)
    assert found.deep.target_prob_moved == pytest.approx(0.03)
    assert found.deep.target_prob_moved_ci == pytest.approx((0.03, 0.03))
    assert found.shallow.target_prob_moved == pytest.approx(0)
    assert found.layers[4].target_prob_after - found.layers[4].target_prob_before == pytest.approx(0.03)


def test_traces_of_another_kind_are_refused_by_the_first_difference():
    before = trace_of([*SHALLOW, *DEEP])
    with pytest.raises(InputError, match=r"seed was 0 in the first and is 1 in the second"):
        compare_profiles(before, with_setting(before, "seed", 1), 4)
    with pytest.raises(InputError, match="layers was 10 in the first and is 4"):
        compare_profiles(before, trace_of(SHALLOW), 2)
    assert compare_profiles(before, with_setting(before, "tuned_lens", "other maps"), 4).verdict == "kept"


def with_setting(trace, name, value):
    settings = dataclasses.replace(trace.record.settings, **{name: value})
    return dataclasses.replace(trace, record=dataclasses.replace(trace.record, settings=settings))


def test_the_record_is_plain_json():
    profile = both(DEEP + 0.005).to_json()
    assert json.loads(json.dumps(profile)) == profile and profile["schema"] == "hybridizer.profile/2"
    assert [row["layer"] for row in profile["layers"]] == list(range(10))


@pytest.fixture(scope="module")
def donor(tmp_path_factory):
    model, tokenizer, parts = load_tiny("llama", tmp_path_factory.mktemp("donor"), num_hidden_layers=8)
    return spread(model, 3.0), tokenizer, parts


def trace(donor):
    model, tokenizer, parts = donor
    words = ["hot", "big", "up", "wet", "old", "day", "far", "good", "left", "rich", "long", "early"]
    probes = ProbeSet("p", "0" * 64, tuple(Probe(f"{a} is not {b} but ", None) for a in words for b in words if a != b))
    return trace_model(model, tokenizer, parts, probes, Trace(num_resamples=300), traced(parts))


@pytest.mark.slow
def test_a_model_traced_twice_keeps_its_profile_and_one_with_shuffled_deep_layers_does_not(donor):
    before = trace(donor)
    again = compare_profiles(before, trace(donor), 3)
    assert again.verdict == "kept" and again.deep.delta_js_moved == 0
    model, tokenizer, _ = donor
    layers = model.model.layers
    order = [*range(3), 6, 3, 7, 5, 4]
    model.model.layers = torch.nn.ModuleList(layers[i] for i in order)
    try:
        shuffled = trace((model, tokenizer, find_parts(model)))
    finally:
        model.model.layers = layers
    assert compare_profiles(before, shuffled, 3).verdict == "not kept"
