"""The projections of an attention laid out for the heads and groups of another mixer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from hybridizer.core.errors import PlanError, Problem
from hybridizer.families.mixer_shapes import AttentionShape

LEAST_DT, MOST_DT = 1e-3, 1.0


@dataclass(frozen=True)
class MappedHeads:
    """Queries and keys of each group, values of each head, and the output columns of each head; float32.

    `copies[h]` counts the heads before h that have the same value.
    """

    queries: Float32[Tensor, "groups_state hidden"]
    keys: Float32[Tensor, "groups_state hidden"]
    values: Float32[Tensor, "inner hidden"]
    output: Float32[Tensor, "hidden inner"]
    copies: tuple[int, ...]


def map_heads(
    shape: AttentionShape, attention: Mapping[str, Tensor], num_heads: int, num_groups: int, state_size: int
) -> MappedHeads:
    """The projections `attention` for `num_heads` heads, each a copy of an attention head, in `num_groups` groups.

    Copies of one head are neighbours. A group has the mean query and the mean key of its heads; where its state is
    several times as wide as a head, its heads are split into as many parts, and their means are stacked. The output is
    divided among the copies of a head. Raises PlanError for a state that is not a multiple of the head width, and for
    heads that are not a multiple of the attention's.
    """
    dim, kv_heads = shape.head_dim, shape.num_kv_heads
    _refuse(shape, num_heads, state_size)
    q, k, v, o = (_weight(attention, name) for name in ("q_proj", "k_proj", "v_proj", "o_proj"))
    repeats = num_heads // shape.num_heads
    owners = np.repeat(np.arange(shape.num_heads), repeats)  # the attention head of each head
    kv_of = owners // (shape.num_heads // kv_heads)
    q, k, v = q.view(-1, dim, q.shape[1]), k.view(kv_heads, dim, -1), v.view(kv_heads, dim, -1)
    groups = np.split(np.arange(num_heads), num_groups)
    parts = [part for group in groups for part in _split(group, state_size // dim)]
    output = o.view(-1, shape.num_heads, dim)[:, owners] / repeats
    return MappedHeads(
        torch.cat([q[owners[part]].mean(dim=0) for part in parts]),
        torch.cat([k[kv_of[part]].mean(dim=0) for part in parts]),
        v[kv_of].flatten(0, 1),
        output.flatten(1).contiguous(),
        tuple(int((kv_of[:head] == kv_of[head]).sum()) for head in range(num_heads)),
    )


def spread_memory(num_heads: int) -> tuple[Float32[Tensor, "heads"], Float32[Tensor, "heads"]]:
    """(A_log, dt_bias) of heads that forget between 1 and 0.001 per token, evenly in logarithm.

    A is 1, so that a head with step size dt is an average over about 1 / dt tokens whose weights sum to about 1, and
    no head drowns the others in the norm of their group. Neighbours differ as much as they can.
    """
    dt = torch.logspace(math.log10(MOST_DT), math.log10(LEAST_DT), num_heads)
    stride = max(1, round(math.sqrt(num_heads)))
    order = torch.cat([torch.arange(start, num_heads, stride) for start in range(stride)])
    return torch.zeros(num_heads), dt[order].expm1().log()


def last_token(num_channels: int, kernel_size: int) -> Float32[Tensor, "channels 1 kernel"]:
    """The weight of a convolution that passes its last token on."""
    weight = torch.zeros(num_channels, 1, kernel_size)
    weight[..., -1] = 1
    return weight


def _split(heads: Any, count: int) -> list[Any]:
    """`heads` in `count` parts of about equal size; of too few heads some are used more than once."""
    if len(heads) < count:
        heads = np.resize(heads, count)
    return list(np.array_split(heads, count))


def _weight(attention: Mapping[str, Tensor], name: str) -> Tensor:
    """The float32 weight of one projection of the attention, on the CPU."""
    found = [tensor for key, tensor in attention.items() if f".{key}".endswith(f".{name}.weight")]
    if len(found) != 1:
        what = f"{len(found)} tensors end in '{name}.weight' among {sorted(attention)[:8]}."
        raise PlanError(Problem("attention", what, "Derive mixers from an attention of Llama's kind."))
    return found[0].float().cpu()


def _refuse(shape: AttentionShape, num_heads: int, state_size: int) -> None:
    problems = []
    if state_size % shape.head_dim:
        what = f"a state of {state_size} is not a multiple of the attention's heads of {shape.head_dim}."
        problems.append(Problem("mixer.state", what, "Give a multiple, or init: fresh."))
    if num_heads % shape.num_heads:
        what = f"{num_heads} heads cannot be derived from the attention's {shape.num_heads}."
        problems.append(Problem("mixer.heads", what, "Give a multiple, or init: fresh."))
    if problems:
        raise PlanError(*problems)
