"""The scores of one model: bits of every document and continuations of prompts, as plain values for JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridizer.core.records import read_record, to_jsonable

SCHEMA = "hybridizer.model_scores/1"


@dataclass(frozen=True)
class TextScores:
    """One text: `bits[i]` and `num_bytes[i]` of its document i. The other counts are those of the TextSet.

    `context` is the length of the windows in tokens, fewer than requested where the model takes fewer.
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
        return {"schema": SCHEMA, **to_jsonable(self)}


def read_scores(source: Path | Mapping[str, Any], where: str) -> Scores:
    """The scores that `to_json` gave, from a file or as values. Raises CheckpointError at `where` for anything else."""
    return read_record(source, Scores, SCHEMA, where, "Delete the file; the model is scored again.")
