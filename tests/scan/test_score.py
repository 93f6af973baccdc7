"""Scores of compositions: equal to those of written splices, and the same whether a prefix is reused or not."""

import numpy as np
import pytest
import torch

from hybridizer.core.errors import InputError, PlanError
from hybridizer.evaluate.bits import score_documents
from hybridizer.models.load import load_tokenizer
from hybridizer.models.parts import find_parts
from hybridizer.scan.score import Items, Scorer, encode_text, prepare_items
from hybridizer.trace.probes import Probe, ProbeSet
from support.marks import slow_except
from support.prove import build_splice, load
from support.tiny import make_tiny, tiny_tokenizer

# gemma2 computes its logits from more than its head; jamba and qwen3_next are hybrids; lfm2 has convolutions.
FAMILIES = slow_except(["llama", "gemma2", "gemma3_text", "qwen3_next", "jamba", "lfm2"], "llama", "gemma2", "lfm2")
PROBES = tuple(Probe(f"{'the cat ' * (i % 3 + 1)}{i} is ", "abcd"[i % 4] if i % 5 else None) for i in range(17))
DOCUMENTS = [f"document {i} says " + "the cat sat on the mat " * (i % 4 + 1) for i in range(9)]
ORDER = [(0, 0), (0, 1), (1, 2), (1, 3)]


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    tokenizer = load_tokenizer(tiny_tokenizer(tmp_path_factory.mktemp("tokenizer") / "t"))
    text = encode_text("cats", tokenizer, DOCUMENTS)
    return prepare_items(tokenizer, ProbeSet("cats", "", PROBES), [text], context=48, batch_size=4)


def two(model_type, folder):
    donors = [make_tiny(model_type, folder / name, seed=seed) for seed, name in enumerate("ab")]
    return donors, {name: with_parts(donor) for name, donor in zip("ab", donors, strict=True)}


def with_parts(folder):
    model = load(folder)
    return model, find_parts(model)


def named(order):
    return [("ab"[which], layer) for which, layer in order]


def assert_same(one, other):
    for name in ("bits", "hit", "target_prob"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_score_of_a_composition_is_that_of_the_written_splice_bit_for_bit(model_type, tmp_path, items):
    donors, models = two(model_type, tmp_path)
    order = ORDER if model_type != "jamba" else [(0, 0), (0, 1), (1, 0), (1, 1)]  # jamba's kinds have a period
    scorer = Scorer(models, "a", items)
    scorer.keep(scorer.host_path)
    found = scorer.score(named(order))
    written = Scorer({"a": with_parts(build_splice(donors, order, tmp_path, "written"))}, "a", items)
    assert_same(found, written.score(written.host_path))
    assert len(set(found.bits)) == len(DOCUMENTS)
    assert np.isnan(found.hit).sum() == sum(probe.target is None for probe in PROBES)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_score_from_a_kept_prefix_is_that_of_a_full_run_bit_for_bit(model_type, tmp_path, items):
    _, models = two(model_type, tmp_path)
    reusing, full = Scorer(models, "a", items), Scorer(models, "a", items)
    assert_same(reusing.keep(reusing.host_path), full.score(full.host_path))
    assert reusing.num_layer_tokens == full.num_layer_tokens
    host = list(full.host_path)
    for layers in (host[:3], [*host[:2], *host[1:]], [*host[:3], ("b", 3)], [("b", 0), *host[1:]], host[:2]):
        try:
            expected = full.score(layers)
        except PlanError:  # an order that jamba's config cannot hold
            with pytest.raises(PlanError):
                reusing.score(layers)
            continue
        assert_same(reusing.score(layers), expected)
    assert reusing.num_passes == full.num_passes
    assert reusing.num_layer_tokens < full.num_layer_tokens


def test_a_composition_that_shares_all_but_its_last_layer_runs_that_one_layer(tmp_path, items):
    _, models = two("llama", tmp_path)
    scorer = Scorer(models, "a", items)
    scorer.keep(scorer.host_path)
    per_layer = scorer.num_layer_tokens // 4
    scorer.score([*scorer.host_path[:3], ("b", 3)])
    assert scorer.num_layer_tokens == 5 * per_layer
    scorer.score([*scorer.host_path[:3], ("b", 3)])  # scored before: nothing runs
    assert scorer.num_layer_tokens == 5 * per_layer and scorer.num_passes == 2


def test_the_host_scores_as_evaluation_and_tracing_score_it(tmp_path, items):
    _, models = two("llama", tmp_path)
    model, parts = models["a"]
    score = Scorer(models, "a", items).score([("a", layer) for layer in range(4)])
    np.testing.assert_array_equal(score.bits, score_documents(model, parts, items.texts[0], 48))
    for index, prompt in enumerate(items.prompts):
        if prompt.answer is not None:
            with torch.no_grad():
                probs = model(input_ids=torch.tensor([prompt.ids])).logits[0, -1].double().softmax(-1)
            assert score.hit[index] == float(probs.argmax() == prompt.answer)
            assert score.target_prob[index] == pytest.approx(float(probs[prompt.answer]), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.4, 0.8, 1.0])
def test_kept_states_stay_within_their_limit_and_change_no_score(tmp_path, items, share):
    _, models = two("llama", tmp_path)
    full = Scorer(models, "a", items)
    full.keep(full.host_path)
    limited = Scorer(models, "a", items, max_state_bytes=int(share * full.num_state_bytes))
    limited.keep(limited.host_path)
    assert limited.num_state_bytes <= share * full.num_state_bytes
    assert (limited.num_state_bytes > 0) == (share > 0)
    layers = [*full.host_path[:3], ("b", 3)]
    assert_same(limited.score(layers), full.score(layers))
    full.forget()
    assert full.num_state_bytes == 0


def test_only_the_cuts_that_are_asked_for_are_kept(tmp_path, items):
    _, models = two("llama", tmp_path)
    scorer, all_cuts = Scorer(models, "a", items), Scorer(models, "a", items)
    scorer.keep(scorer.host_path, cuts=[2])
    all_cuts.keep(all_cuts.host_path)
    assert 3 * scorer.num_state_bytes == all_cuts.num_state_bytes


def test_items_without_text_or_without_probes_are_scored_and_none_at_all_refused(tmp_path, items):
    _, models = two("llama", tmp_path)
    path = [("a", layer) for layer in range(4)]
    both = Scorer(models, "a", items).score(path)
    text = Scorer(models, "a", Items(items.texts, (), 48)).score(path)
    probes = Scorer(models, "a", Items((), items.prompts, 48, 4)).score(path)
    np.testing.assert_array_equal(text.bits, both.bits)
    np.testing.assert_array_equal(probes.hit, both.hit)
    assert text.hit.size == probes.bits.size == 0
    with pytest.raises(InputError, match="neither probes nor text"):
        prepare_items(None, None, [])
