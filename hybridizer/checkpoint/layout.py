"""How a checkpoint is laid out before a byte of it is written: tensors, shards, headers, index, size."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from hybridizer.checkpoint.copy import Buffer
from hybridizer.checkpoint.dtypes import DTYPE_BITS
from hybridizer.checkpoint.header import TensorEntry
from hybridizer.checkpoint.reader import SINGLE_NAME

HEADER_ALIGNMENT: Final = 8

Source = TensorEntry | tuple[TensorEntry, ...] | Callable[[], Iterable[Buffer]]


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One tensor to write: the bytes of a tensor as they are, of several in turn, or what a call to `source` yields."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: Source

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BITS[self.dtype] // 8


def required_bytes(tensors: Sequence[OutputTensor]) -> int:
    """At least what a checkpoint of `tensors` takes on disk, in bytes: exact except for about a kilobyte per tensor."""
    # A name is written twice: in the header, and in the index where a character outside ASCII takes up to 12 bytes.
    return 4096 + sum(tensor.num_bytes + 512 + 16 * len(tensor.name) for tensor in tensors)


def plan_shards(tensors: Sequence[OutputTensor], max_shard_bytes: int) -> list[list[OutputTensor]]:
    """`tensors` in their order, cut wherever the next one would make a shard exceed `max_shard_bytes` of data.

    Inside a shard wide dtypes come first: readers map tensors where they lie, so each must start at a multiple of its
    element's size.
    """
    shards: list[list[OutputTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.num_bytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.num_bytes
    return [sorted(shard, key=lambda tensor: -DTYPE_BITS[tensor.dtype]) for shard in shards]


def name_shards(count: int) -> list[str]:
    """The file names of a checkpoint of `count` shards, as Hugging Face numbers them."""
    if count == 1:
        return [SINGLE_NAME]
    return [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def encode_header(tensors: Sequence[OutputTensor], metadata: Mapping[str, str]) -> bytes:
    """Header length and header of a file that holds `tensors` in this order; the data starts at a multiple of 8."""
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    position = 0
    for tensor in tensors:
        offsets = [position, position + tensor.num_bytes]
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        position += tensor.num_bytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def encode_index(shards: Mapping[str, Sequence[OutputTensor]]) -> str:
    """The text of `model.safetensors.index.json` for shards by file name."""
    weight_map = {tensor.name: name for name, tensors in shards.items() for tensor in tensors}
    total_size = sum(tensor.num_bytes for tensors in shards.values() for tensor in tensors)
    return (
        json.dumps({"metadata": {"total_size": total_size}, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n"
    )
