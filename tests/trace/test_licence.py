"""Freezing deep is licensed where every setting supports it, refused where every one contradicts it, else open."""

from dataclasses import replace

import numpy as np
import pytest

from hybridizer.trace.licence import ALL, GIVEN, INNER, find_blind, judge, score_settings
from hybridizer.trace.readings import Readings
from support.trace_records import SETTINGS, setting


def judged(*rows, b=1, found_by=GIVEN):
    return judge(rows, b, found_by)


@pytest.mark.parametrize(
    ("scores", "verdict"),
    [
        ((0.03, 0.05), "licensed"),
        ((-0.03, -0.05), "refused"),
        ((0.03, -0.05), "not decided"),
        ((0.03, 0.005), "not decided"),
        ((-0.03, 0.005), "not decided"),
        ((0.005, 0.005), "not decided"),
    ],
)
def test_the_verdict_needs_every_setting(scores, verdict):
    rows = [setting(mask, [s], 0.01) for mask, s in zip("_t", scores, strict=True)]
    assert judged(*rows).verdict == verdict


def test_the_sentence_names_the_settings_that_disagree_with_their_numbers():
    found = judged(setting("_", [0.03], 0.01), setting(" the", [-0.05], 0.01, template="{} means"))
    assert found.sentence == (
        "Freezing from layer 1 on is not decided: S(1) is above 0 under 1, below 0 under 1 of 2 settings "
        "(95% intervals); against it are -0.050 (-0.060 to -0.040) with mask ' the', plain lens, template '{} means'."
    )


def test_the_sentence_names_three_settings_at_most_the_lowest_first():
    rows = [setting(str(index), [-0.02 * index], 0.01) for index in range(6)]
    sentence = judged(*rows).sentence
    assert sentence.count("with mask") == 3 and sentence.index("'5'") < sentence.index("'4'") < sentence.index("'3'")


def test_a_searched_boundary_is_judged_by_its_wider_interval():
    rows = [setting(mask, [0.03], 0.01, searched=4.0) for mask in "_t"]
    assert judged(*rows).verdict == "licensed"
    for found_by in (INNER, ALL):
        found = judged(*rows, found_by=found_by)
        assert found.verdict == "not decided" and "corrected for the search" in found.sentence


def test_one_mask_token_decides_nothing():
    assert "one mask token, and two are needed" in judged(setting("_", [0.03], 0.01)).sentence
    assert "no context perturbation" in judged().sentence


def test_a_lens_that_reads_no_layer_of_a_side_is_left_out_and_named():
    blind = [setting(mask, [None], 0.01, blind=[0]) for mask in "_t"]
    found = judged(*blind)
    assert found.verdict == "not decided"
    assert "the plain lens explains under 10% at layers 0 and is left out" in found.sentence
    tuned = [setting(mask, [0.03], 0.01, lens="tuned") for mask in "_t"]
    assert judged(*blind, *tuned).verdict == "licensed"
    assert "plain lens explains under 10% at layers 0" in judged(*blind, *tuned).sentence


def made_readings(steps, n=120, seed=0, noise=0.02, explained=None, shift=0.0):
    """Readings whose JS climbs by `steps`; `explained` is what the lens explains at each layer."""
    generator = np.random.default_rng(seed)
    clean = np.concatenate([[0.1], 0.1 + np.cumsum(steps)])
    js, again = (clean + generator.normal(0, noise, (n, len(clean))) for _ in range(2))
    again[:, -1] += shift
    explained = np.ones(len(clean)) if explained is None else np.array([0.0, *explained])
    each = np.ones(n)
    return Readings(js * 0, js, None, np.tile(1 - explained, (n, 1)), each, each, each, js_second=again)


NO_TEMPLATES = [None] * 120
STEPS = [0.2, 0.1, 0.01, 0.01]


def test_a_trace_is_scored_under_each_mask_and_each_template_with_enough_prompts():
    few = [*["a", "b"] * 50, *["c"] * 20]
    rows = score_settings(made_readings(STEPS), SETTINGS, few)
    assert [(row.mask, row.template, row.n) for row in rows] == [
        ("_", None, 120), (" the", None, 120), ("_", "a", 50), (" the", "a", 50), ("_", "b", 50), (" the", "b", 50),
    ]  # fmt: skip
    assert len(score_settings(made_readings(STEPS), SETTINGS, ["a"] * 120)) == 2
    for row in rows:
        assert row.s == pytest.approx([0.16, 0.14, 0.093], abs=0.02)
        assert row.critical < row.critical_inner <= row.critical_all and row.critical < 2.03


def test_clusters_are_counted_and_widen_the_errors_of_equal_prompts():
    readings = made_readings(STEPS, n=60)
    twice = Readings(
        **{name: None if array is None else np.repeat(array, 2, axis=0) for name, array in vars(readings).items()}
    )
    pairs = replace(twice, clusters=np.repeat(np.arange(60), 2))
    apart, paired = (score_settings(found, SETTINGS, NO_TEMPLATES)[0] for found in (twice, pairs))
    assert (apart.num_clusters, paired.num_clusters) == (120, 60)
    assert np.array(paired.s_error) / np.array(apart.s_error) == pytest.approx(np.full(3, 2**0.5), abs=0.15)


def test_layers_that_the_lens_cannot_read_are_not_counted():
    readings = made_readings([0.5, 0.1, 0.01, 0.01], explained=[0.05, 0.5, 0.8, 1.0])
    rows = score_settings(readings, SETTINGS, NO_TEMPLATES)
    assert rows[0].blind_layers == (0,)
    assert rows[0].s[0] is None and rows[0].s_error[0] is None
    assert rows[0].s[1] == pytest.approx(0.09, abs=0.02)  # without layer 0, which alone would give 0.29
    assert find_blind(readings.kl * 0, readings.kl_uniform * 0).all()  # uniform answers explain nothing


def test_the_tuned_lens_is_a_setting_of_its_own():
    plain = made_readings(STEPS)
    both = replace(plain, tuned_js=plain.js, tuned_js_second=plain.js_second, tuned_kl=plain.kl)
    rows = score_settings(both, SETTINGS, NO_TEMPLATES)
    assert [(row.lens, row.mask) for row in rows] == [
        ("plain", "_"), ("plain", " the"), ("tuned", "_"), ("tuned", " the"),
    ]  # fmt: skip


def test_without_a_context_perturbation_or_a_second_layer_there_is_nothing_to_judge():
    readings = made_readings(STEPS)
    assert score_settings(replace(readings, js=None, js_second=None), SETTINGS, NO_TEMPLATES) == ()
    assert score_settings(made_readings([0.1]), SETTINGS, NO_TEMPLATES) == ()
    assert len({row.mask for row in score_settings(replace(readings, js_second=None), SETTINGS, NO_TEMPLATES)}) == 1
