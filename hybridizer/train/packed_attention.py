"""Attention over packed rows on CUDA without a mask of all pairs of tokens, which would rule out the fast kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from hybridizer.models.objective import CausalLMLoss
from hybridizer.models.parts import MODEL_FAULTS
from hybridizer.train.isolation import in_eval, two_documents

FLEX = "flex_attention"
# Of a row: below it the mask is small, and the trial before the first step takes longer than flex attention wins back.
MIN_FLEX_TOKENS = 2048
_MIN_CAPABILITY = (8, 0)  # of the GPU: bfloat16, and enough shared memory for the kernel's blocks
_DROPOUTS = ("attention_dropout", "attn_pdrop", "attn_dropout", "attention_probs_dropout_prob")
# By how much the hidden states of both kernels may differ, of their norm: rounding over all layers. A document that
# reaches another, or a soft-cap that one of them leaves out, changes them by far more.
_ROUNDING = {torch.bfloat16: 0.05, torch.float32: 1e-3}


def choose_packed_attention(model: nn.Module, device: torch.device, row_tokens: int) -> str | None:
    """transformers' name of the attention for packed rows of `row_tokens`; None: what `model` has, with its mask.

    flex attention skips the blocks of pairs that no document has. It is chosen for rows of at least `MIN_FLEX_TOKENS`,
    on CUDA devices that run it, for models that support it, whose attention is torch's now and has no dropout, which
    flex attention lacks.
    """
    if row_tokens < MIN_FLEX_TOKENS:
        return None
    if device.type != "cuda" or find_spec("triton") is None:
        return None
    if torch.cuda.get_device_capability(device) < _MIN_CAPABILITY:
        return None
    config = getattr(model, "config", None)
    if not getattr(model, "_supports_flex_attn", False) or getattr(config, "_attn_implementation", None) != "sdpa":
        return None
    return None if any(getattr(config, name, 0) for name in _DROPOUTS) else FLEX


@contextmanager
def packed_attention(objective: CausalLMLoss, attention: str | None, vocab_size: int, num_tokens: int) -> Iterator[str]:
    """Inside the block, the model runs with `attention` if its results are those of the attention that it has.

    That is tried forward and backward on two documents in a row of `num_tokens`. Yields the name of what runs. The
    model is called with the positions of documents that are isolated already, none of them through separate modules.
    """
    model = objective.model
    before: str = getattr(getattr(model, "config", None), "_attn_implementation", "")
    if attention is None:
        yield before
        return
    sample = two_documents(vocab_size, num_tokens, next(model.parameters()).device)
    with in_eval(objective), torch.no_grad():
        expected = objective.hidden(*sample)
    try:
        _set(model, attention)
        agrees = _agrees(objective, sample, expected)
        if not agrees:
            _set(model, before)
        yield attention if agrees else before
    finally:
        _set(model, before)


def _agrees(objective: CausalLMLoss, sample: tuple[Tensor, Tensor], expected: Tensor) -> bool:
    """Whether the model gives the `expected` hidden states, within rounding, and gradients."""
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    try:
        with in_eval(objective), torch.enable_grad():
            found = objective.hidden(*sample)
            gradients = torch.autograd.grad(found.float().square().sum(), trained, allow_unused=True)
    except MODEL_FAULTS:  # kernels that do not exist for a head size, or need more shared memory than the device has
        return False
    difference = (found.detach().float() - expected.float()).norm() / expected.float().norm()
    finite = all(bool(gradient.isfinite().all()) for gradient in gradients if gradient is not None)
    return finite and float(difference) <= _ROUNDING.get(expected.dtype, 0.0)


def _set(model: nn.Module, attention: str) -> None:
    model.set_attn_implementation(attention)
