"""Prompts and what may follow them, scored by a loaded model: bits of each continuation, and whether it is greedy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hybridizer.core.errors import InputError, Problem, RunError
from hybridizer.evaluate.fitting import batch_tokens, run_batches
from hybridizer.models.batching import make_batches
from hybridizer.models.load import max_tokens
from hybridizer.models.loss import loss_chunk_bytes
from hybridizer.models.objective import CausalLMLoss
from hybridizer.models.parts import MODEL_FAULTS, Parts

BATCH_ROWS = 64
LEAST_PREFIX = 32  # tokens; sharing fewer saves less than copying their cache costs
LEAST_INPUTS = 3
CACHE_TOLERANCE = {torch.float32: 0.01}  # bits per continuation, between a shared prefix and a repeated one
HALF_TOLERANCE = 0.2

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """Token ids of a prompt and of one continuation, at least one token each."""

    prompt: Tokens
    target: Tokens

    @property
    def inputs(self) -> Tokens:
        """What goes into the model: the last token of the continuation is only predicted."""
        return self.prompt + self.target[:-1]


@dataclass(frozen=True)
class RowScore:
    """-log2 p of the continuation given the prompt, and whether each of its tokens is the most probable one."""

    bits: float
    is_greedy: bool


def encode_row(tokenizer: Any, prompt: str, continuation: str) -> Row:
    """The row of two texts, tokenised as one: spaces at the end of the prompt belong to the continuation.

    The same split as lm-eval's. Special tokens are those that the tokenizer puts before a text, without an end token.
    """
    kept = prompt.rstrip(" ")
    whole, before = encode_prompt(tokenizer, prompt + continuation), encode_prompt(tokenizer, kept)
    return Row(before, whole[len(before) :])


def encode_prompt(tokenizer: Any, text: str) -> Tokens:
    """The tokens of a text that something follows."""
    ids = tuple(tokenizer(text, truncation=False, verbose=False)["input_ids"])
    return ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids


def refuse_broken(bits: Sequence[float], where: str) -> None:
    """Return if all bits are finite numbers; RunError at `where` otherwise."""
    broken = [at for at, value in enumerate(bits) if not math.isfinite(value)]
    if broken:
        what = f"the loss is not a number on {len(broken)} of {len(bits)} items, the first being {broken[0] + 1}."
        fix = "The weights are damaged, or their precision is too low for this model: use float32 or bfloat16."
        raise RunError(Problem(where, what, fix))


class RowScorer:
    """Scores rows with one model. Rows that share an input go through once, and a prefix that all share once."""

    def __init__(self, model: nn.Module, parts: Parts, note: Callable[[str], None] = lambda text: None) -> None:
        """Raises InputError as `CausalLMLoss` does. `note` gets one line if prefixes cannot be shared here."""
        self._objective, self._parts, self._note = CausalLMLoss(model, parts), parts, note
        self._room = max_tokens(model.config)
        self._shares_prefix: bool | None = None

    def score(
        self, rows: Sequence[Row], where: str, advance: Callable[[int], None] = lambda rows: None
    ) -> list[RowScore]:
        """The score of every row, in order; `advance` gets how many rows are done.

        Raises InputError at `where` for a row that is longer than the model takes or has no continuation, RunError
        where memory does not hold a single row.
        """
        self._refuse_unfit(rows, where)
        inputs: dict[Tokens, list[int]] = {}
        for at, row in enumerate(rows):
            inputs.setdefault(row.inputs, []).append(at)
        unique = list(inputs)
        shared, cache = self._share_prefix(unique, min(len(row.prompt) for row in rows), where)
        lengths = [len(ids) - shared for ids in unique]

        def run(batch: tuple[int, ...]) -> dict[int, RowScore]:
            ids = torch.tensor([unique[i][shared:] for i in batch], device=self._parts.device)
            hidden = self._objective.hidden(ids, **_past(cache, len(batch)))
            return self._read(hidden, [[(at, rows[at]) for at in inputs[unique[i]]] for i in batch])

        scores: dict[int, RowScore] = {}
        batches = make_batches(lengths, BATCH_ROWS, batch_tokens(self._parts.device))
        with torch.no_grad():
            for _, found in run_batches(batches, run, where):
                scores |= found
                advance(len(found))
        refuse_broken([scores[at].bits for at in range(len(rows))], where)
        return [scores[at] for at in range(len(rows))]

    def _refuse_unfit(self, rows: Sequence[Row], where: str) -> None:
        longest = max(rows, key=lambda row: len(row.inputs))
        if self._room is not None and len(longest.inputs) > self._room:
            what = f"an item of {len(longest.inputs):,} tokens, and the model takes {self._room:,}."
            raise InputError(Problem(where, what, "Use fewer examples or shorter items."))
        if any(not row.prompt or not row.target for row in rows):
            what = "a prompt or an answer is less than one token in this tokenizer."
            raise InputError(Problem(where, what, "Write a prompt before it, or another answer."))

    def _read(self, hidden: Tensor, members: Sequence[Sequence[tuple[int, Row]]]) -> dict[int, RowScore]:
        """The scores of a batch from the inputs of its head: `members[i]` are the rows that share input i."""
        places: list[int] = []
        wanted: list[int] = []
        owners: list[int] = []
        for line, sharing in enumerate(members):
            for at, row in sharing:
                first = hidden.shape[1] - len(row.target)
                places += [line * hidden.shape[1] + first + offset for offset in range(len(row.target))]
                wanted += row.target
                owners += [at] * len(row.target)
        device = hidden.device
        distinct, back = torch.tensor(places, device=device).unique(return_inverse=True)
        targets = torch.tensor(wanted, device=device)
        flat = hidden.flatten(0, 1)[distinct]
        losses = torch.empty(len(wanted), device=device)
        greedy = torch.empty(len(wanted), dtype=torch.bool, device=device)
        step = max(1, loss_chunk_bytes(device) // (4 * self._objective.logits(flat[:1]).shape[-1]))
        for start in range(0, len(flat), step):
            logits = self._objective.logits(flat[start : start + step])
            here = ((back >= start) & (back < start + step)).nonzero()[:, 0]
            lines = back[here] - start
            chosen = logits[lines, targets[here]]
            losses[here] = torch.logsumexp(logits, -1)[lines] - chosen
            greedy[here] = chosen == logits.amax(-1)[lines]
        bits: dict[int, float] = {}
        exact: dict[int, bool] = {}
        for at, loss, is_top in zip(owners, losses.double().tolist(), greedy.tolist(), strict=True):
            bits[at] = bits.get(at, 0.0) + loss / math.log(2)
            exact[at] = exact.get(at, True) and is_top
        return {at: RowScore(bits[at], exact[at]) for at in bits}

    def _share_prefix(self, inputs: Sequence[Tokens], shortest: int, where: str) -> tuple[int, Any]:
        """How many first tokens all inputs share, and the model's cache of them; 0 and None if it does not pay.

        Fewer than the `shortest` prompt has, since the first token of an answer is predicted from its last one.
        A cache that changes the result is not used: state-space layers and windows may treat a text that comes in two
        pieces differently. The first two inputs are scored both ways to find out.
        """
        shared = min(_common_prefix(inputs), shortest - 1)
        if shared < LEAST_PREFIX or len(inputs) < LEAST_INPUTS or self._shares_prefix is False:
            return 0, None
        ids = torch.tensor([inputs[0][:shared]], device=self._parts.device)
        with torch.no_grad():
            try:
                cache = self._objective.cache(ids)
                agrees = self._shares_prefix or (cache is not None and self._agrees(inputs[:2], shared, cache))
            except MODEL_FAULTS as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                agrees = False
        if not agrees:
            self._note(f"{where}: this model's cache cannot share a prefix; every item is computed in full")
            self._shares_prefix = False
            return 0, None
        self._shares_prefix = True
        return shared, cache

    def _agrees(self, inputs: Sequence[Tokens], shared: int, cache: Any) -> bool:
        for ids in inputs:
            row = torch.tensor([ids], device=self._parts.device)
            whole = self._objective.hidden(row)[0, -1:]
            part = self._objective.hidden(row[:, shared:], **_past(cache, 1))[0, -1:]
            one, other = (torch.log_softmax(self._objective.logits(h), -1) for h in (whole, part))
            likely = one > math.log(1e-4)  # a token of less probability decides no figure at this precision
            limit = CACHE_TOLERANCE.get(whole.dtype, HALF_TOLERANCE) * math.log(2)
            if not bool(((one - other).abs()[likely] < limit).all()):
                return False
        return True


def _past(cache: Any, num_rows: int) -> dict[str, Any]:
    """The cache of a prefix for so many rows, as an argument of the model: a copy, since the model adds to it."""
    if cache is None:
        return {}
    own = deepcopy(cache)
    own.batch_repeat_interleave(num_rows)
    return {"past_key_values": own}


def _common_prefix(inputs: Sequence[Tokens]) -> int:
    """How many first tokens all inputs share, at least one token of each left over."""
    first, last = min(inputs), max(inputs)
    most = min(map(len, inputs)) - 1
    return next((at for at in range(most) if first[at] != last[at]), most)
