"""Greedy generation through transformers, with the cache each family brings and nothing of a model's own taste."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


@torch.no_grad()
def continue_greedily(model: Any, ids: Sequence[int], num_tokens: int, end: int | None) -> list[int]:
    """The most probable next token, `num_tokens` times at most and not beyond the token `end`, which is left out.

    transformers fills what a call leaves open from the model's generation config (penalties, suppressed tokens, least
    lengths), so a neutral one stands in for it meanwhile.
    """
    if num_tokens < 1:
        return []
    row = torch.tensor([list(ids)], device=model.get_input_embeddings().weight.device)
    own = model.generation_config
    model.generation_config = type(own)()
    try:
        output = model.generate(
            row,
            attention_mask=torch.ones_like(row),
            do_sample=False,
            max_new_tokens=num_tokens,
            eos_token_id=end,
            pad_token_id=0,  # never used: there is one row
        )
    finally:
        model.generation_config = own
    found: list[int] = output[0, row.shape[1] :].tolist()
    return found[:-1] if found[-1:] == [end] else found
