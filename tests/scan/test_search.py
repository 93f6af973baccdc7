"""The searches, on scorers whose best model is known."""

import numpy as np
import pytest

from hybridizer.core.errors import PlanError, Problem
from hybridizer.scan.candidates import Space, describe, list_candidates
from hybridizer.scan.score import Score
from hybridizer.scan.search import Rung, Screen, Search, rounds_of_drops, search_all, search_drops, search_mixes

SPACE = Space({"a": 6, "b": 6}, span=2)


class Known:
    """Bits by a function of the layers; remembers what was asked for, and refuses some models."""

    def __init__(self, value, refuse=lambda layers: False):
        self.value, self.refuse = value, refuse
        self.asked, self.prepared = [], []

    def prepare(self, paths):
        self.prepared.append(list(paths))

    def score(self, layers):
        self.asked.append(layers)
        if self.refuse(layers):
            raise PlanError(Problem("x", "no such model.", ""))
        return Score(np.array([float(self.value(layers))]), np.zeros(0), np.zeros(0))


def bits(score):
    return float(score.bits[0])


def mean_bits(scores):
    return sum(map(bits, scores)) / len(scores)


def one_rung(scorer, least):
    return Screen((Rung(scorer, mean_bits, 1),), least, one_in=8)


def make_search(scorer, budget=1000, screen=None):
    counts = []
    search = Search(scorer, bits, lambda count, status: counts.append(count), budget, screen)
    return search, counts


def loss_of(costs):
    """The summed cost of the host's layers that are missing."""
    return lambda layers: sum(cost for layer, cost in enumerate(costs) if ("a", layer) not in layers)


def test_all_candidates_are_scored_once_in_the_order_for_reuse():
    scorer = Known(len)
    search, counts = make_search(scorer)
    candidates = list_candidates(SPACE, ("repeat", "cut"))
    search_all(search, SPACE, candidates[::-1])
    assert scorer.asked == [candidate.layers for candidate in candidates]
    assert scorer.prepared == [[SPACE.host]] and sum(counts) == len(candidates)
    assert all(scored.value == len(layers) for layers, scored in search.scored.items())


def test_the_beginnings_of_guests_are_kept_where_candidates_begin_with_them():
    scorer = Known(len)
    search, _ = make_search(scorer)
    search_all(search, SPACE, list_candidates(SPACE, ("seam",)))
    assert scorer.prepared == [[SPACE.host, SPACE.of("b")]]


def test_greedy_drops_find_the_layers_that_cost_least():
    search, _ = make_search(Known(loss_of([9, 1, 5, 2, 7, 3])))
    search_drops(search, SPACE, 3, beam=1, seed=0)
    best = min((s for s in search.scored.values() if len(s.candidate.layers) == 3), key=lambda s: s.value)
    assert describe(best.candidate.layers) == "a 0, 2, 4"
    assert len(search.tried) == 6 + 5 + 4 == sum(rounds_of_drops(6, 3, 1))


def test_a_beam_finds_a_pair_that_greedy_steps_miss():
    def value(layers):
        gone = {layer for layer in range(6) if ("a", layer) not in layers}
        return {frozenset({1}): 1, frozenset({2}): 2, frozenset({2, 3}): 0}.get(frozenset(gone), 5)

    found = {}
    for beam in (1, 2):
        search, _ = make_search(Known(value))
        search_drops(search, SPACE, 2, beam=beam, seed=0)
        found[beam] = min(s.value for s in search.scored.values() if len(s.candidate.layers) == 4)
    assert found == {1: 5, 2: 0}


def test_beams_try_no_model_twice():
    scorer = Known(loss_of([1, 1, 1, 1, 1, 1]))
    search, _ = make_search(scorer)
    search_drops(search, SPACE, 3, beam=3, seed=0)
    assert len(set(scorer.asked)) == len(scorer.asked) <= sum(rounds_of_drops(6, 3, 3))


@pytest.mark.parametrize("better", [(), (2,), (0, 3, 5)])
def test_a_donor_is_chosen_for_each_layer(better):
    def value(layers):
        return sum((donor == "b") != (layer in better) for donor, layer in layers)

    search, _ = make_search(Known(value))
    search_mixes(search, SPACE, beam=1, seed=0)
    best = min(search.scored.values(), key=lambda scored: scored.value)
    assert tuple(layer for donor, layer in best.candidate.layers if donor == "b") == better
    assert best.value == 0


def test_a_budget_ends_every_search():
    for run in (search_drops, search_mixes):
        scorer = Known(lambda layers: -sum(donor == "b" for donor, _ in layers))
        search, _ = make_search(scorer, budget=8)
        run(search, SPACE, *([3] if run is search_drops else []), beam=1, seed=0)
        assert len(scorer.asked) == 8 and search.left == 0


