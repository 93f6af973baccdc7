import bz2
import gzip
import json
import lzma
import sys

import pytest

from hybridizer.core.errors import InputError
from hybridizer.data.documents import (
    MAX_LISTED,
    MAX_LOOKED_AT,
    BadRecords,
    find_files,
    look_for_document,
    read_documents,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FRAME = zstd.compress(b'{"text": "eins"}\n')


def read(path, text_field="text", max_bytes=1000):
    bad = BadRecords()
    return list(read_documents(path, text_field, max_bytes, bad)), bad


LINES = "\n".join(json.dumps({"text": text}) for text in ("eins", "zwei\nzwei", "三"))


@pytest.mark.parametrize(
    "suffix, pack", [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
def test_json_lines_plain_and_compressed(tmp_path, suffix, pack):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(pack(LINES.encode()))
    texts, bad = read(path)
    assert texts == ["eins", "zwei\nzwei", "三"]
    assert bad.counts == {}


def test_json_lines_compressed_with_zstandard(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstd.compress(LINES.encode()))
    assert read(path)[0] == ["eins", "zwei\nzwei", "三"]
    frames = [zstd.compress(f"{line}\n".encode()) for line in LINES.splitlines()]
    path.write_bytes(b"".join(frames))
    assert read(path)[0] == ["eins", "zwei\nzwei", "三"]


@pytest.mark.parametrize(
    "content", [b"", b"nonsense", FRAME[:-1], FRAME + FRAME[:9], FRAME + b"nonsense", FRAME + b"\0"]
)
def test_damaged_zstandard_is_refused(tmp_path, content):
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.jsonl\.zst: cannot be read"):
        read(path)


@pytest.mark.parametrize("window_log", [27, 31])
def test_zstandard_with_a_long_window_is_read(tmp_path, window_log):
    packer = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: window_log})
    path = tmp_path / "a.txt.zst"
    path.write_bytes(packer.compress(b"eins ", packer.FLUSH_BLOCK) + packer.compress(b"zwei") + packer.flush())
    assert zstd.get_frame_info(path.read_bytes()).decompressed_size is None  # else its window is as small as its text
    assert read(path)[0] == ["eins zwei"]


def test_zstandard_that_cannot_be_read_here_is_refused_with_the_package_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.txt.zst").write_bytes(FRAME)
    monkeypatch.setattr("hybridizer.data.zstd.is_installed", lambda: False)
    with pytest.raises(InputError, match=r"needs the package backports.zstd"):
        find_files("*.zst", tmp_path)


def test_a_text_file_is_one_document_without_its_byte_order_mark(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\ufeffeins\n\nzwei\n", encoding="utf-8")
    assert read(path)[0] == ["eins\n\nzwei\n"]


@pytest.mark.slow
def test_parquet_rows(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"body": ["eins", None, "zwei"], "n": [1, 2, 3]}), tmp_path / "a.parquet")
    texts, bad = read(tmp_path / "a.parquet", "body")
    assert texts == ["eins", "zwei"]
    assert bad.listed == {"no text in field 'body'": [f"{tmp_path}/a.parquet:row 2"]}
    with pytest.raises(InputError, match="no column 'text'; it has body, n"):
        read(tmp_path / "a.parquet")


def test_every_bad_record_is_counted_and_named(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [
        b'{"text": "good"}',
        b'{"text": "  "}',
        b"",
        b"{broken",
        b'{"other": "x"}',
        b'{"text": 3}',
        b'["text"]',
        b'{"text": "\xff"}',
        b'{"text": "\\ud800"}',
        json.dumps({"text": "long " * 300}).encode(),
        b"[" * 100_000,
        b'{"text": "last"}',
    ]
    path.write_bytes(b"\n".join(lines))
    texts, bad = read(path)
    assert texts == ["good", "last"]
    assert bad.counts == {
        "empty": 2,
        "not JSON": 2,
        "no text in field 'text'": 3,
        "not UTF-8": 2,
        "longer than 1000 bytes": 1,
    }
    assert bad.listed["not JSON"] == [f"{path}:4", f"{path}:11"]


def test_only_the_first_bad_records_are_listed_but_all_are_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("x\n" * 100)
    bad = read(path)[1]
    assert bad.counts == {"not JSON": 100}
    assert len(bad.listed["not JSON"]) == MAX_LISTED


def test_the_length_limit_counts_bytes_not_characters(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("三" * 400, encoding="utf-8")
    assert read(path, max_bytes=1200)[0] == ["三" * 400]
    assert read(path, max_bytes=1199)[1].counts == {"longer than 1199 bytes": 1}


@pytest.mark.parametrize(
    "name, content",
    # mtime=0: a time in the bytes would be a time in the test's name, another one in every worker.
    [("a.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)[:-9]), ("a.txt.xz", b"nonsense")],
    ids=["cut gzip", "nonsense"],
)
def test_a_damaged_file_is_refused_by_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}: cannot be read"):
        read(tmp_path / name)


def test_damaged_parquet_is_refused(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(InputError, match="damaged Parquet"):
        read(tmp_path / "a.parquet")


def test_globs_are_sorted_and_reach_any_depth(tmp_path):
    for name in ("b.txt", "a.txt", "deep/er/c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert find_files("*.txt", tmp_path) == (tmp_path / "a.txt", tmp_path / "b.txt")
    assert tmp_path / "deep/er/c.txt" in find_files("**/*.txt", tmp_path)
    (odd := tmp_path / "br[1]").mkdir()
    (odd / "d.txt").write_text("d")
    assert find_files("*.txt", odd) == (odd / "d.txt",)
    assert find_files(str(tmp_path / "a.txt"), tmp_path / "deep") == (tmp_path / "a.txt",)


def test_a_pattern_without_a_file_and_a_file_of_unknown_kind_are_refused(tmp_path):
    with pytest.raises(InputError, match="no file in"):
        find_files("*.txt", tmp_path)
    (tmp_path / "a.pdf").write_text("x")
    (tmp_path / "a.csv.gz").write_text("x")
    with pytest.raises(InputError, match=r"'\.pdf' is not a known kind of text file") as caught:
        find_files("*", tmp_path)
    assert len(caught.value.problems) == 2


def problem_of(folder, lines, text_field="text", name="a.jsonl"):
    (folder / name).write_bytes(lines)
    return look_for_document("a", [folder / name], text_field, 1000)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (b'{"body": "x", "id": 3}\n', "Name one of the fields of its records as `field`: body, id."),
        (b'{"messages": []}\n', "These are chat records (messages)"),
        (b"not JSON\n\n", "left out: 1 not JSON, 1 empty"),
        (b"\xff\xfe", "left out: 1 not UTF-8"),
        (b"", "left out: nothing"),
    ],
)
def test_a_source_without_a_document_is_described(tmp_path, lines, words):
    assert words in str(problem_of(tmp_path, lines))


def test_one_document_after_bad_records_is_enough_and_many_bad_records_prove_nothing(tmp_path):
    assert problem_of(tmp_path, b'broken\n{"text": "x"}\n') is None
    assert problem_of(tmp_path, b"broken\n" * (MAX_LOOKED_AT + 1)) is None


def test_a_byte_order_mark_costs_no_record(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n', encoding="utf-8-sig")
    bad = BadRecords()
    assert list(read_documents(tmp_path / "a.jsonl", "text", 100, bad)) == ["one", "two"]
    assert bad.counts == {}
