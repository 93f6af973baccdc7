"""What scoring one model gives: bits of every document and continuations of prompts, as plain values for JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hybridizer.core.errors import CheckpointError, Problem
from hybridizer.core.records import to_jsonable


@dataclass(frozen=True)
class ScoreSettings:
    """`context` tokens a window at most; `new_tokens` of every continuation at most.

    Continued are the beginnings of `prompts_per_text` documents of every text, and `prompts` besides.
    """

    context: int = 1024
    prompts: tuple[str, ...] = ()
    new_tokens: int = 40
    prompts_per_text: int = 2


@dataclass(frozen=True)
class TextScores:
    """One text: `bits[i]` and `num_bytes[i]` of its document i. The other counts are those of the TextSet.

    `context` is the length of the windows in tokens, less than was asked where the model takes less.
    """

    name: str
    role: str
    identity: str
    bits: tuple[float, ...]
    num_bytes: tuple[int, ...]
    num_tokens: int
    documents_available: int
    tokens_available: int
    documents_trained: int
    context: int


@dataclass(frozen=True)
class Sample:
    """A prompt, where it is from (a text's name, or "recipe"), and the model's greedy continuation, raw."""

    source: str
    prompt: str
    continuation: str


@dataclass(frozen=True)
class Scores:
    """One model, named by a hash of its content, on some texts. `dtype` is that of its weights, such as "bfloat16"."""

    model: str
    dtype: str
    texts: tuple[TextScores, ...]
    samples: tuple[Sample, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values from which `read_scores` makes these scores again, bit for bit."""
        found: dict[str, Any] = to_jsonable(self)
        return found


def read_scores(value: Mapping[str, Any], where: str) -> Scores:
    """The scores that `to_json` gave `value`. Raises CheckpointError, naming `where`, for anything else."""
    try:
        texts = tuple(
            TextScores(**{**text, "bits": tuple(text["bits"]), "num_bytes": tuple(text["num_bytes"])})
            for text in value["texts"]
        )
        samples = tuple(Sample(**sample) for sample in value["samples"])
        return Scores(value["model"], value["dtype"], texts, samples)
    except (KeyError, TypeError) as error:
        what = f"not the scores of a model: {type(error).__name__}: {error}."
        raise CheckpointError(Problem(where, what, "Delete the file; it is made again.")) from error
