"""Greedy generation through transformers, with each family's own cache and a neutral generation config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


@torch.no_grad()
def continue_greedily(model: Any, ids: Sequence[int], num_tokens: int, end: int | None) -> list[int]:
    """Greedily generated token ids: at most `num_tokens`, stopping before the token `end`.

    transformers takes defaults from the model's generation config (penalties, suppressed tokens, minimum lengths), so
    it is replaced by a neutral one during the call.
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
