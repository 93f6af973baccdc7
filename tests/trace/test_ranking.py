"""The ranking's formula by hand, what it makes of models that cheat, and what it says when it does not know."""

import json
from dataclasses import replace

import numpy as np
import pytest

from hybridizer.core.errors import InputError
from hybridizer.trace.probes import Probe, ProbeSet
from hybridizer.trace.ranking import Candidate, above_chance, rank, rank_donors, region_stability
from hybridizer.trace.readings import Readings
from hybridizer.trace.record import TraceRun
from support.trace_records import record

N = 40
TARGETS = [f"word{i % 20}" for i in range(N)]  # chance 1/20
HALF = range(2, 4)


def readings(js, hit, answer_prob):
    """Readings of which ranking looks at three."""
    return Readings(np.zeros_like(js), js, None, np.zeros_like(js), np.zeros(len(js)), hit, answer_prob)


def rising(slope, n=N, num_layers=4):
    """JS of layer l = slope * l for every prompt: dJS = slope everywhere."""
    return np.tile(slope * np.arange(num_layers + 1.0), (n, 1))


def candidate(donor, *, slope=0.1, hits=N // 2, prob=0.4, layers=HALF, n=N):
    hit = np.zeros(n)
    hit[:hits] = 1
    return Candidate(donor, readings(rising(slope, n), hit, np.full(n, prob)), layers)


def by_name(ranking):
    return {donor.donor: donor for donor in ranking.ranking}


def test_the_score_is_stability_times_competence_above_chance():
    """Accuracy 0.5 and probability 0.4 above a chance of 0.05: (0.45 + 0.35) / 2 / 0.95; dJS 0.1 in the region."""
    ranking = rank_donors([candidate("alpha")], TARGETS)
    only = ranking.ranking[0]
    assert ranking.chance == 0.05
    assert only.stability == pytest.approx(0.9)
    assert only.competence == pytest.approx(0.4 / 0.95)
    assert only.score == pytest.approx(0.9 * 0.4 / 0.95)
    assert (only.accuracy, only.target_prob) == (0.5, pytest.approx(0.4))
    assert (only.first_layer, only.last_layer, only.tied_with) == (2, 3, ())


def test_stability_is_that_of_the_region_and_of_nothing_else():
    js = np.tile([0.0, 0.5, 0.1, 0.1, 0.3], (N, 1))  # dJS 0.5, 0.4, 0.0, 0.2
    weights = np.full((1, N), 1 / N)
    assert [region_stability(js, layers, weights)[0] for layers in (range(0, 2), range(2, 4), range(0, 4))] == [
        pytest.approx(0.55), pytest.approx(0.9), pytest.approx(0.725),
    ]  # fmt: skip


def test_sensitivity_is_the_change_of_the_mean_not_the_mean_change():
    """Half the prompts go up by 0.2 and half go down: the layer as such moves nothing."""
    js = np.zeros((2, 2))
    js[:, 0], js[:, 1] = 0.4, (0.6, 0.2)
    assert region_stability(js, range(0, 1), np.full((1, 2), 0.5))[0] == 1


def test_the_interval_of_stability_holds_the_estimate_where_noise_is_all_there_is():
    js = np.random.default_rng(0).uniform(0, 1, (50, 3))
    js[:, 1:] += js[:, :1].mean() - js[:, 1:].mean(axis=0)  # every layer has the same mean: dJS = 0
    candidates = [Candidate("alpha", readings(js, np.ones(50), np.ones(50)), range(0, 2))]
    only = rank_donors(candidates, [f"w{i}" for i in range(50)]).ranking[0]
    assert only.stability == pytest.approx(1)
    low, high = only.stability_ci
    assert low <= only.stability <= high + 1e-12
    assert low < 0.99


@pytest.mark.parametrize(("share", "value"), [(0.0, 0), (0.2, 0), (0.6, 0.5), (1.0, 1)])
def test_above_chance_starts_at_chance_and_ends_at_one(share, value):
    assert above_chance(np.asarray(share), 0.2) == pytest.approx(value)


def test_perfect_stability_buys_no_competence():
    """A model that never reads its input is right as often as the commonest target comes up: here 2 in 40."""
    constant = candidate("constant", slope=0.0, hits=2, prob=0.05)
    random = candidate("random", slope=0.001, hits=0, prob=0.001)
    ranking = rank_donors([constant, random, candidate("shaky", slope=0.2, hits=12, prob=0.2)], TARGETS)
    ranked = by_name(ranking)
    assert ranking.ranking[0].donor == "shaky"
    assert (ranked["constant"].stability, ranked["constant"].score, ranked["random"].score) == (1, 0, 0)
    assert ranked["shaky"].tied_with == ()
    assert ranked["constant"].tied_with == ("random",)


def test_among_equally_competent_donors_the_stable_one_is_first():
    ranking = rank_donors([candidate("shaky", slope=0.15), candidate("stable", slope=0.01)], TARGETS)
    assert [donor.donor for donor in ranking.ranking] == ["stable", "shaky"]


def test_donors_whose_intervals_overlap_are_tied_and_others_are_not():
    ranked = by_name(rank_donors([candidate("a", hits=30), candidate("b", hits=32), candidate("c", hits=3)], TARGETS))
    assert (ranked["a"].tied_with, ranked["b"].tied_with, ranked["c"].tied_with) == (("b",), ("a",), ())
    assert ranked["c"].score_ci[1] < ranked["a"].score_ci[0] <= ranked["b"].score_ci[1]


def test_competence_counts_only_prompts_that_every_donor_can_answer():
    """Donor b's tokenizer splits the targets of the last ten prompts; being right on those is worth nothing."""
    hit, prob = np.zeros(N), np.full(N, 0.5)
    hit[-10:] = 1
    a = Candidate("a", readings(rising(0.1), hit, prob), HALF)
    hit_b, prob_b = np.zeros(N), np.full(N, 0.5)
    hit_b[-10:] = prob_b[-10:] = np.nan
    b = Candidate("b", readings(rising(0.1), hit_b, prob_b), HALF)
    ranking = rank_donors([a, b], TARGETS)
    assert (ranking.n, ranking.answered_n) == (40, 30)
    assert [donor.accuracy for donor in ranking.ranking] == [0, 0]


def test_prompts_without_a_target_count_for_stability_only():
    targets = [*TARGETS[:20], *[None] * 20]
    hit, prob = np.zeros(N), np.zeros(N)
    hit[20:] = prob[20:] = np.nan
    hit[:10] = 1
    ranking = rank_donors([Candidate("a", readings(rising(0.1), hit, prob), HALF)], targets)
    assert (ranking.n, ranking.answered_n) == (40, 20)
    low, high = ranking.ranking[0].accuracy_ci
    assert (low, high) == (pytest.approx(0.28, abs=0.04), pytest.approx(0.72, abs=0.04))


def test_intervals_narrow_with_the_number_of_prompts():
    def width(n):
        low, high = rank_donors([candidate("a", n=n, hits=n // 2)], [f"w{i}" for i in range(n)]).ranking[0].score_ci
        return high - low

    assert width(640) < 0.35 * width(40)


def test_the_interval_of_accuracy_is_the_bootstraps():
    """Twenty right of forty: the binomial's standard error is 0.079, so the interval is about 0.35 to 0.65."""
    low, high = rank_donors([candidate("a")], TARGETS).ranking[0].accuracy_ci
    assert (low, high) == (pytest.approx(0.345, abs=0.02), pytest.approx(0.655, abs=0.02))


def test_the_same_seed_gives_the_same_ranking_and_the_order_of_donors_is_no_matter():
    donors = [candidate("b", hits=30), candidate("a", hits=30), candidate("c", hits=10)]
    ranking = rank_donors(donors, TARGETS, seed=3)
    assert rank_donors(donors[::-1], TARGETS, seed=3) == ranking
    assert [donor.donor for donor in ranking.ranking] == ["a", "b", "c"]
    assert rank_donors(donors, TARGETS, seed=4).ranking[0].score_ci != ranking.ranking[0].score_ci


def test_the_json_is_the_contract():
    ranking = rank_donors([candidate("a"), candidate("b", hits=3)], TARGETS, num_resamples=50).to_json()
    assert json.loads(json.dumps(ranking, allow_nan=False)) == ranking
    assert next(iter(ranking.items())) == ("schema", "hybridizer.ranking/2")
    first = ranking["ranking"][0]
    assert first["donor"] == "a" and first["tied_with"] == []
    for name in ("score", "stability", "competence", "accuracy", "target_prob"):
        low, high = first[f"{name}_ci"]
        assert 0 <= low <= first[name] <= high <= 1


@pytest.mark.parametrize(
    ("donors", "words"),
    [
        ([], "no donor is given"),
        ([candidate("a"), candidate("a")], "'a' is named 2 times"),
        ([candidate("a", n=39)], "'a' was traced on 39 prompts, and there are 40 probes"),
        ([candidate("a", layers=range(3, 5))], "which has layers 0..3"),
        ([candidate("a", layers=range(-1, 2))], "which has layers 0..3"),
        ([candidate("a", layers=range(2, 2))], "which has layers 0..3"),
    ],
)
def test_what_cannot_be_ranked_is_refused(donors, words):
    with pytest.raises(InputError) as caught:
        rank_donors(donors, TARGETS)
    assert words in str(caught.value)


def test_all_problems_come_at_once():
    with pytest.raises(InputError) as caught:
        rank_donors([candidate("a", n=3), candidate("a", layers=range(9, 10))], TARGETS)
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(("targets", "words"), [([None] * N, "no probe has a target"), (["x"] * N, "the same target")])
def test_probes_that_cannot_show_competence_are_refused(targets, words):
    with pytest.raises(InputError, match=words):
        rank_donors([candidate("a")], targets)


def traced(name, delta_js, per_prompt=True):
    js = np.tile(np.cumsum([0.1, *delta_js]), (N, 1))
    seen = readings(js, np.arange(N) % 2.0, np.full(N, 0.4))
    return TraceRun(name, record(delta_js), seen if per_prompt else replace(seen, js=None, layer_js=js))


def test_a_share_counts_in_every_donor_by_itself_and_the_deep_side_is_ranked():
    """The deep halves, layers 3..5 and 2..3, have dJS of 0.02 and 0.1."""
    probes = ProbeSet("p", "0" * 64, tuple(Probe(f"{i}", target) for i, target in enumerate(TARGETS)))
    runs = [traced("six", [0.3, 0.2, 0.1, 0.02, 0.02, 0.02]), traced("four", [0.3, 0.2, 0.1, 0.1])]
    ranking = rank(runs, probes, 0.5, seed=0)
    found = {donor.donor: (donor.first_layer, donor.last_layer, donor.stability) for donor in ranking.ranking}
    assert found == {"six": (3, 5, pytest.approx(0.98)), "four": (2, 3, pytest.approx(0.9))}
    assert {name: boundary.layer for name, boundary in ranking.boundaries.items()} == {"six": 3, "four": 2}
    assert ranking.to_json()["boundaries"]["four"]["strategy"] == "share"


def test_a_trace_without_the_context_perturbation_is_not_ranked():
    with pytest.raises(InputError, match="trace of 'x': this trace has the layer perturbation alone"):
        rank([traced("x", [0.2, 0.1], per_prompt=False)], ProbeSet("p", "", ()), 1, seed=0)
