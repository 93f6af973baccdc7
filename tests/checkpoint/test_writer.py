import ctypes
import errno
import hashlib
import json
import os
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import TensorSpec, deserialize, serialize

from hybridizer.checkpoint import writer
from hybridizer.checkpoint.dtypes import DTYPE_BITS
from hybridizer.checkpoint.header import read_header
from hybridizer.checkpoint.layout import OutputTensor, plan_shards, required_bytes
from hybridizer.checkpoint.publish import check_free_space
from hybridizer.checkpoint.reader import INDEX_NAME, open_checkpoint
from hybridizer.checkpoint.writer import MAX_UNSEALED_SHARDS, write_checkpoint
from hybridizer.core.errors import OutputError
from support.tensor_files import small_disk, tensor_file


def write(folder, tensors, max_shard_bytes=1 << 30, metadata=None, on_progress=lambda _: None):
    folder.mkdir(exist_ok=True)
    return write_checkpoint(
        folder, tensors, max_shard_bytes=max_shard_bytes, metadata=metadata or {}, on_progress=on_progress
    )


def made(name, dtype, shape, *chunks):
    return OutputTensor(name, dtype, shape, lambda: iter(chunks))


def copied(entry, name=None):
    return OutputTensor(name or entry.name, entry.dtype, entry.shape, entry)


def num_open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def donor(tmp_path):
    """Three tensors in one file; the first two lie side by side."""
    path = tensor_file(
        tmp_path / "donor.safetensors",
        {"a": ("BF16", [2, 3], b"AAaaAAaaAAaa"), "b": ("BF16", [2], b"BBbb"), "c": ("F32", [1], b"CCCC")},
    )
    return read_header(path).tensors


def test_the_bytes_of_a_file_are_golden(tmp_path, donor):
    written = write(tmp_path / "out", [copied(donor["b"], "x.b"), copied(donor["c"], "é")], metadata={"format": "pt"})
    content = (tmp_path / "out" / "model.safetensors").read_bytes()
    header = (
        '{"__metadata__":{"format":"pt"},"é":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        '"x.b":{"dtype":"BF16","shape":[2],"data_offsets":[4,8]}}'
    ).encode()
    assert len(header) == 142
    assert content == b"\x90\0\0\0\0\0\0\0" + header + b"  " + b"CCCC" + b"BBbb"
    assert written.files == {"model.safetensors": hashlib.sha256(content).hexdigest()}
    assert (written.index, written.num_bytes) == (None, len(content))


def test_the_library_writes_the_same_bytes(tmp_path):
    contents = {"a": ("F32", "float32", [2], b"AAAABBBB"), "b": ("F32", "float32", [1], b"CCCC"),
                "é": ("BF16", "bfloat16", [1, 1], b"DD")}  # fmt: skip
    write(tmp_path / "out", [made(n, d, tuple(s), c) for n, (d, _, s, c) in contents.items()], metadata={"a": "b"})
    buffers = {name: ctypes.create_string_buffer(content, len(content)) for name, (*_, content) in contents.items()}
    specs = {
        name: TensorSpec(dtype=dtype, shape=shape, data_ptr=ctypes.addressof(buffers[name]), data_len=len(content))
        for name, (_, dtype, shape, content) in contents.items()
    }
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == serialize(specs, {"a": "b"})


