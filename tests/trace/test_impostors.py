"""Models that only look stable must not outrank the donor they are made from: the reason for the ranking's formula."""

import random
from collections import Counter

import pytest
import torch

from hybridizer.models.parts import find_parts
from hybridizer.recipe.models import Trace
from hybridizer.trace.boundary import choose_boundary
from hybridizer.trace.probes import Probe, ProbeSet, builtin_probes
from hybridizer.trace.ranking import Candidate, rank_donors
from hybridizer.trace.record import RecordedDonor
from hybridizer.trace.tracer import trace_model
from support.toys import NUM_LAYERS, constant, fresh, shuffled, toy_prompt, toy_text, toy_tokenizer, trained

IMPOSTORS = ("random", "constant", "shuffled")


def toy_probes(num_probes=120):
    generator = random.Random(1)
    texts = [toy_text(*toy_prompt(generator)) for _ in range(num_probes)]
    return ProbeSet("toy", "0" * 64, tuple(Probe(prompt, target) for prompt, target in texts))


def trace(name, model, tokenizer, probes):
    donor = RecordedDonor(name, f"sha256:{name}", "llama", model.config.num_hidden_layers)
    return trace_model(model, tokenizer, find_parts(model), probes, Trace(num_resamples=200), donor)


def candidate(name, traced, layers):
    return Candidate(name, traced.readings, layers)


pytestmark = pytest.mark.slow  # a toy donor is trained first


@pytest.fixture(scope="module")
def traces():
    """Traces of a donor that learnt the task, and of three impostors made from it."""
    donor, probes, tokenizer = trained(), toy_probes(), toy_tokenizer()
    commonest = Counter(probe.target for probe in probes.probes).most_common(1)[0][0]
    models = {
        "donor": donor,
        "random": fresh(seed=2),
        "constant": constant(donor, int(commonest.removeprefix(" w"))),
        "shuffled": shuffled(donor),
    }
    return {name: trace(name, model, tokenizer, probes) for name, model in models.items()}


def ranked(traces, names, layers):
    return rank_donors([candidate(name, traces[name], layers) for name in names], toy_probes().probes)


def test_the_toy_donor_has_learnt_the_task(traces):
    assert traces["donor"].record.accuracy > 0.9


@pytest.mark.parametrize("layers", [range(NUM_LAYERS), range(NUM_LAYERS // 2, NUM_LAYERS)])
@pytest.mark.parametrize("impostor", IMPOSTORS)
def test_an_impostor_ranks_below_its_donor_and_is_no_tie(traces, impostor, layers):
    first, second = ranked(traces, ["donor", impostor], layers).ranking
    assert (first.donor, second.donor) == ("donor", impostor)
    assert (first.tied_with, second.tied_with) == ((), ())


def test_stability_alone_would_rank_impostors_first(traces):
    """The trap the formula is there for: remove competence from it and this is the order."""
    everything = range(NUM_LAYERS)
    stability = {donor.donor: donor.stability for donor in ranked(traces, ["donor", *IMPOSTORS], everything).ranking}
    assert stability["constant"] == 1
    assert stability["constant"] > stability["donor"]
    assert stability["random"] > stability["donor"]


def test_a_constant_answer_is_worth_exactly_nothing(traces):
    """Even one that gives the commonest target, and so is right nearly as often as chance."""
    ranking = ranked(traces, ["donor", "constant"], range(2))
    found = {donor.donor: donor for donor in ranking.ranking}
    assert 1 / 16 < found["constant"].accuracy <= ranking.chance
    assert found["constant"].score == 0


def test_the_record_of_a_real_trace_is_evidence_for_every_strategy(traces):
    for asked in ("midpoint", "s-maximal", "knee", "auto", 0.25, 3):
        chosen = choose_boundary(asked, traces["donor"].record)
        assert 1 <= chosen.layer < NUM_LAYERS


@pytest.mark.real
def test_impostors_of_a_real_checkpoint_rank_below_it():
    """SmolLM2-135M-Instruct on 40 of the English probes: it answers about half, and its copies next to nothing."""
    from support.real_model import load_smollm2

    model, tokenizer = load_smollm2()
    whole = builtin_probes("antonyms-en")
    probes = ProbeSet("the first 40 of antonyms-en", whole.sha256, whole.probes[:40])
    num_layers = model.config.num_hidden_layers
    deep = range(num_layers // 2, num_layers)
    found = [candidate("donor", trace("donor", model, tokenizer, probes), deep)]
    for name, spoil in (("shuffled", shuffle_), ("random", randomise_), ("constant", make_constant_)):
        spoil(model)
        found.append(candidate(name, trace(name, model, tokenizer, probes), deep))
    first, *others = rank_donors(found, probes.probes).ranking
    assert (first.donor, first.tied_with) == ("donor", ())
    assert first.accuracy > 0.3
    assert max(other.stability for other in others) > first.stability


def shuffle_(model):
    layers = list(model.model.layers)
    order = random.Random(0).sample(range(len(layers)), len(layers))
    model.model.layers = torch.nn.ModuleList(layers[i] for i in order)


def randomise_(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.02)
        else:
            torch.nn.init.ones_(parameter)


def make_constant_(model):
    model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight), requires_grad=False)
    model.lm_head.weight[100] = 0.01
    model.model.embed_tokens.weight.fill_(1.0)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
