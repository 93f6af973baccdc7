"""Samples of a model: greedy continuations of the beginnings of documents and of a recipe's prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import nn

from hybridizer.core.errors import InputError, Problem
from hybridizer.evaluate.scores import Sample
from hybridizer.evaluate.texts import TextSet
from hybridizer.models.encode import encode_prompts
from hybridizer.models.generation import continue_greedily
from hybridizer.models.load import max_tokens
from hybridizer.recipe.models import Evaluate

PROMPT_TOKENS = 48  # about 40 words of English
PROMPTS_PER_TEXT = 2
RECIPE = "recipe"


def continue_prompts(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[TextSet],
    settings: Evaluate,
    advance: Callable[[int], None] = lambda prompts: None,
) -> tuple[Sample, ...]:
    """Continuations of the first documents of each text, PROMPTS_PER_TEXT each, and of `settings.prompts`.

    A document is cut after PROMPT_TOKENS, or in its middle where that comes first. A continuation is the most probable
    token each time, at most `settings.new_tokens` of them, up to the end token or the model's longest input. It is raw:
    no chat template, no sampling, none of the penalties that a generation config may ask for, so that it shows the
    model, not its settings. `advance` is called for each prompt. Raises InputError for prompts that do not fit.
    """
    room, samples = max_tokens(model.config), []
    if problems := unfit_prompts(tokenizer, room, settings.prompts):
        raise InputError(*problems.values())
    for source, ids in _prompts(tokenizer, texts, settings):
        most = settings.new_tokens if room is None else min(settings.new_tokens, room - len(ids))
        samples.append(Sample(source, *_continue(model, tokenizer, ids, most)))
        advance(1)
    return tuple(samples)


def unfit_prompts(tokenizer: Any, room: int | None, prompts: Sequence[str]) -> dict[int, Problem]:
    """The problem of each of `prompts` that has one, by index: no token, or no room left for an answer.

    `room` is the model's longest input in tokens, None for a model without a limit.
    """
    problems = {}
    for index, prompt in enumerate(prompts):
        count = len(_encode(tokenizer, prompt))
        if count == 0 or (room is not None and count >= room):
            what = f"{count} tokens; the model needs at least one, and takes {room or 'any number'} with its answer."
            problems[index] = Problem(f"evaluate.prompts[{index}]", what, "Write another prompt.")
    return problems


def num_prompts(texts: Sequence[TextSet], settings: Evaluate) -> int:
    """How many prompts `continue_prompts` continues."""
    return sum(len(text.documents[:PROMPTS_PER_TEXT]) for text in texts) + len(settings.prompts)


def _prompts(tokenizer: Any, texts: Sequence[TextSet], settings: Evaluate) -> Iterator[tuple[str, list[int]]]:
    for text in texts:
        for document in text.documents[:PROMPTS_PER_TEXT]:
            ids = document.tokens.tolist()
            yield text.name, ids[: min(PROMPT_TOKENS, len(ids) // 2)]
    for prompt in settings.prompts:
        yield RECIPE, _encode(tokenizer, prompt)


def _encode(tokenizer: Any, prompt: str) -> list[int]:
    """The tokens of a prompt, without an end token that it ends with."""
    (ids,) = encode_prompts(tokenizer, [prompt])
    return ids[:-1] if ids[-1:] == [tokenizer.eos_token_id] else ids


def _continue(model: nn.Module, tokenizer: Any, prompt: list[int], most: int) -> tuple[str, str]:
    """Prompt and continuation as text."""
    following = continue_greedily(model, prompt, most, tokenizer.eos_token_id)
    before, whole = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (prompt, prompt + following))
    if whole.startswith(before):
        return before, whole[len(before) :]
    return before, tokenizer.decode(following, skip_special_tokens=True)  # the prompt ends within a character
