"""A synthetic recall probe: lists of keys with values, and the question which value a key has.

What a hybrid loses first, and likelihood hardly shows: 0.2 points behind by likelihood, 20.8 when generating
(arXiv 2603.26556).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from hybridizer.evaluate.exam import Question

SEED = 20261126
NUM_CONTEXTS = 20  # per length; the bootstrap is over them
QUESTIONS_PER_CONTEXT = 5
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"


def make_recall(num_pairs: int, seed: int = SEED) -> tuple[tuple[Question, ...], ...]:
    """Questions in contexts of `num_pairs` pairs: for each of NUM_CONTEXTS contexts, QUESTIONS_PER_CONTEXT of them.

    A key is a made-up word of four letters, a value a number of four digits; all are different within a context. The
    one continuation is the right value. The keys asked for are spread over the whole list. The same arguments give the
    same questions, for any tokenizer. Chance is 1 / `num_pairs`: any of the values in the context.
    """
    generator = random.Random(f"{seed}/{num_pairs}")
    return tuple(_make_context(num_pairs, generator, f"context {number}") for number in range(NUM_CONTEXTS))


def _make_context(num_pairs: int, generator: random.Random, name: str) -> tuple[Question, ...]:
    keys = _different(num_pairs, lambda: "".join(map(generator.choice, (CONSONANTS, VOWELS) * 2)))
    values = _different(num_pairs, lambda: str(generator.randrange(1000, 10000)))
    listed = "".join(f"{key}: {value}\n" for key, value in zip(keys, values, strict=True))
    count = min(QUESTIONS_PER_CONTEXT, num_pairs)
    asked = [generator.randrange(i * num_pairs // count, (i + 1) * num_pairs // count) for i in range(count)]
    return tuple(Question(f"{listed}\n{keys[at]}:", (f" {values[at]}",), 0, name) for at in asked)


def _different(count: int, draw: Callable[[], str]) -> Sequence[str]:
    """`count` different texts, in the order they are drawn."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[draw()] = None
    return tuple(found)
