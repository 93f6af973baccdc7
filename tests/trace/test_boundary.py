"""Each strategy puts the boundary where its definition says, and every boundary is warned of where S(b) is in doubt."""

from dataclasses import replace

import pytest

from hybridizer.core.errors import InputError
from hybridizer.recipe.fields import read_boundary
from hybridizer.trace.boundary import STRATEGIES, choose_boundary, follow_boundary
from support.trace_records import record, setting

FRONT = [0.30, 0.20, 0.10, 0.02, 0.02, 0.01]  # the shallow side is the sensitive one
BACK = FRONT[::-1]


@pytest.mark.parametrize(
    ("num_layers", "layer"), [(2, 1), (3, 2), (6, 3), (7, 4), (28, 14), (30, 15)]
)  # 28 layers at 14: the split of arXiv 2605.11416
def test_the_midpoint_halves_the_layers(num_layers, layer):
    assert choose_boundary("midpoint", record([0.1] * num_layers)).layer == layer


@pytest.mark.parametrize(("asked", "layer"), [(0.33, 10), (0.5, 15), (0.66, 20), (0.001, 1), (0.999, 29)])
def test_a_share_of_the_depth_is_rounded_and_leaves_no_side_empty(asked, layer):
    chosen = choose_boundary(asked, record([0.1] * 30))
    assert (chosen.layer, chosen.strategy) == (layer, "share")


@pytest.mark.parametrize("asked", [0.0, 1.0, -0.2, 1.5, float("nan")])
def test_a_share_outside_the_depth_is_refused(asked):
    with pytest.raises(InputError, match="not a share of the depth between 0 and 1"):
        choose_boundary(asked, record(FRONT))


def test_a_layer_is_taken_as_it_is():
    assert choose_boundary(5, record(FRONT)).layer == 5


@pytest.mark.parametrize("asked", [0, 6, -1, 99])
def test_a_layer_that_leaves_a_side_empty_is_refused_with_the_range(asked):
    with pytest.raises(InputError, match=r"alpha empty: it has 6 layers\.\n  Give a layer inside 1\.\.5\."):
        choose_boundary(asked, record(FRONT))


def test_s_maximal_is_where_s_is_largest():
    scores = [row.s for row in record(FRONT).boundary]
    assert choose_boundary("s-maximal", record(FRONT)).layer == scores.index(max(scores)) + 1 == 1


@pytest.mark.parametrize(("strategy", "plain", "debiased"), [("s-maximal", 1, 4), ("knee", 2, 4)])
def test_a_search_goes_by_the_debiased_score_which_the_licence_is_judged_by(strategy, plain, debiased):
    same = record(FRONT)
    assert choose_boundary(strategy, same).layer == plain
    rows = tuple(replace(row, s_debiased=row.s if row.b == debiased else 0.0) for row in same.boundary)
    assert choose_boundary(strategy, replace(same, boundary=rows)).layer == debiased


def test_equal_scores_go_to_the_shallowest_boundary():
    assert choose_boundary("s-maximal", record([0.125] * 5, half_width=None)).layer == 1
    assert choose_boundary("knee", record([0.25] * 4)).layer == 1


def test_the_knee_is_where_the_climb_of_the_sensitivity_slows():
    """C = 0.46, 0.77, 0.92, ...: above the steady climb by 0.29, 0.44, 0.42, 0.29, 0.15."""
    assert choose_boundary("knee", record(FRONT)).layer == 2


def test_one_spike_in_front_draws_s_to_the_end_but_not_the_knee():
    spiky = [0.2, 0.1, 0.1, 0.1, 0.0, 0.0, 0.0, 0.0]
    assert choose_boundary("s-maximal", record(spiky)).layer == 1
    assert choose_boundary("knee", record(spiky)).layer == 4


def test_the_knee_is_s_weighted_by_the_layers_on_both_sides():
    """C(b) - b/L is S(b) times b (L - b) over L times the total: the identity behind the docstring."""
    scores = [row.s for row in record(FRONT).boundary]
    weighted = [s * b * (6 - b) for b, s in enumerate(scores, start=1)]
    assert choose_boundary("knee", record(FRONT)).layer == weighted.index(max(weighted)) + 1


@pytest.mark.parametrize(("particle", "layer"), [(0, 1), (1, 1), (3, 3), (3.5, 4), (5, 5)])
def test_the_task_particle_stays_on_the_deep_side(particle, layer):
    assert choose_boundary("task-particle", record(FRONT, particle=particle)).layer == layer


def test_without_a_task_particle_that_strategy_is_refused():
    with pytest.raises(InputError, match="no prompt has a task particle in the trace of alpha"):
        choose_boundary("task-particle", record(FRONT))


def test_a_donor_without_sensitivity_has_no_knee():
    with pytest.raises(InputError, match="check that this donor reads its input"):
        choose_boundary("knee", record([0.0] * 4))


def test_auto_takes_the_licensed_boundary_whose_least_interval_is_highest():
    chosen = choose_boundary("auto", record(FRONT))
    assert (chosen.layer, chosen.strategy, chosen.warning) == (2, "auto", None)
    assert chosen.licence.verdict == "licensed"
    assert chosen.reason == (
        "Of boundaries 2 to 4, 2..4 are licensed, and S(2) is at least +0.202 under every setting; "
        "S(2) = +0.212 (95% interval +0.202 to +0.223); no trace was found to predict what training gains (`hybridize "
        "trial` measures it)."
    )


