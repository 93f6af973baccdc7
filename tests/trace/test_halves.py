"""A donor that memorised one half of the probes is found out on the other half."""

import copy
import random
from collections import Counter

import pytest
import torch

from hybridizer.models.parts import find_parts
from hybridizer.recipe.models import Trace
from hybridizer.trace.probes import Probe, ProbeSet
from hybridizer.trace.record import RecordedDonor
from hybridizer.trace.tracer import trace_model
from support.toys import NUM_LAYERS, NUM_WORDS, RELATIONS, fresh, toy_prompt, toy_text, toy_tokenizer, trained


def toy_probes():
    """64 prompts, two for each of the 32 questions of the toy task, which are the clusters."""
    generator, found = random.Random(1), {}
    while sum(map(len, found.values())) < 2 * NUM_WORDS * len(RELATIONS):
        relation, words = toy_prompt(generator)
        prompts = found.setdefault(f"{relation} of w{words[-2]}", {})
        if len(prompts) < 2:
            prompts.update([toy_text(relation, words)])
    probes = (Probe(*text, "toy", None, cluster) for cluster, texts in found.items() for text in texts.items())
    return ProbeSet("toy", "0" * 64, tuple(probes))


@torch.no_grad()
def memoriser(probes):
    """A random model whose head is fitted to the answers: fewer prompts than hidden units, so that each one fits."""
    tokenizer, model = toy_tokenizer(), copy.deepcopy(fresh(seed=2))
    states = [model.model(torch.tensor([tokenizer(p.prompt)["input_ids"]])).last_hidden_state[0, -1] for p in probes]
    answers = torch.zeros(len(states), model.config.vocab_size)
    for row, probe in zip(answers, probes, strict=True):
        row[tokenizer(probe.target)["input_ids"]] = 10.0
    assert len(states) < model.config.hidden_size
    model.lm_head.weight.copy_((torch.linalg.pinv(torch.stack(states)) @ answers).T)
    return model


def trace(model, probes):
    donor = RecordedDonor("toy", "sha256:0", "llama", NUM_LAYERS)
    return trace_model(model, toy_tokenizer(), find_parts(model), probes, Trace(num_resamples=200), donor)


@pytest.mark.parametrize("half", [0, 1], ids=["selection", "held-out"])
def test_what_was_memorised_in_one_half_is_not_answered_in_the_other(half):
    halves = toy_probes().halves()
    assert min(len(half.probes) for half in halves) >= 20
    model = memoriser(halves[half].probes)
    accuracy = [trace(model, probes).record.accuracy for probes in halves]
    other = Counter(probe.target for probe in halves[1 - half].probes)
    assert accuracy[half] == 1.0
    assert accuracy[1 - half] <= 0.1 + max(other.values()) / other.total()  # chance, and a few prompts of luck: it is 0


@pytest.mark.slow
def test_what_was_learnt_is_answered_in_both_halves():
    model = trained()
    assert min(trace(model, probes).record.accuracy for probes in toy_probes().halves()) > 0.9
