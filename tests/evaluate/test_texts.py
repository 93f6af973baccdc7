"""Which documents are scored: those that training never saw, the same ones in every arm, and no more than asked for."""

import itertools

import numpy as np
import pytest

from hybridizer.core.errors import InputError
from hybridizer.core.progress import SilentMonitor
from hybridizer.data.batches import Source, TrainingData
from hybridizer.evaluate.texts import Document, TextSet, general_text, heldout_texts, trained_keys
from support.monitors import Notes
from support.sections import train_section
from support.token_texts import END, ByteEncoder, token_file_of

TEXTS = [f"{i:03d} " + "x" * (i % 23) for i in range(200)]


def source_of(texts, folder, name="a"):
    return Source(name, (token_file_of(texts, folder, name),))


def words(text_set):
    """The documents of a set as text; all end with the end token except one that is cut."""
    return [bytes(token for token in document.tokens if token != END).decode() for document in text_set.documents]


def heldout(source, share=0.1, **kwargs):
    (found,) = heldout_texts([source], share, SilentMonitor(), **kwargs)
    return found


def test_training_and_held_out_documents_are_all_documents_and_share_none(tmp_path):
    source = source_of(TEXTS, tmp_path)
    data = TrainingData([source], train_section(tokens=20_000, seq_len=64, global_batch_size=4, heldout_ratio=0.1))
    seen = set()
    for step in range(data.num_steps):
        for ids, positions in zip(*(getattr(data.batches(step)[0], k) for k in ("input_ids", "position_ids"))):  # noqa: B905
            starts = [*(positions == 0).nonzero()[:, 0].tolist(), len(ids)]
            seen |= {bytes(t for t in ids[a:b].tolist() if t != END) for a, b in itertools.pairwise(starts)}
    scored = {text.encode() for text in words(heldout(source))}
    assert scored and not scored & seen
    assert scored | seen >= {text.encode() for text in TEXTS}


def test_the_two_halves_of_the_held_out_documents_share_none_and_are_all_of_them(tmp_path):
    source = source_of(TEXTS, tmp_path)
    first, second = (set(words(heldout(source, 0.5, half=half))) for half in (0, 1))
    assert first and second and not first & second
    assert first | second == set(words(heldout(source, 0.5)))


def test_documents_bring_their_tokens_and_their_bytes(tmp_path):
    found = general_text("news", source_of(["naïve", "abc"], tmp_path), np.empty(0, np.uint64))
    documents = {bytes(d.tokens[:-1].tolist()).decode(): d.num_bytes for d in found.documents}
    assert documents == {"abc": 3, "naïve": 6}
    assert (found.name, found.role, found.num_tokens, found.num_bytes) == ("news", "general", 11, 9)


def test_the_choice_under_a_limit_is_a_question_of_the_texts_alone(tmp_path):
    one = heldout(source_of(TEXTS, tmp_path), 0.5, max_tokens=200)
    two = heldout(source_of(TEXTS[::-1], tmp_path, "b"), 0.5, max_tokens=200)
    assert words(one) == words(two) and one.identity == two.identity
    assert one.num_tokens == 200 and len(one.documents) < one.documents_available
    everything = heldout(source_of(TEXTS, tmp_path), 0.5)
    assert words(everything)[: len(one.documents) - 1] == words(one)[:-1]
    assert one.tokens_available == everything.num_tokens
    assert one.identity != everything.identity


def test_one_long_document_is_cut_and_its_bytes_with_it(tmp_path):
    found = general_text("book", source_of(["a" + "é" * 500], tmp_path), np.empty(0, np.uint64), max_tokens=91)
    assert [d.tokens.tolist() for d in found.documents] == [[*("a" + "é" * 45).encode()]]
    assert found.num_bytes == round(1001 * 91 / 1002)
    assert (found.documents_available, found.tokens_available) == (1, 1002)


def test_a_document_that_occurs_twice_counts_once(tmp_path):
    sources = Source("both", (token_file_of(["ab", "cd", "ab"], tmp_path), token_file_of(["cd", "ef"], tmp_path, "b")))
    found = general_text("g", sources, np.empty(0, np.uint64))
    assert sorted(words(found)) == ["ab", "cd", "ef"] and found.documents_available == 3


def test_general_text_leaves_out_what_training_sees_and_says_how_much(tmp_path):
    source = source_of(TEXTS, tmp_path)
    other = source_of([*TEXTS, "new", "newer"], tmp_path, "b")
    held = heldout(source)
    found = general_text("g", other, trained_keys([source], 0.1))
    assert sorted(words(found)) == sorted([*words(held), "new", "newer"])
    assert found.documents_trained == 200 - len(held.documents)
    with pytest.raises(InputError, match=r"(?s)evaluate.bits_per_byte 'g': no document .*train.data"):
        general_text("g", source, trained_keys([source], 0.0))


def test_a_source_without_held_out_documents_is_noted_and_has_no_set(tmp_path):
    monitor = Notes()
    sources = [source_of(["only one"], tmp_path), source_of(TEXTS, tmp_path, "many")]
    found = heldout_texts(sources, 0.1, monitor)
    assert [(text.name, text.role) for text in found] == [("many", "in-domain")]
    (note,) = monitor.notes
    assert note.startswith("a: no in-domain figure: none of its 1 documents is held out at 0.1; raise")


def test_documents_of_one_token_cannot_be_scored(tmp_path):
    class Bare(ByteEncoder):
        vocab_size, identity = 256, "bare"

        def encode(self, texts):
            return [list(text.encode()) for text in texts]

    source = Source("a", (token_file_of(["x", "yz"], tmp_path, encoder=Bare()),))
    assert words(general_text("g", source, np.empty(0, np.uint64))) == ["yz"]


def test_sets_of_other_documents_or_sizes_have_another_identity():
    cuts = [([1, 2], [3, 4]), ([1, 2], [3, 5]), ([1, 2],), ([1, 2, 3, 4],), ([1, 2, 3], [4])]
    sets = [[Document(np.array(tokens), 2) for tokens in cut] for cut in cuts]
    sets.append([Document(np.array([1, 2]), 3)])
    assert len({TextSet("t", "general", tuple(documents), 2, 4).identity for documents in sets}) == 6
