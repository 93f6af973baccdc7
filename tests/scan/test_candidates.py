"""The changes that a scan tries: their layers, names and order, and recipes that say the same."""

from itertools import pairwise

import pytest

from hybridizer.recipe.layers import expand, read_ranges
from hybridizer.scan.candidates import (
    Cut,
    Repeat,
    Seam,
    Space,
    Swap,
    describe,
    draw,
    list_candidates,
    sort_for_reuse,
    to_slices,
)
from hybridizer.scan.request import KINDS

ONE = Space({"a": 5}, span=2)
TWO = Space({"a": 5, "b": 4}, span=2)


def numbers(layers):
    return "".join(f"{donor}{layer}" for donor, layer in layers)


@pytest.mark.parametrize(
    ("change", "name", "layers"),
    [
        (Cut(1, 2), "cut 1..2", "a0a3a4"),
        (Repeat(1, 2), "repeat 1..2", "a0a1a2a1a2a3a4"),
        (Repeat(4, 4), "repeat 4", "a0a1a2a3a4a4"),
        (Seam("a", 2, "b", 3, 4), "seam a 0..1 | b 3", "a0a1b3"),
        (Seam("b", 1, "a", 0, 5), "seam b 0 | a 0..4", "b0a0a1a2a3a4"),
        (Swap("b", 2, 3), "swap 2..3 from b", "a0a1b2b3a4"),
    ],
)
def test_a_change_has_its_name_and_its_layers(change, name, layers):
    assert (change.name, numbers(change.layers(TWO.host))) == (name, layers)


def test_every_run_is_cut_and_repeated_up_to_the_span():
    names = [candidate.name for candidate in list_candidates(ONE, ("cut", "repeat"))]
    runs = ["0", "1", "2", "3", "4", "0..1", "1..2", "2..3", "3..4"]
    assert sorted(names) == sorted(f"{kind} {run}" for kind in ("cut", "repeat") for run in runs)


def test_the_whole_host_is_never_cut():
    names = {candidate.name for candidate in list_candidates(Space({"a": 3}, span=9), ("cut",))}
    assert names == {"cut 0", "cut 1", "cut 2", "cut 0..1", "cut 1..2"}


def test_seams_join_both_orders_within_the_span_and_leave_a_layer_on_either_side():
    found = list_candidates(TWO, ("seam",))
    assert {candidate.layers[0][0] for candidate in found} == {"a", "b"}
    for candidate in found:
        seam = candidate.change
        assert abs(seam.begin - seam.end) <= 2
        assert seam.end >= 1 and seam.begin < TWO.depths[seam.deep]
    assert len(found) == len({candidate.layers for candidate in found})


def test_swaps_are_single_layers_that_both_donors_have_and_bands_lie_inside_the_host():
    assert [c.name for c in list_candidates(TWO, ("swap",))] == [f"swap {i} from b" for i in (3, 2, 1, 0)]
    assert {c.name for c in list_candidates(TWO, ("band",))} == {"swap 1..2 from b", "swap 2..3 from b"}


def test_no_arrangement_is_listed_twice_and_the_host_itself_never():
    found = list_candidates(Space({"a": 5, "b": 5}, span=4), KINDS)
    layers = [candidate.layers for candidate in found]
    assert len(set(layers)) == len(layers) and TWO.host not in layers


def test_neighbours_share_the_longest_beginnings():
    def shared(order):
        pairs = pairwise(order)
        return sum(
            next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), 99) for one, two in pairs
        )

    found = list_candidates(TWO, KINDS)
    by_name = sorted(found, key=lambda candidate: candidate.name)
    assert found == sort_for_reuse(by_name)
    assert shared([c.layers for c in found]) > shared([c.layers for c in by_name])


def test_a_budget_draws_by_the_seed_and_keeps_the_order():
    found = list_candidates(TWO, KINDS)
    assert draw(found, len(found), 0) == found
    some = draw(found, 7, 0)
    assert len(some) == 7 and some == draw(found, 7, 0) != draw(found, 7, 1)
    assert [found.index(candidate) for candidate in some] == sorted(found.index(candidate) for candidate in some)


@pytest.mark.parametrize("candidate", list_candidates(TWO, KINDS), ids=lambda candidate: candidate.name)
def test_slices_of_a_recipe_are_the_layers(candidate):
    slices = to_slices(candidate.layers)
    assert tuple((one["donor"], layer) for one in slices for layer in expand(read_ranges(one["layers"]))) == (
        candidate.layers
    )
    assert all(one["donor"] != two["donor"] for one, two in pairwise(slices))


def test_an_arrangement_is_described_by_its_runs():
    assert describe(Swap("b", 2, 3).layers(TWO.host)) == "a 0..1 | b 2..3 | a 4"
