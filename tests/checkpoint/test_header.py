import ctypes
import json
import os
import pickle
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import TensorSpec, serialize

from hybridizer.checkpoint.dtypes import DTYPE_BITS
from hybridizer.checkpoint.header import TensorEntry, read_header
from hybridizer.core.errors import CheckpointError
from support.tensor_files import ONE_TENSOR, raw_file, tensor_file

DATA = bytes(range(12))


def refusal(path):
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    (problem,) = caught.value.problems
    assert problem.where == str(path)
    assert problem.fix
    return problem.what


def entry_with(**changes):
    return {"weight": ONE_TENSOR["weight"] | changes}


def test_entries_point_at_the_tensors_own_bytes(tmp_path):
    path = tensor_file(
        tmp_path / "m.safetensors",
        {"b": ("F32", [2], b"AAAABBBB"), "a": ("BF16", [1, 3], b"CCDDEE"), "none": ("F16", [0, 4], b"")},
        format="pt",
    )
    header = read_header(path)
    content = path.read_bytes()
    assert list(header.tensors) == ["b", "a", "none"]
    assert [content[e.begin : e.end] for e in header.tensors.values()] == [b"AAAABBBB", b"CCDDEE", b""]
    assert header.tensors["a"] == TensorEntry("a", "BF16", (1, 3), path, len(content) - 6, len(content))
    assert (header.tensors["a"].num_bytes, header.tensors["a"].num_elements) == (6, 3)
    assert (header.metadata, header.num_bytes) == ({"format": "pt"}, len(content))


def test_every_dtype_the_library_writes_is_read_with_the_same_size(tmp_path):
    sizes = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1,
             "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1, "int64": 8, "int32": 4, "int16": 2,
             "int8": 1, "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1, "bool": 1, "complex64": 8}  # fmt: skip
    buffer = ctypes.create_string_buffer(24)
    address = ctypes.addressof(buffer)
    specs = {
        dtype: TensorSpec(dtype=dtype, shape=[3], data_ptr=address, data_len=3 * size) for dtype, size in sizes.items()
    }
    (tmp_path / "all.safetensors").write_bytes(serialize(specs, None))
    tensors = read_header(tmp_path / "all.safetensors").tensors
    assert {name: entry.num_bytes for name, entry in tensors.items()} == {d: 3 * size for d, size in sizes.items()}
    assert {entry.dtype for entry in tensors.values()} == set(DTYPE_BITS)


def test_a_header_padded_with_spaces_is_read(tmp_path):
    path = raw_file(tmp_path / "m.safetensors", json.dumps(ONE_TENSOR).encode() + b"     ", DATA)
    assert read_header(path).tensors["weight"].end == path.stat().st_size


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (entry_with(data_offsets=[0, 13]), "data_offsets [0, 13] are not a range in the 12 bytes of data"),
        (entry_with(data_offsets=[-2, 10]), "whole numbers from 0, found [-2, 10]"),
        (entry_with(data_offsets=[12, 0]), "not a range"),
        (entry_with(data_offsets=[0, 6, 12]), "not a range"),
        (entry_with(data_offsets=[0, 12.0]), "whole numbers"),
        (entry_with(data_offsets="0-12"), "whole numbers"),
        (entry_with(shape=[2, 4]), "BF16 of shape [2, 4] takes 16 bytes, it is given 12"),
        (entry_with(shape=[2, True, 3]), "whole numbers"),
        (entry_with(shape=[2**62] * 64), "takes an integer of 3970 bits bytes"),
        (entry_with(shape=[2**63, 0]), "whole numbers"),
        (entry_with(shape=[1] * 65), "65 dimensions"),
        (entry_with(dtype="BF17"), "unknown dtype 'BF17'"),
        (entry_with(dtype=["BF16"]), "unknown dtype ['BF16']"),
        (entry_with(dtype="F4"), "packs several numbers into a byte"),
        (entry_with(scale=0.5), "needs exactly dtype, shape and data_offsets"),
        ({"weight": {"dtype": "BF16", "shape": [6]}}, "needs exactly"),
        ({"weight": [0, 12]}, "needs exactly"),
        ({"": ONE_TENSOR["weight"]}, "a tensor is named ''"),
        ({"wei\0ght": ONE_TENSOR["weight"]}, r"a tensor is named 'wei\x00ght'"),
        (ONE_TENSOR | {"__metadata__": {"format": 3}}, "__metadata__ must map text to text"),
        (ONE_TENSOR | {"__metadata__": ["pt"]}, "__metadata__ must map text to text"),
        (b'{"w": {"a": NaN}}', "NaN is not a JSON number"),
        (b'{"w": {"a": 1, "a": 2}}', "the key 'a' occurs twice"),
        (b'{"w\\ud800": 1}', "half of a UTF-16 pair"),
        (b'{"__metadata__": {"a": "\\udfff"}}', "half of a UTF-16 pair"),
        (b'{"w": ' + b"9" * 5000 + b"}", "invalid JSON"),
        (b'{"w": ' + b"[" * 100_000, "nested too deep"),
        (b'{"w": }', "not valid JSON: Expecting value at character 6"),
        (b'{"w\xff": 1}', "not UTF-8 text at byte 3"),
        (b'["weight"]', "does not start with '{'"),
    ],
)  # fmt: skip
def test_a_header_that_contradicts_itself_is_refused(tmp_path, header, words):
    assert words in refusal(raw_file(tmp_path / "m.safetensors", header, DATA))