def test_a_model_that_cannot_be_is_left_out_with_its_reason():
    search, counts = make_search(Known(len, refuse=lambda layers: len(layers) > 6))
    candidates = list_candidates(SPACE, ("repeat", "cut"))
    search_all(search, SPACE, candidates)
    assert set(search.refused) == {c.layers for c in candidates if len(c.layers) > 6}
    assert set(search.refused.values()) == {"no such model."}
    assert len(search.scored) + len(search.refused) == len(candidates) == sum(counts)


def test_a_screen_lets_the_best_of_a_round_pass_and_only_they_are_scored_in_full():
    quick, full = Known(loss_of(range(40))), Known(loss_of(range(40)))
    space = Space({"a": 40}, span=2)
    search, counts = make_search(full, screen=one_rung(quick, least=4))
    candidates = list_candidates(space, ("cut",))
    search_all(search, space, candidates)
    passing = -(-len(candidates) // 8)
    best = sorted(candidates, key=lambda c: loss_of(range(40))(c.layers))[:passing]
    assert quick.asked == [candidate.layers for candidate in candidates]
    assert set(full.asked) == set(search.scored) == {candidate.layers for candidate in best}
    assert full.asked == sorted(full.asked) and sum(counts) == len(candidates) + passing


@pytest.mark.parametrize(("size", "passing"), [(1, 1), (12, 12), (13, 6), (48, 6), (49, 7), (800, 100)])
def test_one_in_so_many_of_a_large_round_passes(size, passing):
    assert one_rung(Known(len), least=6).sizes(size)[-1] == passing


@pytest.mark.parametrize(
    ("count", "sizes"), [(12, [12]), (13, [13, 11, 8, 6]), (48, [48, 24, 12, 6]), (1000, [1000, 500, 250, 125])]
)
def test_each_rung_leaves_the_same_share(count, sizes):
    rung = Rung(Known(len), mean_bits, 1)
    assert Screen((rung,) * 3, least=6, one_in=8).sizes(count) == sizes


def test_a_rung_looks_at_what_the_one_before_left_and_judges_by_all_items_so_far():
    """The second rung lowers the rank of layer 2, the best of the first by a little: layer 0 passes."""
    first = Known(loss_of([1, 9, 0, 9, 9, 9, 9, 2]))
    second = Known(loss_of([1, 0, 5, 0, 0, 0, 0, 2]))
    full, space = Known(len), Space({"a": 8}, span=1)
    rungs = (Rung(first, mean_bits, 1), Rung(second, mean_bits, 2))
    search, counts = make_search(full, screen=Screen(rungs, least=1, one_in=8))
    search_all(search, space, list_candidates(space, ("cut",)))
    gone = [next(layer for layer in range(8) if ("a", layer) not in layers) for layers in second.asked]
    assert gone == [7, 2, 0]
    assert [describe(layers) for layers in full.asked] == ["a 1..7"]
    seen = {one.candidate.name for one in search.scored.values()}
    assert seen == {"cut 0"} and sum(counts) == 8 + 3 + 1
    assert [one.prepared for one in (first, second, full)] == [[[space.host]]] * 3
    values = {describe(layers): (found.value, found.rung) for layers, found in search.screened.items()}
    assert values["a 1..7"] == (1, 1) and values["a 0..1, 3..7"] == (2.5, 1) and values["a 0..2, 4..7"] == (9, 0)


def test_a_model_that_cannot_be_leaves_the_screen_at_once():
    quick = [Known(len, refuse=lambda layers: ("a", 0) not in layers) for _ in range(2)]
    rungs = tuple(Rung(scorer, mean_bits, 1) for scorer in quick)
    search, _ = make_search(Known(len), screen=Screen(rungs, least=1, one_in=2))
    search_all(search, SPACE, list_candidates(SPACE, ("cut",)))
    assert len(search.refused) == 2 and all(("a", 0) in layers for layers in quick[1].asked)


def test_small_rounds_are_not_screened():
    quick, full = Known(len), Known(len)
    search, _ = make_search(full, screen=one_rung(quick, least=6))
    search_all(search, SPACE, list_candidates(SPACE, ("cut",)))
    assert quick.asked == [] and len(full.asked) == 11


def test_a_choice_of_donors_tries_no_model_twice():
    scorer = Known(lambda layers: sum((donor == "b") != (layer in (1, 4)) for donor, layer in layers))
    search, _ = make_search(scorer)
    search_mixes(search, SPACE, beam=3, seed=0)
    assert len(set(scorer.asked)) == len(scorer.asked)
