"""The perplexity of one text by transformers and by llama.cpp, over the same windows of the same tokens.

llama-perplexity decides what is scored: windows of `context` tokens that do not overlap, each beginning with the
tokenizer's first special token in the place of its own where there is one; in each the second half is scored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from hybridizer.convert.tools import run_tool
from hybridizer.core.errors import InputError, Problem, RunError
from hybridizer.core.progress import Monitor
from hybridizer.models.encode import added_tokens
from hybridizer.models.load import load_causal_lm, load_tokenizer, max_tokens
from hybridizer.models.objective import CausalLMLoss
from hybridizer.models.parts import find_parts
from hybridizer.models.quiet import without_bars

LEAST_WINDOWS: Final = 2  # llama-perplexity refuses less
_ESTIMATE: Final = re.compile(r"Final estimate: PPL = (\S+)")
_CHUNKS: Final = re.compile(r"over (\d+) chunks")


@dataclass(frozen=True)
class Windows:
    """What both engines score: a text, and its token ids as transformers gives them, int64 (windows, context)."""

    text: str
    ids: Any
    tokens_per_byte: float

    @property
    def context(self) -> int:
        """Tokens of a window."""
        return int(self.ids.shape[1])

    @property
    def num_scored(self) -> int:
        """Tokens that are predicted, in all windows."""
        return len(self.ids) * (self.context - 1 - self.context // 2)

    def bits_per_byte(self, perplexity: float) -> float:
        """Bits per token of the scored tokens, times the tokens per byte of the whole text."""
        return math.log2(perplexity) * self.tokens_per_byte


def cut_text(folder: Path, text: str, where: str, context: int, most: int) -> Windows:
    """The first `most` windows of `context` tokens of `text`, by the tokenizer of the model in `folder`.

    Raises InputError for a text of fewer than two windows.
    """
    tokenizer = load_tokenizer(folder)
    row = np.asarray(tokenizer(text, verbose=False)["input_ids"], np.int64)
    count = min(len(row) // context, most)
    if count < LEAST_WINDOWS:
        what = f"the text has {len(row)} tokens, and {LEAST_WINDOWS} windows of {context} are the least."
        raise InputError(Problem(where, what, "Give more text, or a smaller --context."))
    ids = row[: count * context].reshape(count, context).copy()
    if prefix := added_tokens(tokenizer)[0]:
        ids[:, 0] = prefix[0]
    return Windows(text, ids, len(row) / len(text.encode()))


def score_transformers(folder: Path, windows: Windows, device: torch.device, monitor: Monitor) -> float:
    """The perplexity by transformers, in float32 whatever the stored dtype. Raises DonorError as loading does."""
    with without_bars():
        model, _ = load_causal_lm(folder, "float32")
    limit = max_tokens(model.config)
    if limit is not None and windows.context > limit:
        what = f"windows of {windows.context} tokens, and the model takes {limit}."
        raise InputError(Problem("--context", what, f"Give at most {limit}."))
    model.to(device)
    objective = CausalLMLoss(model, find_parts(model))
    nats = 0.0
    with torch.no_grad(), monitor.task("score by transformers", len(windows.ids), "windows") as advance:
        for row in windows.ids:
            losses = objective.token_losses(torch.from_numpy(row[None]).to(device))
            nats += float(losses[0, windows.context // 2 :].double().sum())
            advance(1)
    return math.exp(nats / windows.num_scored)


def score_llama(program: Sequence[str], file: Path, windows: Windows, folder: Path, threads: int) -> float:
    """The perplexity of the GGUF `file` by llama.cpp; keys and values are kept in float32, so that only weights round.

    `folder` takes the text. Raises RunError where it does not run, scores other windows, or gives no number.
    """
    (folder / "text.txt").write_text(windows.text, encoding="utf-8", newline="")
    size, count = str(windows.context), len(windows.ids)
    told = run_tool(
        [
            *program, "--model", str(file.absolute()), "--file", "text.txt", "--ctx-size", size, "--batch-size", size,
            "--ubatch-size", size, "--chunks", str(count), "--threads", str(threads), "--n-gpu-layers", "0",
            "--flash-attn", "off", "--cache-type-k", "f32", "--cache-type-v", "f32",
        ],
        f"scoring {file.name}",
        folder,
    )  # fmt: skip
    found, chunks = _ESTIMATE.search(told), _CHUNKS.search(told)
    if found is None or chunks is None or int(chunks[1]) != count:
        what = f"llama-perplexity gave no figure for {count} windows: {' | '.join(told.splitlines()[-3:])[-300:]}"
        fix = "The two tokenizers may differ on this text: try another --text. No file was left."
        raise RunError(Problem(file.name, what, fix))
    return float(found[1])
