"""Mamba-2 layers as granitemoehybrid has them, with weights that are derived from an attention.

Sources: MambaInLlama (arXiv 2408.15237) and MOHAWK (arXiv 2408.10189) for Q to C, K to B, V to x and O to out_proj. The
spread of the memory is ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hybridizer.core.errors import PlanError, Problem
from hybridizer.mixers.shapes import AttentionShape, Mamba2Shape

LEAST_DT, MOST_DT = 1e-3, 1.0
# How much of the value of the token itself is added. Of held-out attention outputs of five layers of SmolLM2, 0.646 was
# explained with 3, 0.634 with 1, 0.624 with 0.3.
SKIP = 3.0


def derived(
    shape: Mamba2Shape, attention_shape: AttentionShape, attention: Mapping[str, Tensor], fresh: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Float32 tensors from the Q, K, V and O of an attention; what has no counterpart there stays `fresh`.

    Q becomes C, K becomes B (both averaged over the attention heads of a group), V becomes x and O becomes out_proj.
    The convolution passes its last token on, D adds the value of the token itself, and the rows of the step size are 0.
    The memory of the heads is spread: the product of A and the step size, which is what a head forgets per token, runs
    from 1 to 0.001. The gate stays random. `attention` holds the weights of q_proj, k_proj, v_proj and o_proj by names
    that end in "q_proj.weight" and so on.

    A state of several times the head width splits the heads of a group into as many parts, and stacks their C and B.
    Raises PlanError for a state that is not a multiple of the head width, and an inner width that V does not fill.
    """
    _refuse(shape, attention_shape)
    q, k, v, o = (_weight(attention, name) for name in ("q_proj", "k_proj", "v_proj", "o_proj"))
    dim, kv_heads = attention_shape.head_dim, attention_shape.num_kv_heads
    repeats = shape.num_heads // attention_shape.num_heads
    owners = np.repeat(np.arange(attention_shape.num_heads), repeats)  # the attention head of each head
    kv_of = owners // (attention_shape.num_heads // kv_heads)
    q, k, v = q.view(-1, dim, q.shape[1]), k.view(kv_heads, dim, -1), v.view(kv_heads, dim, -1)
    parts = [
        part for group in np.split(np.arange(shape.num_heads), shape.num_groups)
        for part in _split(group, shape.state_size // dim)
    ]  # fmt: skip
    rows_c = torch.cat([q[owners[part]].mean(dim=0) for part in parts])
    rows_b = torch.cat([k[kv_of[part]].mean(dim=0) for part in parts])
    tensors = dict(fresh)
    gate = tensors["mamba.in_proj.weight"][: shape.inner_size]
    rows_x = v[kv_of].flatten(0, 1)
    rows_dt = torch.zeros(shape.num_heads, shape.hidden_size)
    last_token = torch.zeros(shape.conv_size, 1, shape.kernel_size)
    last_token[..., -1] = 1
    tensors["mamba.in_proj.weight"] = torch.cat([gate, rows_x, rows_b, rows_c, rows_dt])
    tensors["mamba.conv1d.weight"], tensors["mamba.D"] = last_token, torch.full((shape.num_heads,), SKIP)
    tensors["mamba.conv1d.bias"] = torch.zeros(shape.conv_size)
    tensors["mamba.A_log"], tensors["mamba.dt_bias"] = spread_memory(shape.num_heads, repeats)
    columns = o.view(-1, attention_shape.num_heads, dim)[:, owners] / repeats
    tensors["mamba.out_proj.weight"] = columns.flatten(1).contiguous()
    return tensors


def spread_memory(num_heads: int, repeats: int = 1) -> tuple[Tensor, Tensor]:
    """(A_log, dt_bias), float32 (heads,), of heads that forget between 1 and 0.001 per token, evenly in logarithm.

    A is 1, so that a head with step size dt is an average over about 1 / dt tokens whose weights sum to about 1, and
    no head drowns the others in the norm of their group. Neighbours differ as much as they can.
    """
    dt = torch.logspace(math.log10(MOST_DT), math.log10(LEAST_DT), num_heads)
    stride = max(1, round(math.sqrt(num_heads)))
    order = torch.cat([torch.arange(start, num_heads, stride) for start in range(stride)])
    return torch.zeros(num_heads), dt[order].expm1().log()


def _split(heads: Any, count: int) -> list[Any]:
    """`heads` in `count` parts of about equal size; of too few heads some are used more than once."""
    if len(heads) < count:
        heads = np.resize(heads, count)
    return list(np.array_split(heads, count))


def _weight(attention: Mapping[str, Tensor], name: str) -> Tensor:
    """The float32 weight of one projection of the attention."""
    found = [tensor for key, tensor in attention.items() if f".{key}".endswith(f".{name}.weight")]
    if len(found) != 1:
        what = f"{len(found)} tensors end in '{name}.weight' among {sorted(attention)[:8]}."
        raise PlanError(Problem("attention", what, "Derive mixers from an attention of Llama's kind."))
    return found[0].float()


def _refuse(shape: Mamba2Shape, attention: AttentionShape) -> None:
    problems = []
    if shape.state_size % attention.head_dim:
        what = f"a state of {shape.state_size} is not a multiple of the attention's heads of {attention.head_dim}."
        problems.append(Problem("mixer.state", what, "Give a multiple, or init: fresh."))
    if shape.head_dim != attention.head_dim or shape.num_heads % attention.num_heads:
        what = f"{shape.num_heads} heads of {shape.head_dim} cannot be derived from {attention.num_heads} heads of "
        problems.append(Problem("mixer.expand", f"{what}{attention.head_dim}.", "Give another expand, or init: fresh."))
    if problems:
        raise PlanError(*problems)
