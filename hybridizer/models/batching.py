"""Prompts into batches of one length, so that no batch needs padding.

Padding would have to be masked for each family in its own way, and state-space layers read it regardless.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Limits the activations of one batch for prompts of any length.
MAX_BATCH_TOKENS = 2048


def make_batches(lengths: Sequence[int], batch_size: int, max_tokens: int = MAX_BATCH_TOKENS) -> list[tuple[int, ...]]:
    """Indices into `lengths`, every index once: batches of equal length, at most `batch_size` prompts each.

    Long prompts are put into smaller batches, of at most `max_tokens` or one prompt. Longest first, so that
    a device that is too small fails at once.
    """
    by_length: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        by_length.setdefault(length, []).append(index)
    batches = []
    for length, indices in sorted(by_length.items(), reverse=True):
        size = max(1, min(batch_size, max_tokens // length))
        batches += [tuple(indices[start : start + size]) for start in range(0, len(indices), size)]
    return batches


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`; from a host to CUDA through pinned memory, from which the copy does not stop the host."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
