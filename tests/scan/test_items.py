"""What models are scored on: whole groups of prompts, beginnings of documents, no item for two purposes."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from hybridizer.core.errors import InputError
from hybridizer.data.batches import Source
from hybridizer.evaluate.texts import GENERAL, Document, TextSet
from hybridizer.scan.items import (
    divide_items,
    draw_probes,
    encode_beginnings,
    group_prompts,
    take_beginnings,
)
from hybridizer.scan.score import Items
from hybridizer.trace.probes import Probe, ProbeSet, builtin_probes
from hybridizer.trace.prompts import Prompt

WORDS = ["hot", "cold", "up", "down", "big", "small"]
PAIRS = [Probe(f"the opposite of {a} is", b) for a, b in zip(WORDS, [WORDS[i ^ 1] for i in range(6)], strict=True)]


class Bytes:
    """An encoder of one token per byte, with a BOS token before every text."""

    prefix = (1,)
    vocab_size, identity = 256, "bytes"

    def encode(self, texts):
        return [[1, *text.encode()] for text in texts]


def make_items(num_documents, num_prompts, answers=True):
    documents = tuple(Document(np.array([1, number]), 1 + number) for number in range(num_documents))
    prompts = tuple(Prompt((number, 2), None, 3 if answers else None) for number in range(num_prompts))
    return Items((TextSet("text", GENERAL, documents, num_documents, 2 * num_documents),), prompts)


def test_words_that_are_asked_for_both_ways_are_one_group():
    assert group_prompts(PAIRS) == (0, 0, 2, 2, 4, 4)
    other = Probe("warm means lukewarm\nhot versus", "cold")
    assert group_prompts([*PAIRS, other])[-1] == 0, "another template of the same pair"
    assert group_prompts([Probe("a", None), Probe("b", None)]) == (0, 1)


def test_clusters_that_are_named_are_the_groups_whatever_the_words():
    named = [replace(probe, cluster=name) for probe, name in zip(PAIRS, "xyxyzz", strict=True)]
    assert group_prompts(named) == (0, 1, 0, 1, 4, 4)
    assert group_prompts([named[0], *PAIRS[1:]]) == (0, 1, 2, 2, 4, 4), "words count among those without a cluster"


@pytest.mark.parametrize("name", ["antonyms-en", "antonyms-zh"])
def test_the_built_in_probes_are_pairs(name):
    groups = group_prompts(builtin_probes(name).probes)
    assert 0.4 * len(groups) <= len(set(groups)) <= 0.55 * len(groups)


def test_probes_are_drawn_in_whole_groups_by_the_seed():
    probes = ProbeSet("p", "", (*PAIRS, Probe("no answer")))
    drawn = draw_probes(probes, 3, seed=0)
    assert len(drawn.probes) == 4 and set(drawn.probes) < set(PAIRS)
    assert sorted(np.bincount(group_prompts(drawn.probes)).tolist())[-2:] == [2, 2]
    assert draw_probes(probes, 99, seed=0).probes == tuple(PAIRS)
    assert len({draw_probes(probes, 2, seed=seed).probes for seed in range(9)}) > 1


def test_documents_are_divided_for_a_search_by_bits_and_all_prompts_are_for_the_test():
    found = divide_items(make_items(36, 6), PAIRS, "bits", seed=0)
    parts = [found.screen, found.search, found.test]
    assert [part.num_documents for part in parts] == [4, 16, 16]
    assert [len(part.groups) for part in parts] == [0, 0, 6]
    seen = [int(document.tokens[1]) for part in parts for document in part.items.texts[0].documents]
    assert sorted(seen) == list(range(36))


def test_groups_are_divided_for_a_search_by_accuracy_and_all_documents_are_for_the_test():
    found = divide_items(make_items(5, 6), PAIRS, "accuracy", seed=0)
    assert found.screen is None and (found.search.num_documents, found.test.num_documents) == (0, 5)
    assert (len(found.search.groups), len(found.test.groups)) == (4, 2)
    assert not set(found.search.groups) & set(found.test.groups)
    assert found.search.group_sizes.tolist() == [2, 2]


@pytest.mark.parametrize(("items", "by"), [(make_items(1, 6), "bits"), (make_items(9, 6, answers=False), "accuracy")])
def test_too_few_items_for_the_search_are_refused(items, by):
    with pytest.raises(InputError, match=f"too few for a search by {by}"):
        divide_items(items, PAIRS, by, seed=0)


def test_beginnings_are_cut_and_their_bytes_counted_in_proportion():
    text = encode_beginnings("t", ["abc", "x" * 19, ""], Bytes(), 9, 10)
    assert [len(document.tokens) for document in text.documents] == [4, 10]  # one token alone predicts nothing
    assert [document.num_bytes for document in text.documents] == [3, round(19 * 10 / 20)]
    assert text.prefix == (1,)


def test_documents_are_spread_over_all_of_them():
    text = encode_beginnings("t", [f"{number:02d}" for number in range(100)], Bytes(), 4, 10)
    assert [bytes(document.tokens[1:].tolist()).decode() for document in text.documents] == ["00", "25", "50", "75"]


def test_equal_documents_of_a_source_count_once_and_the_order_is_that_of_their_content():
    def file(keys, rows):
        tokens = np.concatenate([np.array(row) for row in rows])
        return SimpleNamespace(
            keys=np.array(keys, np.uint64), tokens=tokens, ends=np.cumsum([len(row) for row in rows]),
            sizes=np.array([10 * len(row) for row in rows]), num_documents=len(rows),
        )  # fmt: skip

    source = Source("s", (file([5, 2], [[1, 2, 3], [4, 5]]), file([2, 9], [[4, 5], [6, 7, 8, 9]])))
    text = take_beginnings(source, Bytes(), 9, 3)
    assert [document.tokens.tolist() for document in text.documents] == [[4, 5], [1, 2, 3], [6, 7, 8]]
    assert [document.num_bytes for document in text.documents] == [20, 30, 30]
    assert len(take_beginnings(source, Bytes(), 2, 3).documents) == 2


def test_no_item_of_a_group_is_lost_when_prompts_without_an_answer_are_left_out():
    items = make_items(4, 6)
    prompts = (replace(items.prompts[0], answer=None), *items.prompts[1:])
    found = divide_items(replace(items, prompts=prompts), PAIRS, "bits", seed=0)
    assert len(found.test.groups) == 5 and len(found.test.items.prompts) == 5


def test_the_built_in_text_fills_the_default_request():
    from hybridizer.scan.request import ScanRequest
    from hybridizer.scan.run import BUILTIN_BYTES, BYTES_PER_TOKEN
    from hybridizer.scan.score import builtin_documents

    documents = builtin_documents(BUILTIN_BYTES, BYTES_PER_TOKEN * ScanRequest.document_tokens)
    assert len(documents) >= ScanRequest.documents
