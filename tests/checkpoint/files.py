"""Safetensors files built by hand, so that a test can get every byte of them wrong on purpose."""

import json
from pathlib import Path

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
