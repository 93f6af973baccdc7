"""Which context tokens are masked, and which token replaces them.

arXiv 2605.11416 masks a share of the context tokens without specifying which, and with what; both are settings here.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridizer.core.errors import InputError, Problem
from hybridizer.core.records import read_json

AUTO = "auto"
NONE = "none"
FILLERS = ("_", ".", " ", "?", "0")
FREQUENT = (" the", "the", "的", ",", "e", "0")  # what "auto" takes as the second mask token


@dataclass(frozen=True)
class MaskToken:
    """The token that replaces a masked one: its id, its text in the vocabulary, and how it was chosen."""

    id: int
    text: str
    chosen_as: str


def choose_mask_token(tokenizer: Any, mask_with: str = AUTO) -> MaskToken:
    """The token named by `mask_with`: an id in digits, the text of a token, or "auto".

    "auto" takes the tokenizer's mask, unknown or padding token, the first that exists; for a tokenizer without them the
    first of FILLERS that is one token. Raises InputError for a text that is not exactly one token.
    """
    if mask_with == AUTO:
        return _default_mask_token(tokenizer)
    if mask_with.isdecimal():
        token = int(mask_with)
        if token >= len(tokenizer):
            what = f"there is no token {token}: the tokenizer has {len(tokenizer)}, numbered from 0."
            raise InputError(Problem("mask_with", what, "Give an id below that, or a token's text."))
        return MaskToken(token, tokenizer.convert_ids_to_tokens(token), "id")
    found = _as_one_token(tokenizer, mask_with)
    if found is None:
        pieces = tokenizer.convert_ids_to_tokens(tokenizer.encode(mask_with, add_special_tokens=False))
        what = f"{mask_with!r} is not one token of this tokenizer but {pieces}."
        raise InputError(Problem("mask_with", what, "Give a text that is one token, or a token's id."))
    return MaskToken(found, tokenizer.convert_ids_to_tokens(found), "text")


def choose_second_mask(tokenizer: Any, first: MaskToken, mask_with: str = AUTO) -> MaskToken | None:
    """A mask token other than `first`, named as for `choose_mask_token`; None for "none".

    "auto" takes the first of FREQUENT that is one token: a word that occurs, where the first is usually one that does
    not; None where none of them is. Raises InputError for the same token twice.
    """
    if mask_with == NONE:
        return None
    if mask_with != AUTO:
        token = choose_mask_token(tokenizer, mask_with)
        if token.id == first.id:
            what = f"the second mask token is the first one, {first.text!r}."
            raise InputError(Problem("second_mask_with", what, "Name another token, or none."))
        return token
    for text in FREQUENT:
        found = _as_one_token(tokenizer, text)
        if found is not None and found != first.id:
            return MaskToken(found, tokenizer.convert_ids_to_tokens(found), "frequent token")
    return None


def draw_positions(ids: Sequence[int], special: frozenset[int], share: float, seed: int, index: int) -> tuple[int, ...]:
    """The positions to mask in prompt number `index`, ascending: `share` of its context tokens, rounded, at least one.

    Context tokens [ours]: all except special tokens (which carry no content and serve as attention sinks) and the last
    token, whose residual stream is read. Drawn per prompt, independent of batches and of resuming.
    """
    context = [position for position, token in enumerate(ids[:-1]) if token not in special]
    count = min(len(context), max(1, math.floor(share * len(context) + 0.5))) if share > 0 else 0
    return tuple(sorted(random.Random(f"{seed}:{index}").sample(context, count)))


def mask(ids: Sequence[int], positions: Sequence[int], token: MaskToken) -> list[int]:
    """`ids` with the token at each of `positions` replaced."""
    hidden = set(positions)
    return [token.id if position in hidden else kept for position, kept in enumerate(ids)]


def read_positions(path: Path, lengths: Sequence[int]) -> list[tuple[int, ...]]:
    """Positions from a JSON file, one list per prompt; `lengths` are the prompts' numbers of tokens.

    Raises InputError for a file of another form, another number of lists, and positions that a prompt does not have.
    """
    lists = read_json(path)
    fix = "Write one list of token positions per prompt, in file order, such as [[1, 3], [2]]."
    if not isinstance(lists, list) or not all(isinstance(item, list) for item in lists):
        raise InputError(Problem(str(path), "this is not a JSON list of lists.", fix))
    if len(lists) != len(lengths):
        raise InputError(Problem(str(path), f"{len(lists)} lists of positions for {len(lengths)} prompts.", fix))
    problems = [
        Problem(
            f"{path}: list {number}", f"position {position!r} in a prompt of {length} tokens (0..{length - 1}).", fix
        )
        for number, (item, length) in enumerate(zip(lists, lengths, strict=True), start=1)
        for position in item
        if type(position) is not int or not 0 <= position < length
    ]
    if problems:
        raise InputError(*problems[:20])
    return [tuple(sorted(set(item))) for item in lists]


def _default_mask_token(tokenizer: Any) -> MaskToken:
    for kind in ("mask", "unk", "pad"):
        token = getattr(tokenizer, f"{kind}_token_id", None)
        if token is not None:
            return MaskToken(token, tokenizer.convert_ids_to_tokens(token), f"{kind} token")
    for filler in FILLERS:
        token = _as_one_token(tokenizer, filler)
        if token is not None:
            return MaskToken(token, tokenizer.convert_ids_to_tokens(token), "filler")
    what = f"the tokenizer has no mask, unknown or padding token, and none of {FILLERS} is one token."
    raise InputError(Problem("mask_with", what, "Name the token to mask with, by text or id."))


def _as_one_token(tokenizer: Any, text: str) -> int | None:
    vocabulary = tokenizer.get_vocab()
    if text in vocabulary:
        return int(vocabulary[text])
    ids = tokenizer.encode(text, add_special_tokens=False)
    return int(ids[0]) if len(ids) == 1 and ids[0] != tokenizer.unk_token_id else None
