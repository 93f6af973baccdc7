import os
import struct

import pytest

from hybridizer.checkpoint import scan
from hybridizer.checkpoint.dtypes import DTYPE_BITS
from hybridizer.checkpoint.header import read_header
from hybridizer.checkpoint.scan import find_nonfinite
from hybridizer.core.errors import CheckpointError
from support.tensor_files import tensor_file

TORCH_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn", "F8_E8M0": "float8_e8m0fnu", "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
}  # fmt: skip


def entry_of(folder, dtype, content):
    size = DTYPE_BITS[dtype] // 8
    path = tensor_file(
        folder / "m.safetensors", {"before": ("U8", [8], b"\xff" * 8), "w": (dtype, [len(content) // size], content)}
    )
    return read_header(path).tensors["w"]  # fmt: skip


@pytest.mark.parametrize("dtype", TORCH_NAMES)
def test_the_count_is_torchs_for_every_bit_pattern(tmp_path, dtype):
    import torch

    # All patterns of one and two bytes; for wider formats the same upper halves over noise.
    if DTYPE_BITS[dtype] == 8:
        content = bytes(range(256))
    else:
        low = DTYPE_BITS[dtype] // 8 - 2
        content = b"".join(os.urandom(low) + struct.pack("<H", high) for high in range(1 << 16))
    values = torch.frombuffer(bytearray(content), dtype=getattr(torch, TORCH_NAMES[dtype])).to(torch.float64)
    expected = int((~torch.isfinite(values)).sum())
    assert expected > 0
    assert find_nonfinite(entry_of(tmp_path, dtype, content)) == expected


@pytest.mark.parametrize("dtype", sorted(set(DTYPE_BITS) - set(TORCH_NAMES) - {"C64"}))
def test_whole_numbers_are_always_finite(tmp_path, dtype):
    assert find_nonfinite(entry_of(tmp_path, dtype, b"\xff" * 64)) == 0


def test_both_parts_of_a_complex_number_count(tmp_path):
    content = struct.pack("<4f", float("nan"), 1.0, float("inf"), float("-inf"))
    assert find_nonfinite(entry_of(tmp_path, "C64", content)) == 3


def test_values_at_the_seams_between_pieces_are_seen_once(tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "_CHUNK_BYTES", 16)
    values = [1.0] * 13
    for place in (0, 3, 4, 7, 12):
        values[place] = float("nan")
    assert find_nonfinite(entry_of(tmp_path, "F32", struct.pack("<13f", *values))) == 5


def test_an_empty_tensor_has_none(tmp_path):
    assert find_nonfinite(entry_of(tmp_path, "F32", b"")) == 0


def test_a_file_that_shrank_or_vanished_is_refused(tmp_path):
    entry = entry_of(tmp_path, "F32", bytes(8))
    os.truncate(entry.file, entry.end - 1)
    with pytest.raises(CheckpointError, match="tensor 'w' ends at byte"):
        find_nonfinite(entry)
    entry.file.unlink()
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        find_nonfinite(entry)
