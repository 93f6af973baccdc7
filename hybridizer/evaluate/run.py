"""A model folder -> its scores on some texts, cached by model, texts and settings; two scores -> a record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridizer import __version__
from hybridizer.core.cache import cache_folder
from hybridizer.core.errors import CheckpointError
from hybridizer.core.progress import Monitor
from hybridizer.core.records import content_hash, write_json
from hybridizer.recipe.models import Evaluate

if TYPE_CHECKING:
    from hybridizer.evaluate.scores import Scores
    from hybridizer.evaluate.texts import TextSet


def evaluate(
    folder: Path,
    identity: str,
    texts: Sequence[TextSet],
    settings: Evaluate,
    monitor: Monitor,
    *,
    remote_code: bool = False,
) -> Scores:
    """The scores of the model in `folder`, computed on this machine's accelerator if it has one.

    Weights compute in the precision they are stored in, or in float32 on a device that would emulate bfloat16.
    `identity` is a hash of the model's content: equal models on equal texts are scored once. A damaged cache entry is
    replaced. Raises DonorError for a folder that cannot be loaded, and whatever `score_model` raises.
    """
    from hybridizer.evaluate.model import compute_dtype, default_device, score_model
    from hybridizer.evaluate.scores import read_scores
    from hybridizer.models.load import load_causal_lm
    from hybridizer.models.parts import find_parts
    from hybridizer.models.quiet import without_bars

    named = [(text.name, text.role, text.documents_trained, text.identity) for text in texts]
    place = (default_device().type, compute_dtype())
    how = (settings.context, settings.prompts, settings.new_tokens)
    key = content_hash([identity, named, how, place, __version__]).removeprefix("sha256:")
    path = cache_folder() / "scores" / f"{key}.json"
    if path.is_file():
        try:
            scores = read_scores(path, str(path))
        except CheckpointError as error:
            monitor.note(f"scoring again: {error}")
        else:
            monitor.note(f"scores of {folder.name}: unchanged, from the cache")
            return scores
    with without_bars():
        model, tokenizer = load_causal_lm(folder, compute_dtype(), trust_remote_code=remote_code)
    model = model.to(default_device())
    scores = score_model(model, tokenizer, find_parts(model), identity, texts, settings, monitor)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, scores.to_json())
    return scores


def compare_runs(before: Scores, after: Scores, *, seed: int) -> dict[str, Any]:
    """The record of schema "hybridizer.scores/1": both on every text, with intervals, and their samples."""
    from hybridizer.evaluate.compare import compare_scores

    return compare_scores(before, after, seed)
