"""The same functions for tensors sharded over processes (DTensor, as FSDP2 creates them) and for plain ones."""

from __future__ import annotations

from typing import Any

from jaxtyping import Shaped
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds only a part of `tensor`."""
    return hasattr(tensor, "full_tensor")


def local_part(tensor: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """The part of `tensor` that this process holds: all of it, or its shard."""
    part: Tensor = tensor.to_local() if is_sharded(tensor) else tensor
    return part


def unshard(tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """All of `tensor`. Every process must call this for a sharded one, in the same order."""
    whole: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor
    return whole


def shard_like(whole: Shaped[Tensor, "*shape"], like: Any) -> Shaped[Tensor, "*shape"]:
    """`whole` on the device of `like`, and sharded over the processes as `like` is."""
    if not is_sharded(like):
        return whole.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    # Every process read the same file: nothing needs to be sent.
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
