import os

import pytest

from hybridizer.checkpoint import hashing
from hybridizer.checkpoint.hashing import same_bytes
from hybridizer.checkpoint.header import read_header
from support.tensor_files import tensor_file


def entry(folder, name, tensor):
    path = tensor_file(folder / name, {"before": ("U8", [len(name)], name.encode()), "w": tensor})
    return read_header(path).tensors["w"]


def test_equal_tensors_are_equal_wherever_they_lie(tmp_path, monkeypatch):
    monkeypatch.setattr(hashing, "_COMPARED_BYTES", 4)
    content = bytes(range(10))
    assert same_bytes(entry(tmp_path, "one", ("U8", [10], content)), entry(tmp_path, "other", ("U8", [10], content)))


@pytest.mark.parametrize("place", [0, 3, 4, 9])
def test_one_byte_makes_the_difference(tmp_path, monkeypatch, place):
    monkeypatch.setattr(hashing, "_COMPARED_BYTES", 4)
    content = bytes(10)
    changed = content[:place] + b"x" + content[place + 1 :]
    a, b = entry(tmp_path, "one", ("U8", [10], content)), entry(tmp_path, "other", ("U8", [10], changed))
    assert not same_bytes(a, b)


def test_the_same_bytes_of_another_dtype_or_shape_differ(tmp_path):
    a = entry(tmp_path, "one", ("F16", [4], bytes(8)))
    assert not same_bytes(a, entry(tmp_path, "dtype", ("BF16", [4], bytes(8))))
    assert not same_bytes(a, entry(tmp_path, "shape", ("F16", [2, 2], bytes(8))))


def test_files_that_shrank_are_equal_to_nothing(tmp_path):
    a, b = entry(tmp_path, "one", ("U8", [8], bytes(8))), entry(tmp_path, "two", ("U8", [8], bytes(8)))
    os.truncate(a.file, a.begin)
    os.truncate(b.file, b.begin)
    assert not same_bytes(a, b)
