"""Greedy and sampled generation through transformers, with each family's own cache and a neutral generation config."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


@torch.no_grad()
def continue_greedily(model: Any, ids: Sequence[int], num_tokens: int, end: int | None) -> list[int]:
    """Greedily generated token ids: at most `num_tokens`, stopping before the token `end`."""
    if num_tokens < 1:
        return []
    row = torch.tensor([list(ids)], device=model.get_input_embeddings().weight.device)
    with _neutral(model):
        output = model.generate(
            row,
            attention_mask=torch.ones_like(row),
            do_sample=False,
            max_new_tokens=num_tokens,
            eos_token_id=end,
            pad_token_id=0,  # never used: there is one row
        )
    found: list[int] = output[0, row.shape[1] :].tolist()
    return found[:-1] if found[-1:] == [end] else found


@torch.no_grad()
def sample_rows(
    model: Any, rows: Sequence[Sequence[int]], num_tokens: int, temperature: float, end: int | None, seed: int
) -> list[list[int]]:
    """What follows each of `rows`, prompts of one length: at most `num_tokens` drawn ids each, `end` included.

    Drawn from the whole distribution at `temperature`, with the model's cache and a neutral generation config. The same
    seed, rows and device give the same ids.
    """
    ids = torch.tensor([list(row) for row in rows], device=model.get_input_embeddings().weight.device)
    with _neutral(model), torch.random.fork_rng(devices=[ids.device] if ids.device.type == "cuda" else []):
        torch.manual_seed(seed)
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=temperature,
            top_k=0,
            top_p=1.0,
            max_new_tokens=num_tokens,
            eos_token_id=end,
            pad_token_id=0 if end is None else end,
        )
    found = [row[ids.shape[1] :] for row in output.tolist()]
    return [row[: row.index(end) + 1] if end in row else row for row in found]


@contextmanager
def _neutral(model: Any) -> Iterator[None]:
    """Inside the block, nothing of the model's generation config counts.

    transformers takes defaults from it: penalties, suppressed tokens, minimum lengths.
    """
    own = model.generation_config
    model.generation_config = type(own)()
    try:
        yield
    finally:
        model.generation_config = own
