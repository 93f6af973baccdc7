"""Donors whose damage is known, ranked: the small version of scripts/known_truth.py, on toys that learnt a task."""

import copy
import random

import pytest
import torch

from hybridizer.models.parts import find_parts
from hybridizer.recipe.models import Trace
from hybridizer.scan.score import encode_text, prepare_items
from hybridizer.scan.transplant import transplant
from hybridizer.trace.probes import Probe, ProbeSet
from hybridizer.trace.ranking import Candidate, Graft, rank_donors
from hybridizer.trace.record import RecordedDonor
from hybridizer.trace.tracer import trace_model
from support.toys import (
    MARKERS,
    NUM_LAYERS,
    NUM_WORDS,
    RELATIONS,
    constant,
    fresh,
    toy_prompt,
    toy_text,
    toy_tokenizer,
    trained,
)

pytestmark = pytest.mark.slow  # a toy donor is trained first
CUT = 1  # the toy does most of its work in layer 1
SIDES = {"deep": range(CUT, NUM_LAYERS), "shallow": range(CUT)}


def noisy(donor, layers, size, seed):
    copied, generator = copy.deepcopy(donor), torch.Generator().manual_seed(seed)
    for layer in layers:
        for weight in copied.model.layers[layer].parameters():
            if weight.ndim == 2:
                weight.data += size * weight.std() * torch.randn(weight.shape, generator=generator)
    return copied


@pytest.fixture(scope="module")
def sound():
    return trained(num_steps=300, whole_text=True)


@pytest.fixture(scope="module")
def probes():
    generator = random.Random(5)
    return ProbeSet("toy", "", tuple(Probe(*toy_text(*toy_prompt(generator))) for _ in range(80)))


def prompt_of(generator, words):
    """A toy prompt whose questions, and so its answers, are of `words`, a half of the vocabulary."""
    relation = generator.choice(list(RELATIONS))
    questions = generator.sample(words, 3)
    return relation, [word for question in questions for word in (question, question ^ RELATIONS[relation])]


def tuned(donor, layers, words, num_steps=40):
    """A copy of `donor` with `layers`, and nothing else, trained on prompts of `words`."""
    copied, generator = copy.deepcopy(donor), random.Random(7)
    chosen = [weight for layer in layers for weight in copied.model.layers[layer].parameters()]
    for weight in chosen:
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(chosen, lr=1e-3)
    for _ in range(num_steps):
        prompts = [prompt_of(generator, words) for _ in range(64)]
        ids = torch.tensor([[MARKERS[relation], *text] for relation, text in prompts])
        optimizer.zero_grad()
        copied(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    return copied.requires_grad_(False)


def ranked(models, host, probes, side, by=None, documents=None):
    """The models ranked by one side of each, as `hybridize rank` does it, on `documents` or on prompts of all words."""
    tokenizer, generator = toy_tokenizer(), random.Random(6)
    documents = documents or ["".join(toy_text(*toy_prompt(generator))) for _ in range(60)]

    def prepare(tokens):
        return prepare_items(tokens, probes, [encode_text("toy", tokens, documents)], context=16)

    found = transplant(
        host,
        list(models),
        lambda name: (models[name], tokenizer, find_parts(models[name])),
        prepare,
        {n: CUT for n in models},
    )
    candidates = []
    for name, model in models.items():
        about = RecordedDonor(name, f"sha256:{name}", "llama", NUM_LAYERS)
        readings = trace_model(model, tokenizer, find_parts(model), probes, Trace(num_resamples=50), about).readings
        graft = Graft(getattr(found.donors[name], side), found.num_bytes, probes.probes)
        candidates.append(Candidate(name, readings, SIDES[side], graft))
    return rank_donors(candidates, probes.probes, by=by).ranking


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("host", ["spoilt deep", "spoilt shallow"])
@pytest.mark.parametrize("side", SIDES)
def test_of_two_donors_each_damaged_in_one_side_the_one_with_the_sound_side_is_first(sound, probes, side, host, seed):
    # On an other side that computes nothing, no side can be told from another: that one has less noise.
    models = {
        f"spoilt {name}": noisy(sound, layers, 3.0 if name == side else 0.7, seed) for name, layers in SIDES.items()
    }
    right, wrong = ("spoilt shallow", "spoilt deep") if side == "deep" else ("spoilt deep", "spoilt shallow")
    first, second = ranked(models, host, probes, side)
    assert (first.donor, second.donor) == (right, wrong)
    assert first.tied_with == ()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_damage_too_small_to_matter_is_a_tie_or_found_but_never_preferred_beyond_doubt(sound, probes, seed):
    models = {"sound": sound, "touched": noisy(sound, SIDES["deep"], 0.01, seed)}
    rows = {row.donor: row for row in ranked(models, "sound", probes, "deep")}
    assert rows["touched"].tied_with == ("sound",) or rows["touched"].score < rows["sound"].score


@pytest.mark.parametrize("side", SIDES)
def test_of_two_donors_each_trained_on_one_text_the_text_that_is_scored_picks_the_one_trained_on_it(
    sound, probes, side
):
    halves = {"low": range(NUM_WORDS // 2), "high": range(NUM_WORDS // 2, NUM_WORDS)}
    models = {"sound": sound} | {name: tuned(sound, SIDES[side], words) for name, words in halves.items()}
    for name, words in halves.items():
        generator = random.Random(8)
        documents = ["".join(toy_text(*prompt_of(generator, words))) for _ in range(60)]
        first = ranked(models, "sound", probes, side, documents=documents)[0]
        assert (first.donor, first.tied_with) == (name, ())


def test_the_papers_stability_takes_the_constant_model_and_transplants_do_not(sound, probes):
    models = {"sound": sound, "constant": constant(sound, 3), "random": fresh(seed=2)}
    assert ranked(models, "sound", probes, "deep", by="stability")[0].donor == "constant"
    assert ranked(models, "sound", probes, "deep")[0].donor == "sound"


def test_no_donor_at_chance_passes_the_floor(sound, probes):
    """On a host whose own deep side is broken, neither a random nor a constant model is competent."""
    models = {
        "broken": noisy(sound, range(NUM_LAYERS), 4.0, 1),
        "random": fresh(seed=2),
        "constant": constant(sound, 3),
    }
    assert not any(row.competent for row in ranked(models, "broken", probes, "deep"))
    assert ranked({"sound": sound}, "sound", probes, "deep")[0].competent
