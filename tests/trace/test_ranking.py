"""The ranking's formula by hand, what it makes of models that cheat, and what it says when it does not know."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest

from hybridizer.core.bootstrap import proportion_interval
from hybridizer.core.errors import InputError
from hybridizer.trace.competence import (
    Halves,
    above_chance,
    accuracy_gap,
    count_leaks,
    describe_halves,
    is_at_chance,
    split_answered,
)
from hybridizer.trace.probes import Probe, ProbeSet, builtin_probes
from hybridizer.trace.ranking import MEASURES, Candidate, Graft, rank, rank_donors, region_stability
from hybridizer.trace.readings import Readings
from hybridizer.trace.record import TraceRun
from support.trace_records import record

N = 40
HALF = range(2, 4)
NAMES = {half: [name for name in map(str, range(3000)) if Probe(name).held_out == half] for half in (True, False)}


def asking(targets, held_out=True):
    """A probe for each target, all in one half, so that competence is measured on all of them."""
    return tuple(Probe(NAMES[held_out][i], target) for i, target in enumerate(targets))


TARGETS = asking([f"word{i % 20}" for i in range(N)])  # chance 1/20
CLUSTERS = [name for name in map(str, range(3000)) if Probe("", cluster=name).held_out]
PAIRED = tuple(replace(probe, cluster=CLUSTERS[i // 2]) for i, probe in enumerate(TARGETS))  # 20 pairs


def paired(one):
    """The same candidate, traced on PAIRED."""
    return replace(one, readings=replace(one.readings, clusters=np.arange(N) // 2))


def in_halves(n=80):
    """As many probes in each half, the selection half first, each with a target of its own."""
    targets = [f"word{i}" for i in range(n)]
    return (*asking(targets[: n // 2], held_out=False), *asking(targets[n // 2 :]))


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
    means = js[:1]
    assert [region_stability(js, layers, means)[0] for layers in (range(0, 2), range(2, 4), range(0, 4))] == [
        pytest.approx(0.55), pytest.approx(0.9), pytest.approx(0.725),
    ]  # fmt: skip


def test_sensitivity_is_the_change_of_the_mean_not_the_mean_change():
    """Half the prompts go up by 0.2 and half go down: the layer as such moves nothing."""
    js = np.zeros((2, 2))
    js[:, 0], js[:, 1] = 0.4, (0.6, 0.2)
    assert region_stability(js, range(0, 1), js.mean(axis=0, keepdims=True))[0] == 1


def test_the_interval_of_stability_holds_the_estimate_where_noise_is_all_there_is():
    js = np.random.default_rng(0).uniform(0, 1, (50, 3))
    js[:, 1:] += js[:, :1].mean() - js[:, 1:].mean(axis=0)  # every layer has the same mean: dJS = 0
    candidates = [Candidate("alpha", readings(js, np.ones(50), np.ones(50)), range(0, 2))]
    only = rank_donors(candidates, asking([f"w{i}" for i in range(50)])).ranking[0]
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


def test_donors_tie_where_the_paired_difference_may_be_nothing_not_where_their_own_intervals_overlap():
    """b answers two more prompts than a; d answers as many as a, but others; e is as certain as a on the same ones."""
    a, b = candidate("a", hits=30), candidate("b", hits=32)
    other = np.zeros(N)
    other[10:] = 1
    d = Candidate("d", readings(rising(0.1), other, np.full(N, 0.4)), HALF)
    e = candidate("e", hits=30, prob=0.42)
    ranked = by_name(rank_donors([a, b, d, e, candidate("c", hits=5)], TARGETS))
    assert ranked["d"].tied_with == ("b", "e", "a")
    assert "e" not in ranked["a"].tied_with  # more certain on every prompt: a difference without any spread
    assert ranked["e"].score_ci[0] < ranked["a"].score_ci[1]  # although their own intervals overlap
    assert ranked["c"].tied_with == ()


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
    targets = asking([*[probe.target for probe in TARGETS[:20]], *[None] * 20])
    hit, prob = np.zeros(N), np.zeros(N)
    hit[20:] = prob[20:] = np.nan
    hit[:10] = 1
    ranking = rank_donors([Candidate("a", readings(rising(0.1), hit, prob), HALF)], targets)
    assert (ranking.n, ranking.answered_n) == (40, 20)
    low, high = ranking.ranking[0].accuracy_ci
    assert (low, high) == (pytest.approx(0.299, abs=0.001), pytest.approx(0.701, abs=0.001))


def test_intervals_narrow_with_the_number_of_prompts():
    def width(n):
        low, high = (
            rank_donors([candidate("a", n=n, hits=n // 2)], asking([f"w{i}" for i in range(n)])).ranking[0].score_ci
        )
        return high - low

    assert width(640) < 0.35 * width(40)


def test_the_interval_of_accuracy_is_wilsons_with_clusters():
    hits = candidate("a").readings.hit
    assert rank_donors([candidate("a")], TARGETS).ranking[0].accuracy_ci == proportion_interval(hits)
    pairs = np.arange(N) // 2
    found = rank_donors([paired(candidate("a"))], PAIRED)
    assert found.ranking[0].accuracy_ci == proportion_interval(hits, pairs)
    assert found.ranking[0].accuracy_ci[0] < proportion_interval(hits)[0]
    assert (found.num_clusters, found.answered_clusters) == (20, 20)


def test_a_donor_that_answers_no_better_than_chance_is_not_competent_and_ranks_last():
    """Two of forty is what the commonest target gives; its score is higher, and it ranks below all the same."""
    lucky, sound = candidate("lucky", hits=3, slope=0.0), candidate("sound", hits=12, slope=0.6)
    ranking = rank_donors([lucky, sound], TARGETS, by="stability-competence")
    assert [(row.donor, row.competent) for row in ranking.ranking] == [("sound", True), ("lucky", False)]
    assert rank_donors([lucky, sound], TARGETS, by="stability").ranking[0].donor == "lucky"


def answering(name, *shares, n=80):
    """A candidate that answers so many of each half, the selection half first."""
    hit = np.concatenate([np.arange(n // 2) < count for count in shares]).astype(float)
    return Candidate(name, readings(rising(0.1, n), hit, np.full(n, 0.2)), HALF)


def test_competence_is_that_of_the_held_out_half_and_both_halves_are_reported():
    ranking = rank_donors([answering("a", 20, 16)], in_halves())
    only = ranking.ranking[0]
    assert (ranking.n, ranking.answered_n, ranking.selection_n, ranking.chance) == (80, 40, 40, 1 / 40)
    assert (only.accuracy, only.selection_accuracy, only.gap) == (0.4, 0.5, pytest.approx(0.1))
    assert only.accuracy_ci == proportion_interval(np.repeat([1.0, 0.0], [16, 24]))
    assert only.selection_accuracy_ci == proportion_interval(np.repeat([1.0, 0.0], [20, 20]))
    assert only.gap_ci[0] < 0 < only.gap_ci[1] and only.memorised is None and ranking.warnings == ()


@pytest.mark.parametrize(("shares", "half"), [((40, 0), "selection"), ((0, 40), "held-out"), ((30, 12), "selection")])
def test_a_donor_that_answers_one_half_better_beyond_doubt_may_have_memorised_it(shares, half):
    ranking = rank_donors([answering("sound", 20, 16), answering("cheat", *shares)], in_halves())
    assert by_name(ranking)["cheat"].memorised == half and by_name(ranking)["sound"].memorised is None
    (warning,) = ranking.warnings
    assert f"'cheat' may have memorised the {half} half of the probes" in warning


def test_a_memoriser_of_the_selection_half_ranks_below_what_it_would_outrank_on_it():
    ranking = rank_donors([answering("sound", 20, 16), answering("cheat", 40, 0)], in_halves())
    assert [(row.donor, row.competent) for row in ranking.ranking] == [("sound", True), ("cheat", False)]


def test_the_interval_between_halves_is_newcombes():
    """56 of 70 and 48 of 80: 0.0524 to 0.3339, table II (a) of Newcombe 1998."""
    hit = np.repeat([1.0, 0.0, 1.0, 0.0], [56, 14, 48, 32])
    selection = np.arange(150) < 70
    gap, band = accuracy_gap(hit, Halves(~selection, selection, None))
    assert gap == pytest.approx(0.2) and band == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_probes_too_few_to_be_halved_are_used_whole():
    probes, answered = in_halves(80), np.ones(80, bool)
    assert split_answered(probes, answered).selection.sum() == 40
    assert split_answered(probes, np.arange(80) % 3 == 0).selection is None  # 27 in all
    few = np.arange(80) < 49  # nine of them in the held-out half
    assert split_answered(probes, few).selection is None and split_answered(probes, few).measured.sum() == 49
    alike = (*probes[:40], *asking(["same"] * 40))
    assert split_answered(alike, np.ones(80, bool)).selection is None
    probe_set = ProbeSet("mine", "", TARGETS)
    assert list(describe_halves(probe_set, 40, 0)) == [
        "mine: 40 usable targets are too few to be halved; competence is on all of them."
    ]


@pytest.mark.parametrize(
    ("name", "leaks"), [("antonyms-en", 196), ("antonyms-zh", 189), ("tasks-en", 0), ("tasks-zh", 0)]
)
def test_held_out_questions_among_the_examples_of_the_other_half_are_counted(name, leaks):
    probes = builtin_probes(name)
    found, asked = count_leaks(probes.probes)
    assert found == leaks and asked == len(probes.halves()[1].probes)
    assert [f"{leaks} of {asked} held-out questions" in note for note in describe_halves(probes, asked, asked)] == (
        [True] if leaks else []
    )


def in_half(examples, question, target, held_out):
    """A probe that asks a question after examples, with a line before them that puts it into that half."""
    prompts = (f"{number}\n{examples}\n{question}" for number in range(99))
    return next(probe for probe in (Probe(prompt, target) for prompt in prompts) if probe.held_out == held_out)


@pytest.mark.parametrize(
    ("example", "leaks"), [("3 plus 6 is 9.", 1), ("3 plus 6 is 91.", 0), ("13 plus 6 is 9.", 0), ("3 plus 6 is 9", 1)]
)
def test_a_leak_is_the_whole_question_with_the_whole_answer(example, leaks):
    asked = in_half("1 plus 1 is 2.", "3 plus 6 is", "9", held_out=True)
    assert count_leaks([in_half(example, "4 plus 4 is", "8", held_out=False), asked]) == (leaks, 1)
    assert count_leaks([in_half(example, "4 plus 4 is", "8", held_out=True), asked]) == (0, 2)  # of its own half


def test_pairs_of_prompts_that_agree_tie_where_independent_ones_would_not():
    """b answers six prompts that a does not, three whole pairs: beyond doubt of forty prompts, not of twenty pairs."""
    a, b = candidate("a", hits=14), candidate("b", hits=20)
    assert by_name(rank_donors([a, b], TARGETS, by="stability-competence"))["a"].tied_with == ()
    ranked = by_name(rank_donors([paired(a), paired(b)], PAIRED, by="stability-competence"))
    assert ranked["a"].tied_with == ("b",) and ranked["b"].tied_with == ("a",)


def test_being_at_chance_is_told_only_where_the_targets_can_tell():
    hit = np.array([1.0, *[0.0] * 19])
    assert is_at_chance(hit, TARGETS[:20])
    assert not is_at_chance(np.array([*[1.0] * 5, *[0.0] * 15]), TARGETS[:20])
    assert not is_at_chance(hit, asking(["x"] * 20)) and not is_at_chance(np.full(20, np.nan), TARGETS[:20])


@dataclass(frozen=True)
class Score:
    bits: np.ndarray
    hit: np.ndarray
    target_prob: np.ndarray


def grafted(donor, bits, hits=20, prob=0.4, **more):
    """A candidate whose side was measured on the host: eight documents of 100 bytes, forty prompts."""
    hit = np.zeros(N)
    hit[:hits] = 1
    graft = Graft(Score(np.asarray(bits), hit, np.full(N, prob)), np.full(8, 100.0), TARGETS)
    return replace(candidate(donor, **more), graft=graft)


def test_sides_are_ranked_by_the_bytes_that_a_bit_of_them_holds():
    bits = np.arange(100.0, 108.0)
    ranking = rank_donors([grafted("worse", bits + 1), grafted("better", bits)], TARGETS)
    better, worse = ranking.ranking
    assert (ranking.by, better.donor, better.score) == ("transplant", "better", pytest.approx(800 / bits.sum()))
    assert better.bits_per_byte == pytest.approx(bits.sum() / 800)
    assert (better.tied_with, worse.tied_with) == ((), ())  # worse on each document, though documents differ by more
    assert worse.score_ci[1] > better.score_ci[0]
    assert (ranking.num_documents, ranking.num_bytes) == (8, 800)


def test_the_competence_that_counts_is_that_of_the_side_not_of_the_donor():
    """Donor 'spoilt' answers nothing by itself, but its side works on the host; 'fine' is the other way about."""
    spoilt = grafted("spoilt", np.full(8, 100.0), hits=20, prob=0.4)
    spoilt = replace(spoilt, readings=candidate("x", hits=0, prob=0.0).readings)
    fine = grafted("fine", np.full(8, 90.0), hits=0, prob=0.0)
    ranking = rank_donors([spoilt, fine], TARGETS)
    assert [(row.donor, row.competent, row.accuracy) for row in ranking.ranking] == [
        ("spoilt", True, 0.5),
        ("fine", False, 0.0),
    ]


@pytest.mark.parametrize("by", MEASURES)
def test_each_measure_orders_by_what_it_says(by):
    one = grafted("one", np.full(8, 100.0), hits=20, slope=0.3)
    expected = {"transplant": 1.0, "transplant-competence": 0.4 / 0.95}
    expected |= {"stability": 0.7, "stability-competence": 0.7 * 0.4 / 0.95}
    assert rank_donors([one], TARGETS, by=by).ranking[0].score == pytest.approx(expected[by])


def test_a_measure_without_its_evidence_is_refused():
    for donors, by, words in (
        ([candidate("a")], "transplant", "needs each donor's side measured"),
        ([grafted("a", np.full(8, 9.0)), candidate("b")], "transplant-competence", "some were not"),
        ([candidate("a")], "stabilty", "there is no measure 'stabilty'"),
    ):
        with pytest.raises(InputError, match=words):
            rank_donors(donors, TARGETS, by=by)


def test_the_same_seed_gives_the_same_ranking_and_the_order_of_donors_is_no_matter():
    donors = [candidate("b", hits=30), candidate("a", hits=30), candidate("c", hits=10)]
    ranking = rank_donors(donors, TARGETS, seed=3)
    assert rank_donors(donors[::-1], TARGETS, seed=3) == ranking
    assert [donor.donor for donor in ranking.ranking] == ["a", "b", "c"]
    assert rank_donors(donors, TARGETS, seed=4).ranking[0].score_ci != ranking.ranking[0].score_ci


def test_the_json_is_the_contract():
    ranking = rank_donors([candidate("a"), candidate("b", hits=3)], TARGETS, num_resamples=50).to_json()
    assert json.loads(json.dumps(ranking, allow_nan=False)) == ranking
    assert next(iter(ranking.items())) == ("schema", "hybridizer.ranking/4")
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
        rank_donors([candidate("a")], asking(targets))


def traced(name, delta_js, per_prompt=True):
    js = np.tile(np.cumsum([0.1, *delta_js]), (N, 1))
    seen = readings(js, np.arange(N) % 2.0, np.full(N, 0.4))
    return TraceRun(name, record(delta_js), seen if per_prompt else replace(seen, js=None, layer_js=js))


def test_a_share_counts_in_every_donor_by_itself_and_the_deep_side_is_ranked():
    """The deep halves, layers 3..5 and 2..3, have dJS of 0.02 and 0.1."""
    probes = ProbeSet("p", "0" * 64, TARGETS)
    runs = [traced("six", [0.3, 0.2, 0.1, 0.02, 0.02, 0.02]), traced("four", [0.3, 0.2, 0.1, 0.1])]
    ranking = rank(runs, probes, 0.5, seed=0)
    found = {donor.donor: (donor.first_layer, donor.last_layer, donor.stability) for donor in ranking.ranking}
    assert found == {"six": (3, 5, pytest.approx(0.98)), "four": (2, 3, pytest.approx(0.9))}
    assert {name: boundary.layer for name, boundary in ranking.boundaries.items()} == {"six": 3, "four": 2}
    assert ranking.to_json()["boundaries"]["four"]["strategy"] == "share"


def test_a_strategy_looks_at_the_host_and_holds_for_all_as_a_share():
    """S is largest at layer 2 of the host's 6, and at layer 3 of the other's 4, which gets its share of a third: 1."""
    probes = ProbeSet("p", "0" * 64, TARGETS)
    runs = [traced("four", [0.1, 0.1, 0.3, 0.01]), traced("six", [0.3, 0.3, 0.02, 0.02, 0.02, 0.02])]
    ranking = rank(runs, probes, "s-maximal", seed=0, host="six")
    assert {name: boundary.layer for name, boundary in ranking.boundaries.items()} == {"six": 2, "four": 1}
    host, other = ranking.boundaries["six"], ranking.boundaries["four"]
    assert (host.strategy, other.strategy) == ("s-maximal", "s-maximal") and "as requested" not in other.reason
    assert other.reason.startswith(f"Placed by 'six': {host.reason} In this donor S(1) = ")
    assert ranking.host == "six" and ranking.probes["n"] == runs[0].record.probes.n and ranking.settings["mask_ratio"]
    shallow = rank(runs, probes, "s-maximal", seed=0, host="six", side="shallow").ranking
    assert {(row.donor, row.first_layer, row.last_layer) for row in shallow} == {("six", 0, 1), ("four", 0, 0)}


def test_a_trace_without_the_context_perturbation_is_not_ranked():
    with pytest.raises(InputError, match="trace of 'x': this trace has the layer perturbation alone"):
        rank([traced("x", [0.2, 0.1], per_prompt=False)], ProbeSet("p", "", ()), 1, seed=0)
