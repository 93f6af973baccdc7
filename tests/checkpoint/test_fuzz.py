"""Damaged headers and indices: whatever their bytes, a CheckpointError in words, or exactly the tensors that are there.

See support/fuzz.py for more cases than the few here.
"""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hybridizer.checkpoint.reader import INDEX_NAME, open_checkpoint
from support.fuzz import damage_bytes, damage_json, try_all

CASES = 300


@pytest.fixture
def arrays():
    return {"w": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.ones(5, np.float16), "s": np.zeros(4, np.int8)}


def check_open(folder):
    """Open the checkpoint; what is opened must be what the safetensors library reads from the same file."""
    found = open_checkpoint(folder)
    read = {}
    for file in found.files:
        read |= load_file(file)
    assert {name: entry.shape for name, entry in found.tensors.items()} == {n: a.shape for n, a in read.items()}


def test_no_header_ends_in_a_traceback_or_in_other_tensors(tmp_path, arrays):
    path = tmp_path / "model.safetensors"
    save_file(arrays, path)
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header, data = whole[8 : 8 + length], whole[8 + length :]

    def attempt(generator):
        if generator.random() < 0.5:
            text = damage_json(header, generator)
            path.write_bytes(len(text).to_bytes(8, "little") + text + data)
        else:
            path.write_bytes(damage_bytes(whole, generator))
        check_open(tmp_path)

    ended = try_all("header", attempt, CASES)
    assert ended["success"] > 0 and ended["CheckpointError"] > ended.total() / 2


def test_no_index_ends_in_a_traceback_or_in_other_tensors(tmp_path, arrays):
    index = tmp_path / INDEX_NAME
    names = {"w": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    for name, file in names.items():
        save_file({name: arrays[name]}, tmp_path / file)
    whole = json.dumps({"metadata": {"total_size": 58}, "weight_map": names}).encode()

    def attempt(generator):
        index.write_bytes((damage_json if generator.random() < 0.7 else damage_bytes)(whole, generator))
        check_open(tmp_path)

    ended = try_all("index", attempt, CASES)
    assert ended["success"] > 0 and ended["CheckpointError"] > ended.total() / 2