def test_auto_passes_over_a_boundary_that_one_setting_does_not_support():
    sure = record(FRONT)
    scores = [row.s for row in sure.boundary]
    doubtful = setting("x", [-0.1 if b == 2 else s for b, s in enumerate(scores, start=1)], 0.01, template="X means")
    chosen = choose_boundary("auto", replace(sure, licence_settings=(*sure.licence_settings, doubtful)))
    assert (chosen.layer, chosen.warning) == (3, None)
    assert "3..4 are licensed" in chosen.reason


def test_a_boundary_found_in_another_donor_is_judged_as_found_by_its_search():
    base = record(FRONT, half_width=0.1)
    rows = tuple(setting(row.mask, row.s, 0.1, searched=3.0) for row in base.licence_settings)
    wide = replace(base, licence_settings=rows)
    found = follow_boundary(choose_boundary("knee", base), "host", 2, wide)
    assert (found.layer, found.strategy) == (2, "knee") and found.licence.verdict == "not decided"
    assert "corrected for the search" in found.warning and choose_boundary(2, wide).warning is None


def test_a_boundary_that_was_searched_for_needs_wider_intervals_than_one_that_was_given():
    base = record(FRONT, half_width=0.1)  # S(2) = 0.213
    rows = tuple(setting(row.mask, row.s, 0.1, searched=3.0) for row in base.licence_settings)
    wide = replace(base, licence_settings=rows)
    assert choose_boundary(2, wide).warning is None
    assert "is not decided" in choose_boundary("knee", wide).warning
    assert choose_boundary("auto", wide).reason.startswith("None of boundaries 2 to 4 is licensed, so the midpoint")


@pytest.mark.parametrize(("num_layers", "first", "last"), [(2, 1, 1), (3, 1, 2), (4, 1, 3), (5, 2, 3), (30, 8, 22)])
def test_auto_leaves_a_quarter_of_the_layers_on_either_side(num_layers, first, last):
    """All the sensitivity in the first layer draws it to one end of the range, a still last layer to the other."""
    spike = [1.0, *[0.0] * (num_layers - 1)]
    still = [*[0.1] * (num_layers - 1), 0.0]
    assert choose_boundary("auto", record(spike, half_width=0.0001)).layer == first
    assert choose_boundary("auto", record(still, half_width=0.0001)).layer == last


@pytest.mark.parametrize("delta_js", [BACK, [0.0] * 6])
def test_auto_falls_back_to_the_midpoint_and_warns(delta_js):
    chosen = choose_boundary("auto", record(delta_js))
    assert chosen.layer == 3
    assert chosen.reason.startswith("None of boundaries 2 to 4 is licensed, so the midpoint; S(3) = ")
    assert chosen.warning.startswith("alpha: Freezing from layer 3 on is ")


@pytest.mark.parametrize("asked", [*sorted(STRATEGIES), 0.5, 3])
def test_a_negative_score_is_warned_of_with_the_number_and_the_recipe_is_obeyed(asked):
    chosen = choose_boundary(asked, record(BACK, particle=4))
    s = record(BACK).boundary[chosen.layer - 1].s
    assert chosen.licence.verdict == "refused"
    assert f"is refused: S({chosen.layer}) is below 0 under 2 of 2 settings" in chosen.warning
    assert f"{s:+.3f} ({s - 0.01:+.3f} to {s + 0.01:+.3f}) with mask '_', plain lens, all prompts" in chosen.warning


def test_an_interval_that_contains_zero_is_warned_of():
    assert choose_boundary(3, record(FRONT, half_width=0.183)).warning is None  # S(3) = 0.1833...
    assert (
        "is not decided: S(3) is not distinguished from 0"
        in choose_boundary(3, record(FRONT, half_width=0.184)).warning
    )


def test_a_score_of_zero_is_not_licensed():
    assert choose_boundary(2, record([0.125] * 4)).licence.verdict == "not decided"


def test_one_prompt_is_not_enough():
    chosen = choose_boundary("midpoint", record(FRONT, half_width=None))
    assert chosen.licence.verdict == "not decided" and "+0.183 (no interval)" in chosen.warning


def test_a_reason_is_one_sentence():
    for name in STRATEGIES:
        reason = choose_boundary(name, record(FRONT, particle=3)).reason
        assert reason.endswith(").") and ". " not in reason


def test_an_unknown_strategy_is_answered_with_the_near_name():
    with pytest.raises(InputError, match=r"no strategy 'midpiont'\.\n  Did you mean 'midpoint'\?"):
        choose_boundary("midpiont", record(FRONT))


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_leaves_layers_on_both_sides_gives_its_name_and_a_recipe_knows_it(name):
    for delta_js in (FRONT, BACK, [0.3, 0.1], [0.1] * 31):
        chosen = choose_boundary(name, record(delta_js, particle=len(delta_js) - 1))
        assert 1 <= chosen.layer < len(delta_js) and chosen.strategy == name
    assert read_boundary(name) == name


def test_a_donor_of_one_layer_cannot_be_split():
    with pytest.raises(InputError, match="alpha has a single layer"):
        choose_boundary("midpoint", record([0.1]))


def test_a_warning_names_the_boundaries_that_are_licensed():
    steps = [0.0, 0.4, 0.4, 0.4, 0.0, 0.0, 0.0, 0.0]
    assert choose_boundary(1, record(steps)).warning.endswith("Licensed are boundaries 2..6.")


def test_where_no_boundary_is_licensed_the_warning_says_so():
    assert choose_boundary(2, record([0.1, 0.2, 0.3, 0.4])).warning.endswith("No boundary is licensed.")
