import struct

import pytest

from hybridizer.core.errors import CheckpointError
from hybridizer.donors.gguf_header import read_gguf_header

UINT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 4, 6, 7, 8, 9, 10


def text(value):
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def entry(key, kind, data):
    return text(key) + struct.pack("<I", kind) + data


def gguf(path, *entries, magic=b"GGUF", version=3, num_keys=None):
    count = len(entries) if num_keys is None else num_keys
    path.write_bytes(magic + struct.pack("<IQQ", version, 0, count) + b"".join(entries))
    return path


def refusal(path):
    with pytest.raises(CheckpointError) as caught:
        read_gguf_header(path)
    return str(caught.value)


def test_scalars_and_texts_are_read_and_arrays_are_skipped(tmp_path):
    path = gguf(
        tmp_path / "m.gguf",
        entry("general.architecture", STRING, text("llama")),
        entry("tokens", ARRAY, struct.pack("<IQ", STRING, 2) + text("a") + text("bb")),
        entry("scores", ARRAY, struct.pack("<IQ", FLOAT32, 3) + bytes(12)),
        entry("llama.block_count", UINT32, struct.pack("<I", 30)),
        entry("tied", BOOL, b"\1"),
        entry("big", UINT64, struct.pack("<Q", 2**63)),
    )
    assert read_gguf_header(path).metadata == {
        "general.architecture": "llama", "llama.block_count": 30, "tied": True, "big": 2**63
    }  # fmt: skip


def test_a_header_written_by_the_package_gguf_is_read(tmp_path):
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_block_count(30)
    writer.add_token_list(["a", "b"])
    writer.add_layer_norm_rms_eps(0.5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    expected = {
        "general.architecture": "llama", "llama.block_count": 30, "llama.attention.layer_norm_rms_epsilon": 0.5
    }  # fmt: skip
    assert read_gguf_header(tmp_path / "m.gguf").metadata == expected


@pytest.mark.parametrize(
    ("options", "entries", "words"),
    [
        ({"magic": b"GGML"}, [], "does not begin with the letters GGUF"),
        ({"version": 1}, [], "GGUF version 1 is not 2 or 3"),
        ({"num_keys": 10**9}, [], "claims 1000000000 entries"),
        ({"num_keys": 1}, [], "ends inside its header"),
        ({}, [entry("k", 99, b"")], "value type 99 is unknown"),
        ({}, [entry("k", STRING, struct.pack("<Q", 2**60))], "a text of 1152921504606846976 bytes"),
        ({}, [entry("k", ARRAY, struct.pack("<IQ", ARRAY, 1))], "array items of type 9 are unknown"),
        ({}, [entry("k", ARRAY, struct.pack("<IQ", UINT64, 2**62))], "an array of 4611686018427387904 items"),
        ({}, [entry("k", ARRAY, struct.pack("<IQ", UINT64, 2**20)), entry("l", BOOL, b"\0")], "ends inside its header"),
        ({}, [entry(b"\xff", BOOL, b"\0")], "not a readable GGUF file: 'utf-8' codec"),
    ],
)
def test_a_damaged_header_is_refused(tmp_path, options, entries, words):
    assert words in refusal(gguf(tmp_path / "m.gguf", *entries, **options))


def test_every_truncation_is_refused(tmp_path):
    whole = gguf(tmp_path / "whole", entry("k", STRING, text("value")), entry("l", BOOL, b"\1")).read_bytes()
    for size in range(len(whole)):
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        refusal(tmp_path / "cut.gguf")


def test_a_path_that_is_not_a_file_is_refused(tmp_path):
    assert "there is no such file" in refusal(tmp_path / "missing.gguf")
    assert "it is not a regular file" in refusal(tmp_path)
