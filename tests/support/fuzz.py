"""Damaged input by the thousand: every case ends well, within limits of time and memory, which are measured.

HYBRIDIZER_FUZZ_CASES sets how many cases of each kind are tried (a test's own default otherwise), HYBRIDIZER_FUZZ_SEED
the first of their seeds. A case depends on its kind and seed alone. With HYBRIDIZER_FUZZ_REPORT a line of JSON for
each kind is appended to that file.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hybridizer.core.errors import HybridizerError

# Of one case: of the processor, and by the clock, for a case that sleeps.
CPU_SECONDS, WALL_SECONDS = 10, 100
MEMORY_BYTES = 1_000_000_000  # that all cases of a kind may add to the process's peak

NASTY = [
    None, True, False, 0, -1, 1, 2, 3, 2**31, 2**63, 10**9, 10**30, -(10**12), 0.5, -0.0, 1e308, float("inf"), "", "a",
    "1", "\u2028", "llama", "gpt2", "x" * 5000, [], {}, [[]], [None], [1, 2, 3, 4], ["a", "b"], {"a": {"b": []}},
    {"auto_map": 1}, {"type": "BPE"}, ["full_attention"] * 4, [[["global"], 10**9]], {"rope_type": "yarn", "factor": 0},
]  # fmt: skip
NASTY_TEXTS = [
    b"", b"{", b"[]", b"null", b"\xff\xfe\x00", b"\xef\xbb\xbf{}", b'{"a": 1, "a": 2}', b'{"a": ["\\ud800"]}',
    b'{"a": ' + b"9" * 5000 + b"}", b'{"a": 1e999}', b'{"a":' * 200_000, b"[" * 200_000 + b"]" * 200_000,
    b"version https://git-lfs.github.com/spec/v1\n", b"<!doctype html>", b"GGUF", b"\0" * 1000,
]  # fmt: skip
_KEYS = """
    model_type num_hidden_layers hidden_size vocab_size num_attention_heads num_key_value_heads head_dim rope_theta
    rope_scaling rope_parameters layer_types attention_types sliding_window tie_word_embeddings architectures auto_map
    text_config quantization_config torch_dtype dtype max_position_embeddings num_nextn_predict_layers n_layer
    per_layer_config intermediate_size rms_norm_eps tokenizer_class model added_tokens vocab merges type normalizer
    pre_tokenizer post_processor decoder chat_template eos_token added_tokens_decoder truncation padding version
