"""The searches, on scorers whose best model is known."""

import numpy as np
import pytest

from hybridizer.core.errors import PlanError, Problem
from hybridizer.scan.candidates import Space, describe, list_candidates
from hybridizer.scan.score import Score
from hybridizer.scan.search import Screen, Search, rounds_of_drops, search_all, search_drops, search_mixes

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
    search, counts = make_search(full, screen=Screen(quick, bits, least=4))
    candidates = list_candidates(space, ("cut",))
    search_all(search, space, candidates)
    passing = -(-len(candidates) // 8)
    best = sorted(candidates, key=lambda c: loss_of(range(40))(c.layers))[:passing]
    assert quick.asked == [candidate.layers for candidate in candidates]
    assert set(full.asked) == set(search.scored) == {candidate.layers for candidate in best}
    assert full.asked == sorted(full.asked) and sum(counts) == len(candidates) + passing


@pytest.mark.parametrize(("size", "passing"), [(1, 1), (12, 12), (13, 6), (48, 6), (49, 7), (800, 100)])
def test_an_eighth_of_a_large_round_passes(size, passing):
    assert Screen(Known(len), bits, least=6).num_passing(size) == passing


def test_small_rounds_are_not_screened():
    quick, full = Known(len), Known(len)
    search, _ = make_search(full, screen=Screen(quick, bits, least=6))
    search_all(search, SPACE, list_candidates(SPACE, ("cut",)))
    assert quick.asked == [] and len(full.asked) == 11


def test_a_choice_of_donors_tries_no_model_twice():
    scorer = Known(lambda layers: sum((donor == "b") != (layer in (1, 4)) for donor, layer in layers))
    search, _ = make_search(scorer)
    search_mixes(search, SPACE, beam=3, seed=0)
    assert len(set(scorer.asked)) == len(scorer.asked)
