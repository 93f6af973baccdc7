"""Prompts as token ids that a model can continue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def encode_prompts(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """The ids of each prompt, never truncated: with what the tokenizer puts before a text, without what it puts after.

    Behind an end or separator token a model predicts the beginning of another text, not the next word of this one.
    """
    num_after = len(added_tokens(tokenizer)[1])
    rows = (tokenizer(prompt, truncation=False, verbose=False)["input_ids"] for prompt in prompts)
    return [list(row[: len(row) - num_after]) for row in rows]


def added_tokens(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the tokenizer puts before and after every text, found by encoding one with and without them.

    BOS before, for most tokenizers that add anything; EOS or SEP after, for some.
    """
    whole = tuple(tokenizer("a", truncation=False, verbose=False)["input_ids"])
    bare = tuple(tokenizer("a", truncation=False, verbose=False, add_special_tokens=False)["input_ids"])
    starts = (start for start in range(len(whole) - len(bare) + 1) if whole[start : start + len(bare)] == bare)
    start = next(starts, None)
    return ((), ()) if start is None else (whole[:start], whole[start + len(bare) :])
