"""Probes as the tokens a donor is run on: clean, masked, and the one-token answer where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridizer.core.errors import InputError, Problem
from hybridizer.models.encode import encode_prompts
from hybridizer.recipe.models import Trace
from hybridizer.trace.masking import MaskToken, draw_positions, mask, read_positions
from hybridizer.trace.probes import ProbeSet, check_targets


@dataclass(frozen=True)
class Prompt:
    """One prompt as token ids, with what the tokenizer puts before a text.

    `masked`, and `masked_again` with the second mask token at the same positions, have the same length.
    """

    ids: tuple[int, ...]
    masked: tuple[int, ...] | None
    answer: int | None
    masked_again: tuple[int, ...] | None = None


def prepare_prompts(
    probes: ProbeSet,
    tokenizer: Any,
    settings: Trace,
    mask_token: MaskToken | None,
    positions: Path | None,
    seed: int = 0,
    second_token: MaskToken | None = None,
) -> list[Prompt]:
    """The prompts in file order; masked where `mask_token` is given, at positions drawn with `seed` or given.

    Raises InputError for prompts without tokens, prompts without maskable tokens, and a file of positions that does not
    fit.
    """
    shared: dict[int, int] = {}  # one object per token, not per place: half of the memory of many prompts
    encoded = [
        tuple(shared.setdefault(token, token) for token in ids)
        for ids in encode_prompts(tokenizer, [probe.prompt for probe in probes.probes])
    ]
    _refuse_short(probes, encoded, least=2 if mask_token and positions is None and settings.mask_ratio > 0 else 1)
    answers = check_targets(probes.probes, tokenizer).token_ids
    if mask_token is None:
        return [Prompt(ids, None, answer) for ids, answer in zip(encoded, answers, strict=True)]
    masked = _mask_all(probes, encoded, tokenizer, settings, mask_token, positions, seed)
    again: Sequence[tuple[int, ...] | None] = [None] * len(encoded)
    if second_token is not None:
        again = _mask_all(probes, encoded, tokenizer, settings, second_token, positions, seed)
    return [Prompt(*fields) for fields in zip(encoded, masked, answers, again, strict=True)]


def check_fit(prompts: Sequence[Prompt], probes: ProbeSet, num_embeddings: int, max_tokens: int | None) -> None:
    """Raise InputError for prompts that are too long for the model, and for a tokenizer that does not fit it."""
    problems = []
    for number, prompt in enumerate(prompts, start=1):
        where = f"{probes.name}: prompt {number}"
        if max_tokens is not None and len(prompt.ids) > max_tokens:
            what = f"{len(prompt.ids)} tokens, and the model takes {max_tokens}."
            problems.append(Problem(where, what, "Shorten the prompt, or leave it out."))
        largest = max(prompt.ids + (prompt.masked or ()) + (prompt.masked_again or ()))
        if largest >= num_embeddings:
            what = (
                f"token {largest}, and the model has embeddings for {num_embeddings}: tokenizer and model do not match."
            )
            problems.append(Problem(where, what, "Use the tokenizer the model was trained with."))
    if problems:
        raise InputError(*problems[:20])


def _refuse_short(probes: ProbeSet, encoded: Sequence[tuple[int, ...]], least: int) -> None:
    problems = [
        Problem(
            f"{probes.name}: prompt {number}", f"{len(ids)} tokens, and {least} are needed.", "Lengthen or drop it."
        )
        for number, ids in enumerate(encoded, start=1)
        if len(ids) < least
    ]
    if problems:
        raise InputError(*problems[:20])


def _mask_all(
    probes: ProbeSet,
    encoded: Sequence[tuple[int, ...]],
    tokenizer: Any,
    settings: Trace,
    token: MaskToken,
    given: Path | None,
    seed: int,
) -> list[tuple[int, ...]]:
    if given is not None:
        chosen = read_positions(given, [len(ids) for ids in encoded])
    else:
        special = frozenset(tokenizer.all_special_ids)
        chosen = [draw_positions(ids, special, settings.mask_ratio, seed, index) for index, ids in enumerate(encoded)]
        bare = [number for number, positions in enumerate(chosen, start=1) if not positions]
        if bare and settings.mask_ratio > 0:
            what = (
                f"prompts {bare[:10]} hold no token that could be masked (special tokens and the last one never are)."
            )
            raise InputError(Problem(probes.name, what, "Lengthen these prompts, or perturb the layers instead."))
    return [tuple(mask(ids, positions, token)) for ids, positions in zip(encoded, chosen, strict=True)]
