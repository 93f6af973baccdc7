"""Causal attention on a CPU, document by document: used in place of torch's fused kernel during a training.

In bfloat16 torch's kernel reaches a tenth of what the processor's matrix products do. Products of whole blocks of
queries reach far more (numbers in docs/log.md). Rows that hold several documents are given to torch with a mask of all
pairs of tokens, of which it computes every one; here the pairs inside each document are computed, in float32 as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

MIN_TOKENS = 256  # of a row: in shorter ones, the calls of a document cost as much as what they save
_BLOCK_QUERIES = {torch.bfloat16: 128, torch.float32: 64}  # per head: the scores of a block stay in the cache

# Of one document: its row, its first token, and the token after its last.
Span: TypeAlias = tuple[int, int, int]


@contextmanager
def document_attention(dtype: torch.dtype) -> Iterator[None]:
    """Inside the block, causal attention in `dtype` on a CPU runs on each document of a row separately.

    The documents are read off the mask: any other mask, dropout, a cache, and in float32 rows of one document, are left
    to torch. The block replaces `torch.nn.functional.scaled_dot_product_attention`, by which models reach it.
    """
    torch_attention = functional.scaled_dot_product_attention
    found: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # the documents of each mask at hand, None: other masks

    def spans_of(mask: Tensor | None, shape: torch.Size, is_causal: bool) -> Sequence[Span] | None:
        rows, _, tokens, _ = shape
        if mask is None:
            whole = is_causal and dtype == torch.bfloat16
            return [(row, 0, tokens) for row in range(rows)] if whole else None
        if is_causal or mask.dtype != torch.bool or mask.shape not in ((n, 1, tokens, tokens) for n in (1, rows)):
            return None
        if mask not in found:
            found[mask] = find_documents(mask)
        spans: Sequence[Span] | None = found[mask]
        if spans is None or len(mask) == rows:
            return spans
        return [(row, begin, end) for row in range(rows) for _, begin, end in spans]

    def attention(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
        is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    ) -> Tensor:  # fmt: skip
        spans = None
        if dropout_p == 0 and _is_self_attention(query, key, value, dtype, enable_gqa):
            spans = spans_of(attn_mask, query.shape, is_causal)
        if spans is None:
            return torch_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        return attend(query, key, value, spans, scale)

    _set_attention(attention)
    try:
        yield
    finally:
        _set_attention(torch_attention)


def find_documents(mask: Bool[Tensor, "rows 1 tokens tokens"]) -> list[Span] | None:
    """The documents of a mask in which every token sees the tokens of its own document up to itself; else None."""
    rows, _, tokens, _ = mask.shape
    pairs = mask[:, 0]
    begins = torch.ones(rows, tokens, dtype=torch.bool)
    begins[:, 1:] = ~pairs.diagonal(-1, 1, 2)  # where a token does not see the one before it
    numbers = begins.cumsum(1, dtype=torch.int32)
    places = torch.arange(tokens)
    expected = (numbers[:, :, None] == numbers[:, None, :]) & (places[:, None] >= places)
    if not torch.equal(pairs, expected):
        return None
    starts = begins.flatten().nonzero()[:, 0].tolist()
    ends = [*starts[1:], rows * tokens]
    return [(at // tokens, at % tokens, (end - 1) % tokens + 1) for at, end in zip(starts, ends, strict=True)]


def attend(
    query: Float[Tensor, "rows heads tokens width"],
    key: Float[Tensor, "rows kv_heads tokens width"],
    value: Float[Tensor, "rows kv_heads tokens value_width"],
    spans: Sequence[Span],
    scale: float | None = None,
) -> Float[Tensor, "rows heads tokens value_width"]:
    """Softmax of the scaled scores times `value`, where a token sees its own document up to itself.

    `spans` are the documents, which cover every row. Scores and weights are rounded to the dtype of the inputs, sums
    are float32. By default `scale` is 1 / sqrt(width). `kv_heads` divides `heads`.
    """
    output: Tensor = _Attention.apply(query, key, value, spans, query.shape[-1] ** -0.5 if scale is None else scale)
    return output


class _Attention(torch.autograd.Function):
    """Blocks of queries of all heads at a time; the heads that share a key are one matrix with it. No score is kept."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, spans: Sequence[Span], scale: float) -> Tensor:
        output = _empty_heads(query, value.shape[-1])
        heads = _Heads(query.shape[1], key.shape[1], scale, query.dtype)
        scores = heads.buffer(spans)
        for row, begin, end in spans:
            q, out = (heads.grouped(tensor[row, :, begin:end]) for tensor in (query, output))
            k, v = (tensor[row, :, begin:end].contiguous() for tensor in (key, value))
            for block in heads.blocks(end - begin):
                weights = heads.weights_(scores, heads.rows(q, block), k, block)
                out[:, :, block] = (weights @ v[:, : block.stop]).view_as(out[:, :, block])
        ctx.save_for_backward(query, key, value, output)
        ctx.spans, ctx.heads = spans, heads
        return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output = ctx.saved_tensors
        (grad,), heads = grad_outputs, ctx.heads
        grads = tuple(_empty_heads(tensor, tensor.shape[-1]) for tensor in (query, key, value))
        buffers = heads.buffer(ctx.spans), heads.buffer(ctx.spans)
        for row, begin, end in ctx.spans:
            inputs = (tensor[row, :, begin:end] for tensor in (query, key, value, output, grad))
            _document_gradients_(heads, buffers, [tensor[row, :, begin:end] for tensor in grads], *inputs)
        return (*grads, None, None)


