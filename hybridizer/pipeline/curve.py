"""The texts of held-out curves: opened for training, which knows only how to ask for their bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hybridizer.core.errors import Problem, RecipeError
from hybridizer.core.progress import Monitor
from hybridizer.core.records import content_hash
from hybridizer.evaluate.compare import LEAST_DOCUMENTS
from hybridizer.pipeline.evaluate import open_sets
from hybridizer.recipe.models import Evaluate, Recipe
from hybridizer.train.curve import BEST, GENERAL, IN_DOMAIN, CurveRequest, CurveText, TokenLosses


def open_curve(recipe: Recipe, folder: Path, remote_code: bool, monitor: Monitor) -> CurveRequest | None:
    """What a training of `recipe` measures on the way, tokenised with the tokenizer in `folder`; None for nothing.

    Called before the splice as well. Raises RecipeError where no document is there for what the recipe asks of the
    curves, and InputError for a general text without a document that training does not see.
    """
    from hybridizer.models.load import read_max_tokens

    settings = recipe.evaluate
    if settings is None or not settings.every:
        return None
    sets = open_sets(recipe, replace(settings, max_tokens=settings.curve_tokens), folder, remote_code, monitor)
    context = min(settings.context, read_max_tokens(folder, remote_code) or settings.context)
    texts = {text.key: text for text in (curve_text(found, context) for found in sets)}  # equal ones once
    _refuse_nothing(recipe, settings, [text.role for text in texts.values()])
    return CurveRequest(tuple(texts.values()), settings)


def curve_text(text: Any, context: int) -> CurveText:
    """The documents of a TextSet for training to measure, in windows of `context` tokens."""
    return CurveText(
        name=text.name,
        role=text.role,
        identity=content_hash([text.identity, context]),
        num_bytes=tuple(document.num_bytes for document in text.documents),
        largest_token=max(int(document.tokens.max()) for document in text.documents),
        score=partial(_score, text, context),
    )


def few_documents(request: CurveRequest) -> list[str]:
    """The general texts with too few documents for the retention limit to be judged by them."""
    if request.settings.retention is None:
        return []
    general = [text for text in request.texts if text.role == GENERAL]
    return [text.name for text in general if len(text.num_bytes) < LEAST_DOCUMENTS]


def _refuse_nothing(recipe: Recipe, settings: Evaluate, roles: Sequence[str]) -> None:
    if IN_DOMAIN in roles or (roles and settings.keep != BEST):
        return
    key, ratio = "keep" if settings.keep == BEST else "every", recipe.train_section.heldout_ratio
    what = f"no document is held out at {ratio:g}, so that there is nothing to measure in domain."
    fix = "Raise train.heldout_ratio, or split the text into more documents."
    raise RecipeError(Problem(recipe.locate(("evaluate", key)), what, fix))


def _score(text: Any, context: int, losses: TokenLosses, numbers: Sequence[int]) -> list[float]:
    from hybridizer.evaluate.bits import sum_bits

    some = replace(text, documents=tuple(text.documents[number] for number in numbers))
    found: list[float] = sum_bits(losses, some, context).tolist()
    return found
