"""Blended tensors, computed by mergekit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
from hybridizer.plan.blends import METHODS


def blend(
    method: str,
    tensors: Sequence[torch.Tensor],
    shared: Mapping[str, Any],
    per_source: Sequence[Mapping[str, Any]],
    base: int | None,
    name: str,
    seed: int,
) -> torch.Tensor:
    """One output tensor from same-shaped `tensors`, through mergekit's in-memory API, in its working precision.

    The result has the inputs' promoted dtype. Methods that draw at random draw from a generator seeded by `seed` and
    the tensor's `name`, so that the order of the work does not matter. The caller has run `check_blend`.
    """
    import torch
    from mergekit.merge_methods import merge_tensors

    spec = METHODS[method]
    parameters: dict[str, Any] = dict(shared)
    for key, default in spec.per_source.items():
        parameters[key] = {i: given.get(key, default) for i, given in enumerate(per_source) if i != base}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:7], "big"))
        return merge_tensors(
            tensors, method, parameters=parameters, ids=range(len(tensors)), base_index=base, name=name
        )