@pytest.mark.parametrize(
    ("second", "data", "words"),
    [
        ([4, 8], 10, "tensor 'b' overlaps the tensor before it (at byte 132, not 134)"),
        ([8, 12], 12, "tensor 'b' leaves a gap before it"),
        ([6, 10], 11, "the bytes between belong to none"),
    ],
)
def test_bytes_that_belong_to_two_tensors_or_to_none_are_refused(tmp_path, second, data, words):
    header = {
        "a": {"dtype": "U8", "shape": [6], "data_offsets": [0, 6]},
        "b": {"dtype": "U8", "shape": [4], "data_offsets": second},
    }
    assert words in refusal(raw_file(tmp_path / "m.safetensors", header, bytes(data)))


def test_every_truncation_is_refused(tmp_path):
    whole = raw_file(tmp_path / "whole", ONE_TENSOR, DATA).read_bytes()
    path = tmp_path / "cut.safetensors"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        refusal(path)


@pytest.mark.parametrize(
    ("length", "words"),
    [
        (2**63, "announce a header of 9223372036854775808 bytes; no header exceeds 100000000"),
        (99_999_999, "announce a header of 99999999 bytes, the file has"),
        (0, "announce a header of 0 bytes"),
        (20, "not valid JSON"),
    ],
)
def test_a_lying_header_length_is_refused(tmp_path, length, words):
    assert words in refusal(raw_file(tmp_path / "m.safetensors", ONE_TENSOR, DATA, length=length))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"abc", "3 bytes cannot even hold a header length"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html><body>403 Forbidden</body></html>", "web page"),
        (b"GGUF\3\0\0\0" + bytes(64), "GGUF file"),
        *[(pickle.dumps({"w": [1.0]}, protocol=protocol), "pickle") for protocol in (2, 3, 4, 5)],
    ],
)
def test_what_a_file_is_instead_is_named(tmp_path, content, words):
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    assert words in refusal(path)


def test_a_torch_zip_is_named_a_pickle(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"x" * 100)
    assert "can run code" in refusal(path)


def test_a_header_length_that_looks_like_a_pickle_mark_is_still_read(tmp_path):
    # 0x0280 = 640 is a plausible length whose first two bytes are those of a protocol 2 pickle.
    text = json.dumps(ONE_TENSOR).encode()
    path = raw_file(tmp_path / "m.safetensors", text.ljust(0x0280), DATA)
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert list(read_header(path).tensors) == ["weight"]


def test_paths_that_hold_no_file_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert "not a regular file" in refusal(tmp_path / "pipe")
    assert "this is a folder" in refusal(tmp_path)
    assert "is not there" in refusal(tmp_path / "missing.safetensors")
    assert "broken symbolic link" in refusal(tmp_path / "link")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_damage_raises_nothing_but_checkpoint_errors(tmp_path, data):
    original = raw_file(
        tmp_path / "m.safetensors",
        {"__metadata__": {"format": "pt"}, **ONE_TENSOR, "b": {"dtype": "F32", "shape": [1], "data_offsets": [12, 16]}},
        bytes(16),
    )
    content = bytearray(original.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
        if not content:
            break
    original.write_bytes(content)
    try:
        header = read_header(original)
    except CheckpointError as error:
        assert str(original) in str(error)
    else:
        ends = [entry.end for entry in header.tensors.values()]
        assert max(ends, default=len(content)) == header.num_bytes == len(content)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["w", "__metadata__", "\ud800", ""]),
    key=st.sampled_from(["dtype", "shape", "data_offsets", "extra"]),
    value=JSON_VALUES,
    whole=st.booleans(),
)
def test_any_json_value_in_any_place_raises_nothing_but_checkpoint_errors(tmp_path, name, key, value, whole):
    entry = value if whole else ONE_TENSOR["weight"] | {key: value}
    path = raw_file(tmp_path / "m.safetensors", {name: entry}, DATA)
    try:
        read_header(path)
    except CheckpointError as error:
        assert len(str(error)) < 1000
