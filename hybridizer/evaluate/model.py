"""The scores of one loaded model: bits of every text, and samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from hybridizer.core.progress import Monitor
from hybridizer.evaluate.bits import num_scored_tokens, score_documents
from hybridizer.evaluate.samples import continue_prompts, num_prompts
from hybridizer.evaluate.scores import Scores, TextScores
from hybridizer.evaluate.texts import TextSet
from hybridizer.models.hardware import has_bfloat16
from hybridizer.models.load import max_tokens
from hybridizer.models.parts import Parts
from hybridizer.recipe.models import Evaluate


def score_model(
    model: nn.Module,
    tokenizer: Any,
    parts: Parts,
    identity: str,
    texts: Sequence[TextSet],
    settings: Evaluate,
    monitor: Monitor,
) -> Scores:
    """The scores of `model`, which `identity` names, where it is and in the precision it was loaded in.

    Samples come first: a prompt that does not fit is reported before the long work. Raises what `continue_prompts` and
    `score_documents` raise.
    """
    with monitor.task("continue prompts", num_prompts(texts, settings), "prompts") as advance:
        samples = continue_prompts(model, tokenizer, texts, settings, advance)
    context = min(settings.context, max_tokens(model.config) or settings.context)
    scored = tuple(_score_text(model, parts, text, context, monitor) for text in texts)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return Scores(identity, dtype, scored, samples)


def default_device() -> torch.device:
    """The accelerator of this machine, or the CPU."""
    return (torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None) or torch.device(
        "cpu"
    )


def compute_dtype() -> str:
    """What weights are loaded in to be scored: "auto", as they are stored, or "float32" where bfloat16 is emulated."""
    return "auto" if has_bfloat16(default_device().type) else "float32"


def _score_text(model: nn.Module, parts: Parts, text: TextSet, context: int, monitor: Monitor) -> TextScores:
    with monitor.task(f"score '{text.name}'", num_scored_tokens(text, context), "tokens") as advance:
        bits = score_documents(model, parts, text, context, advance)
    return TextScores(
        name=text.name,
        role=text.role,
        identity=text.identity,
        bits=tuple(bits.tolist()),
        num_bytes=tuple(document.num_bytes for document in text.documents),
        num_tokens=text.num_tokens,
        documents_available=text.documents_available,
        tokens_available=text.tokens_available,
        documents_trained=text.documents_trained,
        context=context,
    )
