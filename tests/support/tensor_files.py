"""Safetensors files written byte by byte, so that a test can damage any of them, and a small file system to fill."""

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ONE_TENSOR = {"weight": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}


def raw_file(path: Path, header: object, data: bytes, *, length: int | None = None) -> Path:
    """A file of header length, `header` (JSON text as bytes, or a value to dump) and `data`; nothing is checked."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def tensor_file(path: Path, tensors: dict[str, tuple[str, list[int], bytes]], **metadata: str) -> Path:
    """A valid file of `tensors`: name -> (dtype, shape, bytes), laid out in the order given."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    return raw_file(path, header, data)


@contextlib.contextmanager
def small_disk(folder: Path, num_bytes: int) -> Iterator[Path]:
    """A file system of its own with room for `num_bytes`, where this process may mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs; the injected errors above test the same messages anywhere")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
