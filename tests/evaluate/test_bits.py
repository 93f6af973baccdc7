"""Bits of a document against transformers' own logits, one document and one window after the other."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from hybridizer.core.errors import InputError, RunError
from hybridizer.evaluate.bits import cut_windows, num_scored_tokens, score_documents
from support.scored_models import model_and_parts, text_of

FAMILIES = {"llama": {}, "gemma2": {}, "granite": {"logits_scaling": 2.0}, "cohere": {}, "mamba2": {}, "qwen3_next": {}}
LENGTHS = (5, 40, 17, 16, 2, 40, 33, 24)


def plain_bits(model, ids, begin=0, first=1):
    """-log2 p of ids[first:], given ids[begin:], written down as it is defined."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(ids[begin:])[None], use_cache=False).logits[0].double()
    log_p = torch.log_softmax(logits, dim=-1)
    return -sum(float(log_p[at - begin - 1, ids[at]]) for at in range(first, len(ids))) / math.log(2)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_bits_are_those_of_the_models_own_logits(model_type):
    model, parts = model_and_parts(model_type, **FAMILIES[model_type])
    text = text_of(*LENGTHS)
    expected = [plain_bits(model, document.tokens.tolist()) for document in text.documents]
    # float32 losses of up to 40 tokens against float64 ones
    np.testing.assert_allclose(score_documents(model, parts, text, 64), expected, rtol=1e-5)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "mamba2"])
def test_long_documents_are_scored_with_at_least_half_a_window_before_each_token(model_type):
    model, parts = model_and_parts(model_type)
    text = text_of(41, 16, 12)
    ids = text.documents[0].tokens.tolist()
    # windows of 16 over 41 tokens: 0..16, 8..24, 16..32, 24..40, and 25..41 for the last token
    expected = plain_bits(model, ids[:16])
    expected += sum(plain_bits(model, ids[:end], begin, first) for begin, first, end in
                    [(8, 16, 24), (16, 24, 32), (24, 32, 40), (25, 40, 41)])  # fmt: skip
    found = score_documents(model, parts, text, 16)
    assert found[0] == pytest.approx(expected, rel=1e-5)
    assert found[1:] == pytest.approx([plain_bits(model, d.tokens.tolist()) for d in text.documents[1:]], rel=1e-5)


@pytest.mark.parametrize("model_type", ["llama", "mamba2"])
def test_every_window_begins_with_what_texts_begin_with(model_type):
    model, parts = model_and_parts(model_type)
    text = replace(text_of(41), prefix=(3, 4))
    ids = text.documents[0].tokens.tolist()
    # windows of 16: 0..16, then 3, 4 and 14 tokens of the document of which the last 7 are scored, and one for the rest
    expected = plain_bits(model, ids[:16])
    for begin, first, end in [(9, 16, 23), (16, 23, 30), (23, 30, 37), (27, 37, 41)]:
        expected += plain_bits(model, [3, 4, *ids[begin:end]], first=2 + first - begin)
    assert score_documents(model, parts, text, 16)[0] == pytest.approx(expected, rel=1e-5)
    assert text.identity != text_of(41).identity


def test_windows_without_room_beside_the_prefix_are_refused():
    model, parts = model_and_parts("llama")
    with pytest.raises(InputError, match="windows of 3 tokens have no room beside the 2"):
        score_documents(model, parts, replace(text_of(41), prefix=(3, 4)), 3)


@pytest.mark.parametrize("context", [2, 3, 16, 17])
@pytest.mark.parametrize("length", [2, 3, 15, 16, 17, 18, 31, 32, 33, 100])
def test_every_token_but_the_first_is_scored_once(length, context):
    windows = list(cut_windows(0, length, context))
    scored = [at for window in windows for at in range(window.first, window.end)]
    assert scored == list(range(1, length))
    for window in windows:
        assert window.end - window.begin == min(length, context)
        assert window.first > window.begin
        assert window.begin == 0 or window.first - window.begin >= context / 2


@pytest.mark.parametrize("model_type", ["llama", "mixtral", "mamba2", "rwkv", "jamba"])
def test_a_document_alone_has_the_bits_it_has_among_others(model_type):
    model, parts = model_and_parts(model_type)
    text = text_of(*LENGTHS)
    alone = [float(score_documents(model, parts, text_alone(text, i), 24)[0]) for i in range(len(LENGTHS))]
    np.testing.assert_allclose(score_documents(model, parts, text, 24), alone, rtol=1e-5)


def text_alone(text, index):
    return type(text)(text.name, text.role, (text.documents[index],), 1, len(text.documents[index].tokens))


def test_an_even_model_needs_as_many_bits_as_the_vocabulary_has():
    model, parts = model_and_parts("llama")
    parts.head.weight.zero_()
    assert score_documents(model, parts, text_of(3, 11), 8).tolist() == pytest.approx([2 * 8, 10 * 8])


def test_statistics_are_float32_whatever_the_weights_are():
    model, parts = model_and_parts("llama")
    model.bfloat16()
    text = text_of(40)
    ids = torch.tensor(text.documents[0].tokens)[None]
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].double()
    expected = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum") / math.log(2)
    # the bfloat16 logits are the model's own; a softmax in bfloat16 would be off by 1e-3
    assert score_documents(model, parts, text, 64)[0] == pytest.approx(float(expected), rel=1e-5)


def test_progress_ends_at_the_number_of_tokens_announced():
    model, parts = model_and_parts("llama")
    text, seen = text_of(41, 16, 3), []
    score_documents(model, parts, text, 16, seen.append)
    assert sum(seen) == num_scored_tokens(text, 16) == 5 * 16 + 16 + 3


def test_token_ids_without_an_embedding_are_refused():
    model, parts = model_and_parts("llama")
    text = text_of(8)
    text.documents[0].tokens[3] = 256
    with pytest.raises(InputError, match=r"text 'text': token 256, and the model has embeddings for 256"):
        score_documents(model, parts, text, 64)


def test_losses_that_are_no_numbers_end_the_run_with_a_sentence():
    model, parts = model_and_parts("llama")
    parts.embedding.weight[7] = float("nan")
    text = text_of(9, 9, 9)
    for document in text.documents:
        document.tokens[document.tokens == 7] = 8
    text.documents[1].tokens[4] = 7
    with pytest.raises(RunError, match=r"not a number on 1 of 3 documents, the first being 2"):
        score_documents(model, parts, text, 64)
