"""Held-out chats under a model's own template: the bits of what the assistant says."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hybridizer.core.errors import InputError, Problem
from hybridizer.core.records import content_hash
from hybridizer.evaluate.fitting import batch_tokens, run_batches
from hybridizer.evaluate.rows import refuse_broken
from hybridizer.models.batching import make_batches
from hybridizer.models.faults import library_faults
from hybridizer.models.load import max_tokens
from hybridizer.models.objective import CausalLMLoss

BATCH_ROWS = 64
MAX_PROBLEMS = 10

Message = Mapping[str, str]
Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Chats:
    """Conversations that are scored together, each a list of messages with `role` and `content`."""

    name: str
    conversations: tuple[tuple[Message, ...], ...]

    @property
    def identity(self) -> str:
        """A hash of the messages, in order."""
        return content_hash(self.conversations)

    @property
    def num_bytes(self) -> tuple[int, ...]:
        """The bytes of what the assistant says in each conversation, without the template's own text."""
        return tuple(
            sum(len(m["content"].encode()) for m in messages if m["role"] == "assistant")
            for messages in self.conversations
        )


@dataclass(frozen=True)
class ChatRow:
    """A conversation as token ids; `spoken[i]` is True for tokens of the assistant, its end-of-turn token included."""

    ids: Tokens
    spoken: tuple[bool, ...]


def read_chats(name: str, path: Path) -> Chats:
    """The conversations of a JSON Lines file: {"messages": [{"role": ..., "content": ...}, ...]} per line.

    Raises InputError with every problem, each with its line: a conversation without a word of the assistant, too.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(Problem(str(path), f"the chats cannot be read: {error}.", "Give a JSON Lines file.")) from None
    found, problems = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.append(_messages(json.loads(line)))
        except (ValueError, RecursionError) as error:
            fix = 'Write {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}.'
            problems.append(Problem(f"{path}:{number}", f"{error}.", fix))
    if not found and not problems:
        problems = [Problem(str(path), "the file holds no conversation.", "Write one JSON object per line.")]
    if problems:
        raise InputError(*problems[:MAX_PROBLEMS])
    return Chats(name, tuple(found))


def has_template(tokenizer: Any) -> bool:
    """Whether a tokenizer comes with a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def encode_chats(tokenizer: Any, chats: Chats) -> tuple[ChatRow, ...]:
    """Every conversation under the tokenizer's template, the tokens of the assistant marked.

    A turn of the assistant is what the template adds to the text that asks for it. Raises InputError for a template
    that rewrites earlier turns, or refuses these messages, and for a tokenizer that gives no places of its tokens.
    """
    return tuple(_encode(tokenizer, messages, f"chats '{chats.name}'") for messages in chats.conversations)


def score_chats(
    model: Any, parts: Any, rows: Sequence[ChatRow], where: str, advance: Callable[[int], None] = lambda tokens: None
) -> list[float]:
    """The bits of what the assistant says in each conversation: -log2 p of its tokens, given all before them.

    Raises InputError at `where` for a conversation that is longer than the model takes.
    """
    room = max_tokens(model.config)
    longest = max(len(row.ids) for row in rows)
    if room is not None and longest > room:
        what = f"a conversation of {longest:,} tokens, and the model takes {room:,}."
        raise InputError(Problem(where, what, "Leave it out, or cut its later turns."))
    objective, device = CausalLMLoss(model, parts), parts.device

    def run(batch: tuple[int, ...]) -> list[float]:
        losses = objective.token_losses(torch.tensor([rows[i].ids for i in batch], device=device)).double().cpu()
        masks = torch.tensor([rows[i].spoken[1:] for i in batch])
        sums: list[float] = ((losses * masks).sum(-1) / torch.log(torch.tensor(2.0, dtype=torch.double))).tolist()
        return sums

    bits = [0.0] * len(rows)
    batches = make_batches([len(row.ids) for row in rows], BATCH_ROWS, batch_tokens(device))
    for batch, sums in run_batches(batches, run, where):
        for at, value in zip(batch, sums, strict=True):
            bits[at] = value
        advance(sum(len(rows[at].ids) for at in batch))
    refuse_broken(bits, where)
    return bits


def _messages(record: Any) -> tuple[Message, ...]:
    """The messages of a record; ValueError says what is wrong."""
    messages = record.get("messages") if isinstance(record, Mapping) else None
    if not isinstance(messages, list) or not messages:
        raise ValueError("'messages' is missing or not a list")
    for message in messages:
        if not isinstance(message, Mapping) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise ValueError("a message needs 'role' and 'content', both text")
    if not any(message["role"] == "assistant" and message["content"] for message in messages):
        raise ValueError("the assistant says nothing")
    return tuple({"role": message["role"], "content": message["content"]} for message in messages)


def _encode(tokenizer: Any, messages: Sequence[Message], where: str) -> ChatRow:
    whole = _render(tokenizer, messages, False, where)
    spans = []
    for at, message in enumerate(messages):
        if message["role"] == "assistant":
            before = _render(tokenizer, messages[:at], True, where)
            after = _render(tokenizer, messages[: at + 1], False, where)
            if not (after.startswith(before) and whole.startswith(after)):
                what = "the chat template writes earlier turns differently once there are later ones."
                raise InputError(Problem(where, what, "Give conversations of one question and one answer."))
            spans.append((len(before), len(after)))
    if not getattr(tokenizer, "is_fast", False):
        what = "the tokenizer does not say where in a text its tokens are."
        raise InputError(Problem(where, what, "Use a model with a tokenizer.json."))
    found = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False)
    spoken = [any(begin <= start < end for begin, end in spans) for start, _ in found["offset_mapping"]]
    return ChatRow(tuple(found["input_ids"]), tuple(spoken))


def _render(tokenizer: Any, messages: Sequence[Message], ask: bool, where: str) -> str:
    try:
        with library_faults():
            text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ask)
            return text
    except (RuntimeError, TypeError, ValueError) as error:
        what = f"the chat template refuses these messages: {str(error)[:200]}"
        raise InputError(Problem(where, what, "Give messages with the roles that this model knows.")) from error