def _document_gradients_(
    heads: _Heads, buffers: tuple[Tensor, Tensor], grads: Sequence[Tensor],
    query: Tensor, key: Tensor, value: Tensor, output: Tensor, grad: Tensor,
) -> None:  # fmt: skip
    """Write the gradients for the inputs of one document, each (heads, tokens, width), into `grads`."""
    key = key.contiguous()
    # The slope of a score is weight * (grad . value - grad . output). The second term is the same for all keys of a
    # query: as two more columns of the product (its rounding, and the rest) it is subtracted before any rounding.
    sums = torch.linalg.vecdot(grad.float(), output.float())
    rounded = sums.to(grad.dtype)
    wide_grad = torch.cat([grad, -rounded[..., None], (rounded - sums).to(grad.dtype)[..., None]], -1)
    wide_value = torch.cat([value, value.new_ones(*value.shape[:2], 2)], -1)
    q, g, grad_query = (heads.grouped(tensor) for tensor in (query, wide_grad, grads[0]))
    sum_key, sum_value = (torch.zeros(tensor.shape, dtype=torch.float32) for tensor in (key, value))
    for block in heads.blocks(key.shape[1]):
        seen = slice(0, block.stop)
        q_rows, g_rows = heads.rows(q, block), heads.rows(g, block)
        weights = heads.weights_(buffers[0], q_rows, key, block)
        sum_value[:, seen] += weights.mT @ g_rows[..., :-2]
        slopes = torch.bmm(g_rows, wide_value[:, seen].mT, out=_shaped(buffers[1], weights.shape)).mul_(weights)
        grad_query[:, :, block] = (slopes @ key[:, seen]).mul_(heads.scale).view_as(grad_query[:, :, block])
        sum_key[:, seen] += slopes.mT @ q_rows
    grads[1].copy_(sum_key.mul_(heads.scale))
    grads[2].copy_(sum_value)


class _Heads:
    """Query heads in groups that share a key, as (kv_heads, heads of a group, tokens, width)."""

    def __init__(self, num_heads: int, num_kv_heads: int, scale: float, dtype: torch.dtype) -> None:
        self.scale = scale
        self._num_heads, self._num_kv_heads, self._dtype = num_heads, num_kv_heads, dtype
        self._size = _BLOCK_QUERIES[dtype]
        self._later = torch.ones(self._size, self._size, dtype=torch.bool).triu_(1)

    def grouped(self, tensor: Tensor) -> Tensor:
        """A view of (heads, tokens, width)."""
        return tensor.unflatten(0, (self._num_kv_heads, -1))

    def blocks(self, num_tokens: int) -> list[slice]:
        """The queries of a document in blocks; a block sees the keys up to its end."""
        return [slice(at, min(num_tokens, at + self._size)) for at in range(0, num_tokens, self._size)]

    def rows(self, grouped: Tensor, block: slice) -> Tensor:
        """The tokens of `block` as one matrix for each key head."""
        return grouped[:, :, block].flatten(1, 2)

    def buffer(self, spans: Sequence[Span]) -> Tensor:
        """Room for the scores of the largest block."""
        longest = max(end - begin for _, begin, end in spans)
        return torch.empty(self._num_heads * min(self._size, longest) * longest, dtype=self._dtype)

    def weights_(self, buffer: Tensor, queries: Tensor, key: Tensor, block: slice) -> Tensor:
        """The attention of a block's `queries` to the keys that they see, (kv_heads, rows, keys), in `buffer`."""
        size = block.stop - block.start
        scores = _shaped(buffer, (*queries.shape[:2], block.stop))
        torch.baddbmm(scores, queries, key[:, : block.stop].mT, beta=0, alpha=self.scale, out=scores)
        diagonal = scores.unflatten(1, (-1, size))[..., block]
        diagonal.masked_fill_(self._later[:size, :size], -torch.inf)
        return torch.softmax(scores, -1, out=scores)


def _is_self_attention(query: Tensor, key: Tensor, value: Tensor, dtype: torch.dtype, shares_keys: bool) -> bool:
    """Whether these are heads over the same tokens, on a CPU, in rows that are long enough."""
    if not (query.ndim == key.ndim == value.ndim == 4 and query.device.type == "cpu"):
        return False
    same = query.dtype == key.dtype == value.dtype == dtype and key.shape[:3] == value.shape[:3]
    same = same and query.shape[0] == key.shape[0] and query.shape[2:] == key.shape[2:]
    heads, kv_heads = query.shape[1], key.shape[1]
    return same and query.shape[2] >= MIN_TOKENS and (heads % kv_heads == 0 if shares_keys else heads == kv_heads)


def _empty_heads(like: Tensor, width: int) -> Tensor:
    """(rows, heads, tokens, `width`) in the memory order of (rows, tokens, heads, width), as models join heads."""
    rows, heads, tokens, _ = like.shape
    return like.new_empty(rows, tokens, heads, width).transpose(1, 2)


def _shaped(buffer: Tensor, shape: Sequence[int]) -> Tensor:
    """The beginning of `buffer` in this shape."""
    return buffer[: torch.Size(shape).numel()].view(*shape)


def _set_attention(attention: Callable[..., Tensor]) -> None:
    vars(functional)["scaled_dot_product_attention"] = attention
