"""Probe sets: prompts, each with the expected next word where that is known.

A probe file is JSON Lines in UTF-8, one object per line: {"prompt": "...", "target": "..."}; `target` may be left out.
Two sets of 500 antonym and synonym prompts are built in, made by scripts/build_probes_en.py and build_probes_zh.py.
arXiv 2605.11416 and 2604.20556 use such prompts too, made from the AntSynNET pairs.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from hybridizer.core.errors import InputError, Problem, nearest

BUILT_IN = {
    "antonyms-en": "WordNet 3.0 License",
    "antonyms-zh": "CC BY-SA 4.0",
}
MAX_PROBLEMS_SHOWN = 50
_KEYS = ("prompt", "target", "kind", "template", "cluster")


class ProbeError(InputError):
    """A probe file that cannot be used: every problem in it, each with file and line."""


@dataclass(frozen=True)
class Probe:
    """One prompt, and the text that should follow it; None where none is given.

    `kind` is its task, `template` the sentence it is set into, and prompts of one `cluster` are not independent, such
    as a pair of words asked both ways; all are names, None where none is given.
    """

    prompt: str
    target: str | None = None
    kind: str | None = None
    template: str | None = None
    cluster: str | None = None


@dataclass(frozen=True)
class ProbeSet:
    """Probes in file order. `sha256` is the hexadecimal digest of the file's bytes, as `sha256sum` prints it."""

    name: str
    sha256: str
    probes: tuple[Probe, ...]
    license: str | None = None


@dataclass(frozen=True)
class TargetCheck:
    """The targets in one tokenizer: `token_ids[i]` is probe i's target as one token, or None.

    None has one of three causes, counted separately: the probe has no target (`num_without`), the target is several
    tokens or merges with the end of the prompt (`num_several`), or its token is the unknown token (`num_unknown`).
    """

    token_ids: tuple[int | None, ...]
    num_without: int
    num_several: int
    num_unknown: int

    @property
    def num_single(self) -> int:
        """How many targets are exactly one token: the n of every accuracy."""
        return sum(token is not None for token in self.token_ids)


def load_probes(reference: str) -> ProbeSet:
    """The built-in set of that name, else the probe file at that path."""
    return builtin_probes(reference) if reference in BUILT_IN else read_probes(Path(reference))


def builtin_probes(name: str) -> ProbeSet:
    """A probe set shipped with hybridizer: `antonyms-en` or `antonyms-zh`. Raises ProbeError for any other name."""
    if name not in BUILT_IN:
        raise ProbeError(Problem("probes", f"there is no built-in probe set '{name}'.", nearest(name, BUILT_IN)))
    data = resources.files("hybridizer.trace").joinpath("data", f"{name}.jsonl").read_bytes()
    return ProbeSet(name, _digest(data), _parse(f"{name}.jsonl", data), BUILT_IN[name])