"""
KEYS = tuple(_KEYS.split())


def damage_bytes(data: bytes, generator: random.Random) -> bytes:
    """`data` with one or a few bytes changed, cut off, repeated or put in."""
    damaged = bytearray(data)
    for _ in range(generator.choice([1, 1, 1, 2, 5, 20])):
        place = generator.randrange(len(damaged) + 1)
        match generator.randrange(7):
            case 0:
                del damaged[place:]
            case 1:
                del damaged[place : place + generator.randrange(1, 40)]
            case 2:
                damaged[place:place] = generator.randbytes(generator.randrange(1, 20))
            case 3 if place < len(damaged):
                damaged[place] ^= 1 << generator.randrange(8)
            case 4 if place < len(damaged):
                damaged[place] = generator.choice([0, 1, 9, 0x7F, 0x80, 0xFF])
            case 5:
                damaged[place : place + 8] = generator.choice([b"\xff" * 8, bytes(8), b"\xff" * 4, bytes(7) + b"\x80"])
            case 6:
                damaged[place : place + 4] = generator.randbytes(4)
    return bytes(damaged)


def damage_value(value: Any, generator: random.Random) -> Any:
    """`value` (any JSON) with one place in it replaced, removed, renamed or added."""
    if isinstance(value, dict) and value and generator.random() < 0.8:
        key = generator.choice(sorted(value))
        changed = dict(value)
        match generator.randrange(5):
            case 0:
                del changed[key]
            case 1:
                changed[generator.choice(KEYS)] = generator.choice(NASTY)
            case 2:
                changed[generator.choice(KEYS)] = changed.pop(key)
            case _:
                changed[key] = damage_value(value[key], generator)
        return changed
    if isinstance(value, list) and value and generator.random() < 0.8:
        place = generator.randrange(len(value))
        return [*value[:place], damage_value(value[place], generator), *value[place + generator.randrange(2) :]]
    if isinstance(value, int) and generator.random() < 0.5:
        return value + generator.choice([-1, 1, 7, 10**6])
    return generator.choice(NASTY)


def damage_json(data: bytes, generator: random.Random) -> bytes:
    """JSON text with damaged characters or values."""
    choice = generator.random()
    if choice < 0.1:
        return generator.choice(NASTY_TEXTS)
    if choice < 0.35:
        return damage_bytes(data, generator)
    value = json.loads(data)
    for _ in range(generator.choice([1, 1, 2, 4])):
        value = damage_value(value, generator)
    return json.dumps(value).encode()


class Hang(BaseException):
    """A case that takes too long; BaseException, so that no handler of errors takes it."""


@contextmanager
def limited() -> Iterator[None]:
    """Raise Hang when the block takes longer than a case may."""

    def stop(*_: object) -> None:
        raise Hang

    timers = ((signal.ITIMER_PROF, signal.SIGPROF, CPU_SECONDS), (signal.ITIMER_REAL, signal.SIGALRM, WALL_SECONDS))
    before = [signal.signal(number, stop) for _, number, _ in timers]
    for timer, _, seconds in timers:
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for (timer, number, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def try_all(kind: str, attempt: Callable[[random.Random], str | None], default: int) -> Counter[str]:
    """How the cases ended, by the name of the error or what `attempt` returned ("success" for None).

    Each seed gives a generator to `attempt`. Asserts that every case ended in a result or in an error of hybridizer
    with all its parts, and that time and memory stayed within the limits.
    """
    cases = int(os.environ.get("HYBRIDIZER_FUZZ_CASES", str(default)))
    first = int(os.environ.get("HYBRIDIZER_FUZZ_SEED", "0"))
    ended: Counter[str] = Counter()
    bad: list[str] = []
    slowest = (0.0, 0)
    before = _peak_bytes()
    warnings.simplefilter("ignore")  # of libraries, about damaged files
    for seed in range(first, first + cases):
        begun = time.process_time()
        try:
            with limited():
                ended[attempt(random.Random(f"{kind} {seed}")) or "success"] += 1
        except HybridizerError as error:
            ended[type(error).__name__] += 1
            if not all(problem.where and problem.what and problem.fix for problem in error.problems):
                bad.append(f"seed {seed}: an error that lacks a part: {error}")
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            ended["ESCAPED"] += 1
            bad.append(f"seed {seed}: " + "".join(traceback.format_exception(error)[-4:]))
        slowest = max(slowest, (time.process_time() - begun, seed))
    _report(kind, cases, first, ended, slowest, before)
    assert not bad, f"{len(bad)} of {cases}\n" + "\n".join(bad[:5])
    assert _peak_bytes() - before < MEMORY_BYTES
    return ended


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _report(kind: str, cases: int, first: int, ended: Counter[str], slowest: tuple[float, int], before: int) -> None:
    line = {
        "kind": kind,
        "cases": cases,
        "first_seed": first,
        "ended": dict(ended),
        "slowest_cpu_seconds": round(slowest[0], 3),
        "slowest_seed": slowest[1],
        "peak_mb": round(_peak_bytes() / 1e6),
        "peak_grew_mb": round((_peak_bytes() - before) / 1e6),
    }
    sys.stdout.write(f"\nfuzz {json.dumps(line)}\n")
    if path := os.environ.get("HYBRIDIZER_FUZZ_REPORT"):
        with Path(path).open("a") as file:
            file.write(json.dumps(line) + "\n")
