import hashlib

import numpy as np
import pytest

from hybridizer.core.errors import CheckpointError, InputError
from hybridizer.core.progress import SilentMonitor
from hybridizer.data.documents import BadRecords
from hybridizer.data.tokenize import ReadSettings, open_token_file, tokenise_file, write_token_file
from support.token_texts import END, ByteEncoder, token_file_of


class Unwanted(ByteEncoder):
    def encode(self, texts):
        raise AssertionError("tokenised again")


def test_a_shard_holds_the_documents_their_keys_and_sizes(tmp_path):
    token_file = token_file_of(["ab", "三"], tmp_path)
    assert token_file.tokens.tolist() == [*b"ab", END, *"三".encode(), END]
    assert token_file.tokens.dtype == np.uint16
    assert token_file.ends.tolist() == [3, 7]
    assert token_file.sizes.tolist() == [2, 3]
    assert token_file.keys[0] == int.from_bytes(hashlib.sha256(b"ab").digest()[:8], "little")
    assert isinstance(token_file.tokens, np.memmap)


def test_the_same_file_is_tokenised_once(tmp_path):
    first = token_file_of(["ab"], tmp_path)
    again = token_file_of(["ab"], tmp_path, name="copy", encoder=Unwanted())
    assert again.folder == first.folder


@pytest.mark.parametrize("change", ["content", "tokenizer", "settings"])
def test_what_decides_the_tokens_decides_the_cache(tmp_path, change):
    first = token_file_of(["ab"], tmp_path)
    encoder = ByteEncoder()
    encoder.identity = "other" if change == "tokenizer" else "bytes"
    if change == "content":
        (tmp_path / "a.jsonl").write_text('{"text": "abc"}')
    settings = ReadSettings(max_document_bytes=7 if change == "settings" else 10_000_000)
    other = tokenise_file(tmp_path / "a.jsonl", encoder, settings, tmp_path / "cache", SilentMonitor())
    assert other.folder != first.folder


def test_bad_records_are_remembered_by_the_cache(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "ab"}\nbroken')
    for encoder in (ByteEncoder(), Unwanted()):
        token_file = tokenise_file(tmp_path / "a.jsonl", encoder, ReadSettings(), tmp_path / "cache", SilentMonitor())
        assert token_file.bad.counts == {"not JSON": 1}
        assert token_file.bad.listed == {"not JSON": [f"{tmp_path}/a.jsonl:2"]}


def test_a_writer_that_dies_leaves_nothing_that_looks_finished(tmp_path):
    def dying():
        yield "ab"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_token_file(tmp_path / "s", "x", dying(), ByteEncoder(), BadRecords(), SilentMonitor(), 2)
    assert list(tmp_path.iterdir()) == []


def test_a_file_without_a_usable_document_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text("broken\n")
    with pytest.raises(InputError, match=r"no usable document; left out: \{'not JSON': 1\}"):
        tokenise_file(tmp_path / "a.jsonl", ByteEncoder(), ReadSettings(), tmp_path / "cache", SilentMonitor())


def test_damaged_arrays_are_refused(tmp_path):
    token_file = token_file_of(["ab", "cd"], tmp_path)
    whole = (token_file.folder / "ends.npy").read_bytes()
    (token_file.folder / "ends.npy").write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match="damaged token cache"):
        open_token_file(token_file.folder)
    np.save(token_file.folder / "ends.npy", np.array([2, 5]))
    with pytest.raises(CheckpointError, match="its record says 6 tokens in 2 documents"):
        open_token_file(token_file.folder)


def test_large_vocabularies_take_four_bytes(tmp_path):
    encoder = ByteEncoder()
    encoder.vocab_size = 2**16 + 1
    assert token_file_of(["ab"], tmp_path, encoder=encoder).tokens.dtype == np.uint32


def test_a_shard_finished_by_another_process_meanwhile_is_left_as_it_is(tmp_path):
    first = token_file_of(["ab"], tmp_path)
    inode = (first.folder / "tokens.npy").stat().st_ino
    write_token_file(first.folder, "x", ["ab"], ByteEncoder(), BadRecords(), SilentMonitor(), 2)
    assert (first.folder / "tokens.npy").stat().st_ino == inode
    assert [path.name for path in first.folder.parent.iterdir()] == [first.folder.name]