def test_the_library_reads_every_dtype_and_shape_as_written(tmp_path):
    contents = {
        f"t.{dtype}": (dtype, (3, 1, 5), os.urandom(15 * bits // 8)) for dtype, bits in reversed(DTYPE_BITS.items())
    }
    contents |= {"empty": ("F32", (0, 4), b""), "scalar": ("F64", (), b"12345678")}
    write(tmp_path / "out", [made(name, *rest) for name, rest in [(n, (d, s, c)) for n, (d, s, c) in contents.items()]])
    found = dict(deserialize((tmp_path / "out" / "model.safetensors").read_bytes()))
    assert {name: (tuple(t["shape"]), bytes(t["data"])) for name, t in found.items()} == {
        name: (shape, content) for name, (_, shape, content) in contents.items()
    }
    entries = open_checkpoint(tmp_path / "out").tensors
    assert {name: entry.dtype for name, entry in entries.items()} == {name: d for name, (d, _, _) in contents.items()}


def test_every_tensor_starts_at_a_multiple_of_its_element_size(tmp_path):
    tensors = [
        made(d, d, (3,), bytes(3 * bits // 8)) for d, bits in sorted(DTYPE_BITS.items(), key=lambda item: item[1])
    ]
    write(tmp_path / "out", tensors)
    entries = open_checkpoint(tmp_path / "out").tensors.values()
    assert [entry.begin % (DTYPE_BITS[entry.dtype] // 8) for entry in entries] == [0] * len(DTYPE_BITS)


def test_shards_and_index_hold_every_tensor_once(tmp_path, donor):
    tensors = [copied(donor["b"]), copied(donor["a"]), copied(donor["c"]), made("d", "U8", (20,), b"d" * 20)]
    written = write(tmp_path / "out", tensors, max_shard_bytes=16)
    names = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert list(written.files) == [*names, INDEX_NAME]
    assert written.index == INDEX_NAME
    assert written.num_bytes == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    index = json.loads((tmp_path / "out" / INDEX_NAME).read_text())
    expected = {"a": names[0], "b": names[0], "c": names[1], "d": names[2]}
    assert index == {"metadata": {"total_size": 40}, "weight_map": expected}
    assert list(index["weight_map"]) == ["a", "b", "c", "d"]
    found = open_checkpoint(tmp_path / "out").tensors
    assert {name: entry.file.name for name, entry in found.items()} == expected
    assert {name: entry.file.read_bytes()[entry.begin : entry.end] for name, entry in found.items()} == {
        "a": b"AAaaAAaaAAaa", "b": b"BBbb", "c": b"CCCC", "d": b"d" * 20
    }  # fmt: skip


def test_safe_open_reads_a_shard(tmp_path, donor):
    write(tmp_path / "out", [copied(entry) for entry in donor.values()], max_shard_bytes=1)
    from safetensors import safe_open

    with safe_open(tmp_path / "out" / "model-00003-of-00003.safetensors", framework="numpy") as file:
        assert file.get_tensor("c").tobytes() == b"CCCC"


def test_hashes_are_those_of_the_files_and_files_may_be_read_by_all(tmp_path, donor):
    before = os.umask(0o077)
    try:
        written = write(tmp_path / "out", [copied(entry) for entry in donor.values()], max_shard_bytes=1)
    finally:
        os.umask(before)
    files = {path.name: path for path in (tmp_path / "out").iterdir()}
    assert written.files == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files.values()} == {0o644}


def test_the_same_tensors_give_the_same_bytes(tmp_path, donor):
    tensors = [copied(entry) for entry in donor.values()]
    first = write(tmp_path / "one", tensors, 16, {"b": "2", "a": "1"})
    assert write(tmp_path / "two", tensors, 16, {"a": "1", "b": "2"}).files == first.files


def test_one_tensor_may_go_to_several_places(tmp_path, donor):
    write(tmp_path / "out", [copied(donor["b"], f"layer.{n}") for n in range(3)])
    found = open_checkpoint(tmp_path / "out").tensors.values()
    assert [entry.file.read_bytes()[entry.begin : entry.end] for entry in found] == [b"BBbb"] * 3


def test_neighbours_are_copied_in_one_piece(tmp_path, donor, monkeypatch):
    pieces = []
    monkeypatch.setattr(writer, "copy_range", lambda file, begin, end, *_: pieces.append((begin, end)))
    write(tmp_path / "out", [copied(donor["a"]), copied(donor["b"]), copied(donor["a"], "again")])
    a, b = donor["a"], donor["b"]
    assert pieces == [(a.begin, b.end), (a.begin, a.end)]


def test_progress_adds_up_to_the_tensors_bytes(tmp_path, donor):
    steps = []
    tensors = [*map(copied, donor.values()), made("d", "U8", (5,), b"12", b"", b"345")]
    write(tmp_path / "out", tensors, 16, on_progress=steps.append)
    assert sum(steps) == 25


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.tuples(st.integers(0, 40), st.sampled_from(list(DTYPE_BITS))), min_size=1, max_size=12),
    max_shard_bytes=st.integers(1, 500),
)
def test_shards_keep_every_tensor_and_stay_within_their_limit(sizes, max_shard_bytes):
    tensors = [made(str(n), dtype, (size,)) for n, (size, dtype) in enumerate(sizes)]
    shards = plan_shards(tensors, max_shard_bytes)
    assert sorted(int(tensor.name) for shard in shards for tensor in shard) == list(range(len(tensors)))
    assert all(len(shard) == 1 or sum(t.num_bytes for t in shard) <= max_shard_bytes for shard in shards)


@pytest.mark.parametrize("name", ["w", "\U0001f600" * 50, 'é\\"' * 30])
def test_the_size_is_known_before_writing(tmp_path, name):
    tensors = [made(f"{name}{n}", "F8_E5M2FNUZ", (1, 2, 3, 4, 5), bytes(120)) for n in range(30)]
    written = write(tmp_path / "out", tensors, max_shard_bytes=1)
    assert written.num_bytes <= required_bytes(tensors) <= written.num_bytes + 4096 + 30 * (512 + 16 * len(name) + 32)


def test_a_donor_that_shrank_is_named(tmp_path, donor):
    os.truncate(donor["a"].file, donor["b"].end - 1)
    with pytest.raises(OutputError, match=r"donor.safetensors: bytes \d+ to \d+ were to be copied.*ends at"):
        write(tmp_path / "out", [copied(donor["a"]), copied(donor["b"])])


def test_a_donor_that_vanished_is_named(tmp_path, donor):
    donor["a"].file.unlink()
    with pytest.raises(OutputError, match="donor.safetensors: cannot be read: No such file"):
        write(tmp_path / "out", [copied(donor["a"])])


@pytest.mark.parametrize(
    ("chunks", "words"),
    [
        ((b"12", b"3"), "takes 4 bytes, its source gave 3"),
        ((b"12", b"345"), r"takes 4 bytes, its source gave more than that \(5 an"),
    ],
)
def test_a_source_that_gives_too_much_or_too_little_is_named(tmp_path, chunks, words):
    with pytest.raises(OutputError, match=r"tensor w: F32 of shape \[1\] " + words):
        write(tmp_path / "out", [made("w", "F32", (1,), *chunks)])


def test_mistakes_of_the_caller_are_caught_before_a_byte_is_written(tmp_path, donor):
    a = donor["a"]
    for wrong in [
        [],
        [copied(a), copied(a)],
        [OutputTensor("a", "F16", a.shape, a)],
        [OutputTensor("a", "BF16", (5,), a)],
    ]:
        with pytest.raises(AssertionError):
            write(tmp_path / "out", wrong)
    with pytest.raises(AssertionError, match="max_shard_bytes is 0"):
        write(tmp_path / "out", [copied(a)], max_shard_bytes=0)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_source_that_never_ends_is_stopped(tmp_path):
    def endless():
        while True:
            yield b"1234"

    with pytest.raises(OutputError, match="more than that"):
        write(tmp_path / "out", [OutputTensor("w", "F32", (10,), endless)])


def test_chunks_may_be_arrays_of_any_kind(tmp_path):
    import numpy as np

    values = np.arange(6, dtype="<f4").reshape(2, 3)
    write(tmp_path / "out", [made("w", "F32", (2, 3), values[:1], np.empty((0, 3), "<f4"), values[1:])])
    (entry,) = open_checkpoint(tmp_path / "out").tensors.values()
    assert entry.file.read_bytes()[entry.begin :] == values.tobytes()


def test_what_stands_there_is_not_overwritten(tmp_path):
    tensors = [made("w", "U8", (1,), b"x")]
    write(tmp_path / "out", tensors)
    with pytest.raises(OutputError, match=r"out/model.safetensors: File exists"):
        write(tmp_path / "out", tensors)


def test_many_shards_do_not_use_up_the_file_descriptors(tmp_path, monkeypatch):
    most = []
    monkeypatch.setattr(writer, "hash_growing", lambda *_: most.append(num_open_files()) or "")
    before = num_open_files()
    write(tmp_path / "out", [made(str(n), "U8", (1,), b"x") for n in range(100)], max_shard_bytes=1)
    assert max(most) <= before + MAX_UNSEALED_SHARDS + 3


def test_a_failed_write_closes_its_files_and_ends_its_threads(tmp_path, donor):
    threads, files = threading.active_count(), num_open_files()
    tensors = [made(str(n), "U8", (1,), b"x") for n in range(5)] + [made("bad", "U8", (1,))]
    with pytest.raises(OutputError):
        write(tmp_path / "out", tensors, max_shard_bytes=1)
    assert (threading.active_count(), num_open_files()) == (threads, files)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_says_what_was_needed_and_what_is_free(tmp_path, donor, monkeypatch, call, code):
    def full(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OutputError) as caught:
        write(tmp_path / "out", [copied(donor["a"])])
    words = str(caught.value)
    assert words.startswith(f"{tmp_path / 'out'}: {os.strerror(code)} while writing 4636 bytes (0.00 GB); ")
    assert "are free now" in words
    assert "another disk" in words


def test_a_disk_that_is_really_full_is_reported(tmp_path):
    path = tensor_file(tmp_path / "donor.safetensors", {"w": ("U8", [400_000], bytes(400_000))})
    (entry,) = read_header(path).tensors.values()
    tensors = [copied(entry)]
    with small_disk(tmp_path / "disk", 262_144) as disk:
        with pytest.raises(OutputError, match="No space left on device while writing 404624 bytes"):
            write(disk, tensors)
        with pytest.raises(OutputError, match="the output needs 404624 bytes"):
            check_free_space(disk, required_bytes(tensors))


def test_enough_space_is_enough(tmp_path):
    check_free_space(tmp_path, 1)
    with pytest.raises(OutputError, match=r"needs 1000000000000000000000 bytes .* the disk has \d+ bytes"):
        check_free_space(tmp_path, 10**21)
