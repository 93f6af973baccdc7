"""Held-out text for several models: chosen by content, cut by bytes, the same for every tokenizer."""

import json

import numpy as np
import pytest

from hybridizer.core.errors import InputError
from hybridizer.evaluate.heldout import encode_heldout, read_heldout
from hybridizer.evaluate.request import SetEntry
from support.token_texts import BeginningEncoder, ByteEncoder

ENTRY = SetEntry("news", "*.jsonl")
TEXTS = [f"document {n} " + "word " * n for n in range(20)]


def write_texts(folder, texts=TEXTS, name="a"):
    (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


def test_the_order_of_the_files_lines_does_not_matter(tmp_path, tmp_path_factory):
    one = read_heldout(ENTRY, write_texts(tmp_path), 500)
    other = read_heldout(ENTRY, write_texts(tmp_path_factory.mktemp("other"), TEXTS[::-1]), 500)
    assert one == other and one.identity == other.identity
    assert sum(passage.num_bytes for passage in one.passages) == 500 and one.documents_available == 20
    assert one.passages[0].text != TEXTS[0] and len(one.passages) < 20


def test_equal_texts_count_once_and_a_cut_falls_between_characters(tmp_path):
    text = read_heldout(ENTRY, write_texts(tmp_path, ["好" * 10, "好" * 10, ""]), 16)
    assert [passage.text for passage in text.passages] == ["好" * 5]
    assert (text.documents_available, text.bytes_available) == (1, 30)


def test_two_tokenizers_get_the_same_documents(tmp_path):
    text = read_heldout(ENTRY, write_texts(tmp_path), 10_000)
    plain, beginning = (encode_heldout(text, encoder()) for encoder in (ByteEncoder, BeginningEncoder))
    assert [d.num_bytes for d in plain.documents] == [d.num_bytes for d in beginning.documents]
    assert beginning.prefix == (257,) and beginning.num_tokens == plain.num_tokens + 20
    assert plain.documents[0].tokens.dtype == np.int64
    assert bytes(plain.documents[3].tokens[:-1].tolist()).decode() == text.passages[3].text


def test_documents_of_one_source_are_one_group(tmp_path):
    records = [{"text": text, "site": f"site {n % 3}"} for n, text in enumerate(TEXTS)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    alone, grouped = (read_heldout(ENTRY, tmp_path, 10_000, source) for source in (None, "site"))
    assert len({passage.group for passage in alone.passages}) == 20
    for passage in grouped.passages:
        assert passage.group == f"site {TEXTS.index(passage.text) % 3}"


def test_files_without_a_document_are_refused_with_what_was_left_out(tmp_path):
    with pytest.raises(InputError, match=r"text 'news' in \*.jsonl: no usable document; left out: 1 empty"):
        read_heldout(ENTRY, write_texts(tmp_path, [" "]), 100)