def read_probes(path: Path) -> ProbeSet:
    """The probes in a JSON Lines file; blank lines and a byte-order mark are skipped.

    Raises ProbeError with every problem of the file, each with its line: not UTF-8, not JSON, an unknown or
    repeated key, a prompt or target that is missing, empty or no text, a file without a probe.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        what = f"the probe file cannot be read: {error.strerror}."
        fix = f"Give a JSON Lines file, or a built-in set: {', '.join(BUILT_IN)}."
        raise ProbeError(Problem(str(path), what, fix)) from None
    return ProbeSet(path.name, _digest(data), _parse(str(path), data))


def check_targets(probes: Sequence[Probe], tokenizer: Any) -> TargetCheck:
    """Which targets are exactly one token for this tokenizer, and which token.

    The target is tokenised in its place after the prompt, because a word at the start of a text and the
    same word after a space are different tokens almost everywhere. It counts as single when prompt and target
    together are the prompt's tokens plus one. Works for tokenizers without mask, unknown or padding token.
    """
    counts: Counter[str] = Counter()
    token_ids = tuple(_target_token(probe, tokenizer, counts) for probe in probes)
    return TargetCheck(token_ids, counts["without"], counts["several"], counts["unknown"])


def continuation(probe: Probe) -> str:
    """The target as it follows the prompt: after a space, unless there is one or the script uses none.

    So a user may write "cold" for " cold" after "The opposite of hot is". No space goes in after white space, an
    opening quote or bracket, or before a script that is written without spaces (Chinese, Japanese, Thai, ...).
    """
    assert probe.target is not None, "a probe without target has no continuation"
    spaced = probe.prompt[-1].isspace() or probe.target[0].isspace()
    opened = unicodedata.category(probe.prompt[-1]) in {"Ps", "Pi"} or probe.prompt[-1] in "\"'"
    return probe.target if spaced or opened or not _takes_space(probe.target[0]) else f" {probe.target}"


def _takes_space(character: str) -> bool:
    names = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "IDEOGRAPHIC", "FULLWIDTH")
    return character.isalnum() and not unicodedata.name(character, "").startswith(names)


def _target_token(probe: Probe, tokenizer: Any, counts: Counter[str]) -> int | None:
    if probe.target is None:
        counts["without"] += 1
        return None
    texts = [probe.prompt, probe.prompt + continuation(probe)]
    prompt, whole = tokenizer(texts, add_special_tokens=False)["input_ids"]
    if whole[:-1] != prompt:
        counts["several"] += 1
        return None
    if whole[-1] == getattr(tokenizer, "unk_token_id", None):
        counts["unknown"] += 1
        return None
    return int(whole[-1])


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _parse(name: str, data: bytes) -> tuple[Probe, ...]:
    probes: list[Probe] = []
    problems: list[Problem] = []
    for number, line in enumerate(_decode(name, data).split("\n"), start=1):
        if line.strip():
            found = list(_problems(f"{name}:{number}", line, probes))
            problems += found
    if problems:
        raise ProbeError(*_shortened(name, problems))
    if not probes:
        raise ProbeError(Problem(name, "the file holds no probe.", 'Write one {"prompt": "..."} per line.'))
    return tuple(probes)


def _decode(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = f"{name}:{data[: error.start].count(10) + 1}"
        what = f"not UTF-8 text: byte 0x{data[error.start]:02x} at offset {error.start}."
        raise ProbeError(Problem(where, what, "Save the file as UTF-8.")) from None


def _problems(where: str, line: str, probes: list[Probe]) -> Iterator[Problem]:
    """Yield the problems of one line; append its probe to `probes` where there are none."""
    try:
        pairs = json.loads(line, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        yield Problem(
            where, f"not valid JSON: {getattr(error, 'msg', error)}.", 'Write {"prompt": "...", "target": "..."}.'
        )
        return
    if not isinstance(pairs, _Pairs):
        yield Problem(where, "the line is not a JSON object.", 'Write {"prompt": "...", "target": "..."}.')
        return
    found = list(_key_problems(where, pairs))
    values = dict(pairs)
    found += _text_problems(where, "prompt", values.get("prompt"))
    for key in _KEYS[1:]:
        if values.get(key) is not None:
            found += _text_problems(where, key, values[key])
    if not found:
        probes.append(Probe(**values))
    yield from found


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as its pairs, so that repeated keys are found."""


def _key_problems(where: str, pairs: _Pairs) -> Iterator[Problem]:
    for key, count in Counter(key for key, _ in pairs).items():
        if key not in _KEYS:
            yield Problem(where, f"unknown key '{key}'.", nearest(key, _KEYS))
        elif count > 1:
            yield Problem(where, f"the key '{key}' occurs {count} times.", "Keep one.")


def _text_problems(where: str, key: str, value: Any) -> Iterator[Problem]:
    if value is None:
        yield Problem(where, f"there is no '{key}'.", f'Give it: "{key}": "...".')
    elif not isinstance(value, str):
        yield Problem(where, f"'{key}' is not text but {json.dumps(value)[:40]}.", "Put it in double quotes.")
    elif not value.strip():
        yield Problem(where, f"'{key}' is empty.", "Give it some text, or leave the target out.")
    elif any("\ud800" <= character <= "\udfff" for character in value):
        yield Problem(
            where, f"'{key}' holds half of a surrogate pair, which is not a character.", "Write the whole character."
        )


def _shortened(name: str, problems: list[Problem]) -> list[Problem]:
    rest = len(problems) - MAX_PROBLEMS_SHOWN
    if rest <= 0:
        return problems
    return [*problems[:MAX_PROBLEMS_SHOWN], Problem(name, f"and {rest} more problems of this kind.", "")]
