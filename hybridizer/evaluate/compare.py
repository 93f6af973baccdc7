"""Before and after: bits per byte of the same documents by two models, with paired intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hybridizer.core.bootstrap import Interval, interval, resampling_weights
from hybridizer.core.records import to_jsonable
from hybridizer.evaluate.scores import Scores, TextScores

SCHEMA = "hybridizer.scores/1"
NUM_RESAMPLES = 2000
BETTER, WORSE, NO_DIFFERENCE = "better", "worse", "no difference shown"
LEAST_DOCUMENTS = 6  # five changes of one sign have a probability of 1/16, more than 5%
FEW_DOCUMENTS = 10


@dataclass(frozen=True)
class Comparison:
    """Bits per byte of `num_documents` documents: sums of bits over sums of bytes, so that long documents weigh more.

    `change` is after less before: negative is better. Intervals are 95%, by the bootstrap over documents, the same
    resamples on both sides; None for one document. `verdict` is "better" or "worse" where the interval of the change
    lies on one side of 0 and there are LEAST_DOCUMENTS, else "no difference shown". `caveat` is why the intervals
    are unreliable, None where they are not. They cover other documents like these, not other training runs.
    """

    num_documents: int
    before: float
    before_ci: Interval | None
    after: float
    after_ci: Interval | None
    change: float
    change_ci: Interval | None
    verdict: str
    caveat: str | None


def compare_bits(
    before: Sequence[float], after: Sequence[float], num_bytes: Sequence[int], seed: int = 0
) -> Comparison:
    """The comparison of two lists of bits, one figure per document, in the same order as the documents' `num_bytes`."""
    bits, size = np.array([before, after], np.float64), np.array(num_bytes, np.float64)
    count = len(size)
    assert bits.shape == (2, count) and count, (bits.shape, count)
    first, second = (float(sums) for sums in bits.sum(axis=1) / size.sum())
    spreads: list[Interval | None] = [None, None, None]
    if count > 1:
        weights = resampling_weights(count, NUM_RESAMPLES, seed)
        samples = (weights @ bits.T) / (weights @ size)[:, None]
        spreads = [interval(column) for column in (*samples.T, samples[:, 1] - samples[:, 0])]
    return Comparison(
        num_documents=count,
        before=first,
        before_ci=spreads[0],
        after=second,
        after_ci=spreads[1],
        change=second - first,
        change_ci=spreads[2],
        verdict=_verdict(spreads[2], count),
        caveat=_caveat(count),
    )


def compare_scores(before: Scores, after: Scores, seed: int = 0) -> dict[str, Any]:
    """Two models on the same texts and prompts, as the plain JSON object of schema "hybridizer.scores/1".

    `sets` holds, for every text, its counts and the fields of Comparison; `samples` every prompt with what the model
    made of it before and after.
    """
    sets = [_compare_texts(one, other, seed) for one, other in zip(before.texts, after.texts, strict=True)]
    samples = []
    for one, other in zip(before.samples, after.samples, strict=True):
        assert (one.source, one.prompt) == (other.source, other.prompt), "samples of other prompts"
        about = {"source": one.source, "prompt": one.prompt}
        samples.append({**about, "before": one.continuation, "after": other.continuation})
    return {
        "schema": SCHEMA,
        "models": {"before": before.model, "after": after.model},
        "dtypes": {"before": before.dtype, "after": after.dtype},
        "seed": seed,
        "num_resamples": NUM_RESAMPLES,
        "sets": sets,
        "samples": samples,
    }


def _compare_texts(before: TextScores, after: TextScores, seed: int) -> dict[str, Any]:
    assert (before.identity, before.context) == (after.identity, after.context), f"'{before.name}': other documents"
    found = compare_bits(before.bits, after.bits, before.num_bytes, seed)
    return {
        "name": before.name,
        "role": before.role,
        "num_bytes": sum(before.num_bytes),
        "num_tokens": before.num_tokens,
        "documents_available": before.documents_available,
        "tokens_available": before.tokens_available,
        "documents_trained": before.documents_trained,
        "context": before.context,
        **to_jsonable(found),
    }


def _verdict(change: Interval | None, count: int) -> str:
    if change is None or count < LEAST_DOCUMENTS or change[0] <= 0 <= change[1]:
        return NO_DIFFERENCE
    return BETTER if change[1] < 0 else WORSE


def _caveat(count: int) -> str | None:
    if count == 1:
        return "one document has no interval"
    if count < LEAST_DOCUMENTS:
        return f"{count} documents cannot show a difference at 95%, whatever their changes"
    if count < FEW_DOCUMENTS:
        return f"only {count} documents: the intervals are too narrow"
    return None
