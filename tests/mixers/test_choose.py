"""Which layers keep attention, and what each layer loses alone."""

import math

import pytest
import torch

from hybridizer.core.errors import InputError
from hybridizer.families.mixer_shapes import AttentionShape, mamba2_shape
from hybridizer.mixers.choice import SwapScore, choose_layers
from hybridizer.mixers.choose import score_swaps
from hybridizer.mixers.control import score_hybrid
from hybridizer.mixers.fit import as_mixes, fit_mixers, new_mixers
from hybridizer.mixers.stream import find_attention, swapped
from hybridizer.models.parts import find_parts, run_model
from support.toys import fresh

GENERATOR = torch.Generator().manual_seed(3)
IDS, SCORED = (torch.randint(0, 18, (rows, 20), generator=GENERATOR) for rows in (8, 3))
ATTENTION = AttentionShape(hidden_size=48, num_heads=4, num_kv_heads=4, head_dim=12)
SHAPE = mamba2_shape(ATTENTION, chunk_size=8)


@pytest.fixture(scope="module")
def toy():
    model = fresh()
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.mul_(20)
    model.model.layers[2].self_attn.o_proj.weight.mul_(1e-3)  # hardly used
    return model, find_parts(model)


def log2_probs(model):
    with torch.no_grad():
        return torch.log_softmax(run_model(model, SCORED), dim=-1) / math.log(2)


def bits(log_p):
    return -float(log_p[:, :-1].gather(-1, SCORED[:, 1:, None]).mean())


def test_a_layer_swapped_alone_scores_as_a_whole_run_with_it_swapped(toy):
    model, parts = toy
    make = new_mixers(parts, "mamba2", "attention", SHAPE, ATTENTION, 0)
    scores = score_swaps(model, parts, IDS, SCORED, [0, 1, 2, 3], make)
    donor = log2_probs(model)
    for score in scores:
        fitted = as_mixes(fit_mixers(model, parts, IDS, [score.layer], make))
        for mix, more, kl in (
            (fitted[score.layer], score.bits, score.kl),
            (torch.zeros_like, score.bits_dropped, score.kl_dropped),
        ):
            with swapped(parts, {score.layer: mix}):
                found = log2_probs(model)
            assert more == pytest.approx(bits(found) - bits(donor), abs=1e-5)
            assert kl == pytest.approx(float((donor.exp2() * (donor - found)).sum(-1).mean()), abs=1e-5)
            assert kl > -1e-6
        whole = score_hybrid(model, parts, SCORED, fitted)
        assert whole.bits - whole.donor_bits == pytest.approx(score.bits, abs=1e-5)
        assert whole.bits_dropped - whole.donor_bits == pytest.approx(score.bits_dropped, abs=1e-5)
        assert (whole.kl, whole.kl_dropped) == pytest.approx((score.kl, score.kl_dropped), abs=1e-5)
        assert whole.helps == score.helps
    assert min(scores, key=lambda score: score.kl_dropped).layer == 2
    assert 2 in choose_layers("kl", 4, 1, scores=scores).swapped
    assert not any("forward" in vars(find_attention(parts, layer)) for layer in range(4))


def score(layer, bits=0.0, kl=0.1, kl_dropped=1.0):
    return SwapScore(layer, bits, 1.0, kl, kl_dropped, 0.5)


@pytest.mark.parametrize(
    ("strategy", "kept", "more"),
    [
        ("uniform", (1, 4, 6), {}),
        ("trace", (0, 2, 5), {"evidence": [5, 0, 4, 0, 0, 3, 2, 1]}),
        ("kl", (1, 4, 7), {"scores": [score(layer, kl=layer in (1, 4, 7)) for layer in range(8)]}),
        ("leave-one-out", (0, 2, 3), {"scores": [score(layer, bits=layer in (2, 3)) for layer in range(8)]}),
        ("leave-one-out", (2, 3, 7), {"scores": [score(layer, bits=layer == 2) for layer in (0, 1, 2, 4, 5, 6)]}),
    ],
)
def test_each_strategy_keeps_the_layers_that_its_evidence_names(strategy, kept, more):
    choice = choose_layers(strategy, 8, 3, **more)
    assert choice.kept == kept
    assert choice.swapped == tuple(layer for layer in range(8) if layer not in kept)
    assert len(choice.evidence) == (0 if strategy == "uniform" else 8)


def test_random_layers_are_drawn_by_the_seed():
    draws = {seed: choose_layers("random", 8, 3, seed=seed).kept for seed in range(8)}
    assert draws[0] == choose_layers("random", 8, 3, seed=0).kept
    assert len(set(draws.values())) > 3 and all(len(set(kept)) == 3 for kept in draws.values())


def test_mixers_that_do_no_better_than_nothing_are_named():
    scores = [score(0), score(1, kl=2.0), score(2, kl=3.0), score(3)]
    choice = choose_layers("kl", 4, 1, scores=scores)
    assert choice.kept == (2,) and choice.useless == (1,)
    assert choice.to_json()["scores"][1]["kl_dropped"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("unifrom", 8, 3), "Did you mean 'uniform'"),
        (("uniform", 8, 0), "0 of 8 layers are to keep"),
        (("uniform", 8, 8), "8 of 8 layers are to keep"),
        (("trace", 8, 3), "0 numbers of evidence for 8 layers"),
        (("kl", 8, 3), "no layer was measured"),
    ],
)
def test_what_cannot_be_chosen_is_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        choose_layers(*arguments)
