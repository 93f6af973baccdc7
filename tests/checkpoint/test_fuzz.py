"""Damaged headers and indices: whatever their bytes, a CheckpointError in words, or exactly the tensors that are there.

Bounded here; `HYBRIDIZER_FUZZ=20000 pytest tests/checkpoint/test_fuzz.py` tries as many of each.
"""

import json
import os
import random

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hybridizer.checkpoint.reader import INDEX_NAME, open_checkpoint
from hybridizer.core.errors import CheckpointError

CASES = int(os.environ.get("HYBRIDIZER_FUZZ", "300"))
VALUES = (
    None,
    -1,
    0,
    2**63,
    10**30,
    1.5,
    True,
    "",
    "x",
    "\ud800",
    "../x",
    [],
    [0],
    [1, 2, 3],
    {},
    {"a": 1},
    "F32",
    "F4",
)


def damage(value, dice):
    """`value` with something in it replaced, removed, doubled or nested."""
    if isinstance(value, dict) and value and dice.random() < 0.8:
        key = dice.choice(list(value))
        changed = dict(value)
        match dice.randrange(4):
            case 0:
                del changed[key]
            case 1:
                changed[dice.choice(("", "x", key + "\0", "__metadata__", "a" * 5000))] = changed.pop(key)
            case _:
                changed[key] = damage(changed[key], dice)
        return changed
    if isinstance(value, list) and value and dice.random() < 0.6:
        index = dice.randrange(len(value))
        return [*value[:index], damage(value[index], dice), *value[index + 1 :]]
    if type(value) is int and dice.random() < 0.5:
        return value + dice.choice((-1, 1, 4, -8, 2**31))
    return dice.choice(VALUES)


def damage_bytes(data, dice):
    """`data` with bytes flipped, cut, repeated or put in."""
    data = bytearray(data)
    for _ in range(dice.randrange(1, 4)):
        place = dice.randrange(len(data) + 1)
        match dice.randrange(4):
            case 0 if place < len(data):
                data[place] ^= 1 << dice.randrange(8)
            case 1:
                del data[place : place + dice.randrange(1, 40)]
            case 2:
                data[place:place] = dice.randbytes(dice.randrange(1, 20))
            case _:
                data[place:place] = data[place : place + dice.randrange(1, 60)]
    return bytes(data)


@pytest.fixture
def arrays():
    return {"w": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.ones(5, np.float16), "s": np.zeros(4, np.int8)}


def check_open(folder):
    """Open the checkpoint; what is opened must be what the safetensors library reads from the same file."""
    try:
        found = open_checkpoint(folder)
    except CheckpointError as error:
        assert all(problem.what and problem.fix for problem in error.problems)
        return False
    read = {}
    for file in found.files:
        read |= load_file(file)
    assert {name: entry.shape for name, entry in found.tensors.items()} == {n: a.shape for n, a in read.items()}
    return True


def test_no_header_ends_in_a_traceback_or_in_other_tensors(tmp_path, arrays):
    path, dice = tmp_path / "model.safetensors", random.Random(0)
    save_file(arrays, path)
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    opened = 0
    for _ in range(CASES):
        if dice.random() < 0.5:
            text = json.dumps(damage(header, dice)).encode()
            path.write_bytes(len(text).to_bytes(8, "little") + text + data)
        else:
            path.write_bytes(damage_bytes(whole, dice))
        opened += check_open(tmp_path)
    assert 0 < opened < CASES  # both outcomes were met


def test_no_index_ends_in_a_traceback_or_in_other_tensors(tmp_path, arrays):
    dice, index = random.Random(1), tmp_path / INDEX_NAME
    names = {"w": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    for name, file in names.items():
        save_file({name: arrays[name]}, tmp_path / file)
    whole = {"metadata": {"total_size": 58}, "weight_map": names}
    opened = 0
    for _ in range(CASES):
        if dice.random() < 0.5:
            index.write_text(json.dumps(damage(whole, dice)))
        else:
            index.write_bytes(damage_bytes(json.dumps(whole).encode(), dice))
        opened += check_open(tmp_path)
    assert 0 < opened < CASES
