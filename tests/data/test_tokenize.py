import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from hybridizer.core.errors import CheckpointError
from hybridizer.core.progress import SilentMonitor
from hybridizer.data.documents import BadRecords
from hybridizer.data.tokenize import open_token_file, tokenise_files, write_token_file
from hybridizer.recipe.models import DataEntry
from support.token_texts import BEGIN, END, BeginningEncoder, ByteEncoder, token_file_of


def tokenise(paths, folder, encoder=None):
    return tokenise_files(paths, encoder or ByteEncoder(), DataEntry(path="*"), folder / "cache", SilentMonitor())


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
    settings = DataEntry(path="*", max_document_bytes=7 if change == "settings" else 10_000_000)
    (other,) = tokenise_files([tmp_path / "a.jsonl"], encoder, settings, tmp_path / "cache", SilentMonitor())
    assert other.folder != first.folder


def test_bad_records_are_remembered_by_the_cache(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "ab"}\nbroken')
    for encoder in (ByteEncoder(), Unwanted()):
        (token_file,) = tokenise([tmp_path / "a.jsonl"], tmp_path, encoder)
        assert token_file.bad.counts == {"not JSON": 1}
        assert token_file.bad.listed == {"not JSON": [f"{tmp_path}/a.jsonl:2"]}


def test_a_writer_that_dies_leaves_nothing_that_looks_finished(tmp_path):
    def dying():
        yield "ab"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_token_file(tmp_path / "s", "x", dying(), ByteEncoder(), BadRecords(), SilentMonitor(), 2)
    assert list(tmp_path.iterdir()) == []


def test_equal_bytes_of_two_kinds_of_file_are_two_texts(tmp_path):
    for suffix in (".jsonl", ".txt"):
        (tmp_path / f"a{suffix}").write_text('{"text": "ab"}')
    found = {suffix: tokenise([tmp_path / f"a{suffix}"], tmp_path)[0] for suffix in (".jsonl", ".txt")}
    assert found[".jsonl"].tokens.tolist() == [*b"ab", END]
    assert found[".txt"].tokens.tolist() == [*b'{"text": "ab"}', END]


def test_small_files_share_a_token_file_and_open_no_file_for_good(tmp_path):
    paths = [tmp_path / f"{i:03d}.txt" for i in range(300)]
    for path in paths:
        path.write_text(f"text {path.stem}")
    before = len(list(Path("/proc/self/fd").iterdir()))
    (token_file,) = tokenise(paths, tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert token_file.num_documents == 300
    assert token_file.tokens.tolist()[-9:] == [*b"text 299", END]


def test_large_files_are_tokenised_by_themselves_and_stay_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("hybridizer.data.tokenize.GROUP_BYTES", 10)
    monkeypatch.setattr("hybridizer.data.tokenize.MAPPED_BYTES", 200)
    for name, size in (("a", 4), ("b", 5), ("c", 90), ("d", 3), ("e", 8)):
        (tmp_path / f"{name}.txt").write_text("x" * size)
    found = tokenise(sorted(tmp_path.glob("*.txt")), tmp_path)
    assert [file.num_documents for file in found] == [2, 1, 1, 1]
    assert isinstance(found[1].tokens, np.memmap) and not isinstance(found[0].tokens, np.memmap)


def test_a_file_without_a_usable_document_is_counted_and_the_others_are_read(tmp_path):
    (tmp_path / "a.jsonl").write_text("broken\n")
    (tmp_path / "b.jsonl").write_text('{"text": "ab"}')
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "d.txt").write_bytes(b"")
    (token_file,) = tokenise(sorted(tmp_path.glob("?.*")), tmp_path)
    assert token_file.tokens.tolist() == [*b"ab", END]
    assert token_file.bad.counts == {"not JSON": 1, "without a usable document": 3, "not UTF-8": 1, "empty": 1}
    listed = token_file.bad.listed["without a usable document"]
    assert [Path(place).name for place in listed] == ["a.jsonl", "c.txt", "d.txt"]


def test_what_every_text_begins_with_is_remembered(tmp_path):
    token_file = token_file_of(["ab"], tmp_path, encoder=BeginningEncoder())
    assert token_file.prefix == (BEGIN,)
    assert token_file.tokens.tolist() == [BEGIN, *b"ab", END]


@pytest.mark.parametrize("damage", ["ends.npy", "token_file.json"])
def test_a_damaged_cache_is_made_again(tmp_path, damage):
    first = token_file_of(["ab", "cd"], tmp_path)
    place = first.folder / damage
    place.write_bytes(b"{}" if damage.endswith("json") else place.read_bytes()[:-1])
    again = token_file_of(["ab", "cd"], tmp_path)
    assert again.tokens.tolist() == [*b"ab", END, *b"cd", END]


def test_damaged_arrays_are_refused(tmp_path):
    token_file = token_file_of(["ab", "cd"], tmp_path)
    whole = (token_file.folder / "ends.npy").read_bytes()
    (token_file.folder / "ends.npy").write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match="damaged token cache"):
        open_token_file(token_file.folder)
    np.save(token_file.folder / "ends.npy", np.array([2, 5]))
    with pytest.raises(CheckpointError, match="its record has 6 tokens in 2 documents"):
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


def test_the_temporary_folder_of_a_killed_run_is_removed(tmp_path):
    left = tmp_path / "cache" / ".tokens.01234567.partial"
    left.mkdir(parents=True)
    os.utime(left, (0, 0))
    assert token_file_of(["ab"], tmp_path).folder.parent == left.parent
    assert not left.exists()
