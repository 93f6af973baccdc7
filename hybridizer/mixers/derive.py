"""Tensors of new mixers from the Q, K, V and O of the attention that they replace, by kind.

Every function takes the shape of the mixer, the attention's shape and tensors, and the tensors of a fresh mixer, of
which it keeps what has no counterpart in an attention. Sources: MambaInLlama (arXiv 2408.15237) and MOHAWK (arXiv
2408.10189) for Q to C, K to B, V to x and O to out_proj. The spread of the memory is ours.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hybridizer.core.errors import PlanError, Problem
from hybridizer.families.mixer_shapes import AttentionShape, DeltaNetShape, Mamba2Shape, ShortConvShape
from hybridizer.mixers.heads import last_token, map_heads, spread_memory

# How much of the value of the token itself is added. Of held-out attention outputs of five layers of SmolLM2, 0.646 was
# explained with 3, 0.634 with 1, 0.624 with 0.3 (measured once; no command repeats it).
SKIP = 3.0


def derive_mamba2(
    shape: Mamba2Shape, attention_shape: AttentionShape, attention: Mapping[str, Tensor], fresh: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Float32 tensors of a Mamba-2 layer: Q becomes C, K becomes B, V becomes x and O becomes out_proj.

    The convolution passes its last token on, D adds the value of the token itself, and the rows of the step size are 0.
    The memory of the heads is spread: the product of A and the step size, which is what a head forgets per token, runs
    from 1 to 0.001. The gate stays random. Raises PlanError as `map_heads` does, and for heads of another width.
    """
    _refuse_width(shape.head_dim, attention_shape)
    heads = map_heads(attention_shape, attention, shape.num_heads, shape.num_groups, shape.state_size)
    tensors = dict(fresh)
    gate = tensors["mamba.in_proj.weight"][: shape.inner_size]
    steps = torch.zeros(shape.num_heads, shape.hidden_size)
    tensors["mamba.in_proj.weight"] = torch.cat([gate, heads.values, heads.keys, heads.queries, steps])
    tensors["mamba.conv1d.weight"] = last_token(shape.conv_size, shape.kernel_size)
    tensors["mamba.conv1d.bias"] = torch.zeros(shape.conv_size)
    tensors["mamba.D"] = torch.full((shape.num_heads,), SKIP)
    tensors["mamba.A_log"], tensors["mamba.dt_bias"] = spread_memory(shape.num_heads)
    tensors["mamba.out_proj.weight"] = heads.output
    return tensors


def derive_delta_net(
    shape: DeltaNetShape, attention_shape: AttentionShape, attention: Mapping[str, Tensor], fresh: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Float32 tensors of a gated delta net: Q, K, V and O stay what they are, averaged over the heads that share a key.

    The convolution passes its last token on; the rows of the writing strength are 0, which makes it a half, and so are
    those of the decay, whose spread is that of `derive_mamba2`. The gate stays random. Raises PlanError as that does.
    """
    _refuse_width(shape.head_dim, attention_shape)
    heads = map_heads(attention_shape, attention, shape.num_heads, shape.num_groups, shape.state_size)
    tensors = dict(fresh)
    tensors["linear_attn.in_proj_qkv.weight"] = torch.cat([heads.queries, heads.keys, heads.values])
    for name in ("a", "b"):
        tensors[f"linear_attn.in_proj_{name}.weight"] = torch.zeros(shape.num_heads, shape.hidden_size)
    tensors["linear_attn.conv1d.weight"] = last_token(shape.conv_size, shape.kernel_size)
    tensors["linear_attn.A_log"], tensors["linear_attn.dt_bias"] = spread_memory(shape.num_heads)
    tensors["linear_attn.out_proj.weight"] = heads.output
    return tensors


def derive_short_conv(
    shape: ShortConvShape, attention_shape: AttentionShape, attention: Mapping[str, Tensor], fresh: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Float32 tensors of a gated short convolution: V becomes x and O becomes out_proj; both gates stay random.

    Heads that share one value look at different tokens: the first at the last token, the next at the one before it, and
    so on. Raises PlanError for an attention whose heads are not as wide together as the stream.
    """
    if attention_shape.num_heads * attention_shape.head_dim != shape.hidden_size:
        what = (
            f"{attention_shape.num_heads} heads of {attention_shape.head_dim} do not fill {shape.hidden_size} channels."
        )
        raise PlanError(Problem("mixer.kind", what, "Give another kind, or init: fresh."))
    dim = attention_shape.head_dim
    heads = map_heads(attention_shape, attention, attention_shape.num_heads, 1, dim)
    tensors = dict(fresh)
    gates = tensors["conv.in_proj.weight"][: 2 * shape.hidden_size]
    tensors["conv.in_proj.weight"] = torch.cat([gates, heads.values])
    tap = [shape.kernel_size - 1 - copy % shape.kernel_size for copy in heads.copies]
    weight = torch.zeros(len(tap), dim, shape.kernel_size)
    weight[torch.arange(len(tap)), :, tap] = 1
    tensors["conv.conv.weight"] = weight.flatten(0, 1)[:, None]
    tensors["conv.out_proj.weight"] = heads.output
    return tensors


def _refuse_width(head_dim: int, attention: AttentionShape) -> None:
    if head_dim != attention.head_dim:
        what = f"heads of {head_dim} cannot be derived from the attention's of {attention.head_dim}."
        raise PlanError(Problem("mixer.head_dim", what, "Leave head_dim out, or give init: fresh."))
