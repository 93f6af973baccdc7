"""Which side of a donor is damaged, at what cost, and donors that cannot be composed."""

import copy

import numpy as np
import pytest
import torch

from hybridizer.core.errors import InputError
from hybridizer.models.load import load_tokenizer
from hybridizer.models.parts import find_parts
from hybridizer.scan.score import Items, Scorer, encode_text, prepare_items
from hybridizer.scan.transplant import transplant
from hybridizer.trace.probes import Probe, ProbeSet
from support.prove import load
from support.tiny import make_tiny, tiny_tokenizer
from support.toys import toy_prompt, toy_text, toy_tokenizer, trained

PROBES = ProbeSet("p", "", tuple(Probe(f"the cat {i} is ", "abcd"[i % 4]) for i in range(6)))
DOCUMENTS = [f"document {i} says the cat sat on the mat" for i in range(5)]


@pytest.fixture
def donors(tmp_path):
    """Three alike, one wider, and one deeper."""
    tokenizer = load_tokenizer(tiny_tokenizer(tmp_path / "tokenizer"))
    folders = {name: make_tiny("llama", tmp_path / name, seed=seed) for seed, name in enumerate("abc")}
    folders["wide"] = make_tiny("llama", tmp_path / "wide", hidden_size=32, head_dim=8)
    folders["deeper"] = make_tiny("llama", tmp_path / "deeper", num_hidden_layers=6)

    def open_one(name):
        model = load(folders[name])
        return model, tokenizer, find_parts(model)

    return open_one


def prepare(tokenizer):
    return prepare_items(tokenizer, PROBES, [encode_text("cats", tokenizer, DOCUMENTS)], context=32)


def with_parts(loaded):
    return loaded[0], loaded[2]


def assert_same(one, other):
    for name in ("bits", "hit", "target_prob"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "passes"), [(["a"], 1), (["a", "b"], 3), (["b", "c", "a"], 5), (["b", "wide", "c"], 6)]
)
def test_n_donors_cost_one_pass_for_the_host_and_two_for_each_other_one(donors, names, passes, monkeypatch):
    runs = []
    run = Scorer._run
    monkeypatch.setattr(Scorer, "_run", lambda *args: runs.append(args[1]) or run(*args))
    counted = []
    found = transplant("a", names, donors, prepare, 0.5, advance=counted.append)
    assert len(runs) == found.num_passes == sum(counted) == passes <= 2 * len(names) + 2
    assert list(found.donors) == names


def test_each_side_is_that_of_the_composition_at_the_boundary(donors):
    found = transplant("a", ["a", "b"], donors, prepare, 0.25)
    models = {name: with_parts(donors(name)) for name in "ab"}
    scorer = Scorer(models, "a", prepare(donors("a")[1]))
    assert_same(found.donors["b"].deep, scorer.score([("a", 0), ("b", 1), ("b", 2), ("b", 3)]))
    assert_same(found.donors["b"].shallow, scorer.score([("b", 0), ("a", 1), ("a", 2), ("a", 3)]))
    assert_same(found.own, scorer.score(scorer.host_path))
    assert_same(found.donors["a"].deep, found.own)


def test_a_donor_of_another_depth_gives_its_share_of_layers(donors):
    found = transplant("a", ["deeper"], donors, prepare, 0.5).donors["deeper"]
    assert (found.boundary, found.num_layers, found.why_whole) == (3, 6, None)
    models = {name: with_parts(donors(name)) for name in ("a", "deeper")}
    scorer = Scorer(models, "a", prepare(donors("a")[1]))
    assert_same(found.deep, scorer.score([("a", 0), ("a", 1), *(("deeper", layer) for layer in (3, 4, 5))]))
    assert_same(found.shallow, scorer.score([*(("deeper", layer) for layer in (0, 1, 2)), ("a", 2), ("a", 3)]))


def test_a_donor_of_another_width_is_measured_whole_and_marked_so(donors):
    found = transplant("a", ["wide"], donors, prepare, 0.5).donors["wide"]
    model, tokenizer, parts = donors("wide")
    alone = Scorer({"w": (model, parts)}, "w", prepare(tokenizer))
    assert_same(found.deep, alone.score(alone.host_path))
    assert_same(found.shallow, found.deep)
    assert "head_dim" in found.why_whole


def test_a_boundary_that_leaves_a_side_empty_is_refused(donors):
    with pytest.raises(InputError, match="leaves one side of 'a' empty: it has 4 layers"):
        transplant("a", ["b"], donors, prepare, 4)


@pytest.mark.slow
def test_the_transplant_tells_which_side_of_a_trained_donor_is_damaged():
    """A toy donor that learnt its task, and copies with noise on one side, three times as large as the weights."""
    import random

    sound, tokenizer = trained(), toy_tokenizer()
    damaged = {side: copy.deepcopy(sound) for side in ("deep", "shallow")}
    for side, layers in (("deep", (1, 2, 3)), ("shallow", (0,))):
        torch.manual_seed(1)
        for layer in layers:
            for weight in damaged[side].model.layers[layer].parameters():
                if weight.ndim == 2:
                    weight.data += 3 * weight.std() * torch.randn_like(weight)
    models = {"host": sound, **damaged}
    generator = random.Random(5)
    probes = ProbeSet("toy", "", tuple(Probe(*toy_text(*toy_prompt(generator))) for _ in range(100)))

    def prepare_toys(tokens):
        return Items((), prepare_items(tokens, probes, []).prompts)

    found = transplant(
        "host", list(models), lambda name: (models[name], tokenizer, find_parts(models[name])), prepare_toys, 0.25
    )
    accuracy = {name: (sides.deep.hit.mean(), sides.shallow.hit.mean()) for name, sides in found.donors.items()}
    own = found.own.hit.mean()
    assert own > 0.9
    assert accuracy["deep"][0] < own - 0.2 and accuracy["deep"][1] == own
    assert accuracy["shallow"][1] < own - 0.2 and accuracy["shallow"][0] == own
