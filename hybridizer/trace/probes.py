"""Probe sets: prompts, each with the expected next word where that is known.

A probe file is JSON Lines in UTF-8, one object per line: {"prompt": "...", "target": "..."}; `target` may be left out.
The keys `kind`, `template` and `cluster` are optional texts, see Probe.
Built in are two sets of 500 antonym and synonym prompts and two sets of several kinds of task, one of each for English
and Chinese, made by scripts/build_probes_*.py. arXiv 2605.11416 and 2604.20556 use antonyms and synonyms too, made from
the AntSynNET pairs.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from hybridizer.core.errors import DidYouMean, InputError, Problem

BUILT_IN = {
    "antonyms-en": "WordNet 3.0 License",
    "antonyms-zh": "CC BY-SA 4.0",
    "tasks-en": "WordNet 3.0 License",
    "tasks-zh": "CC BY-SA 4.0",
}
KEYS = ("prompt", "target", "kind", "template", "cluster")
MAX_PROBLEMS_SHOWN = 50


class ProbeError(InputError):
    """A probe file that cannot be used: every problem in it, each with file and line."""


@dataclass(frozen=True)
class Probe:
    """One prompt, the text that should follow it, and its labels; None for what is not given.

    `kind` names the task ("antonyms"), `template` the wording around its words. `cluster` names what the prompt asks
    about: prompts of one cluster are not independent of each other, such as one word pair asked in both directions.
    """

    prompt: str
    target: str | None = None
    kind: str | None = None
    template: str | None = None
    cluster: str | None = None

    @property
    def held_out(self) -> bool:
        """Whether the probe is in the held-out half: decided by a hash of its cluster, of its prompt without one.

        Independent of all other probes, so that the half of a probe stays when a file grows.
        """
        key = f"prompt {self.prompt}" if self.cluster is None else f"cluster {self.cluster}"
        return hashlib.sha256(key.encode()).digest()[0] % 2 == 1


@dataclass(frozen=True)
class ProbeSet:
    """Probes in file order. `sha256` is the hexadecimal digest of the file's bytes, as `sha256sum` prints it.

    That of a half is a digest of the whole file's digest and the half.
    """

    name: str
    sha256: str
    probes: tuple[Probe, ...]
    license: str | None = None

    def halves(self) -> tuple[ProbeSet, ProbeSet]:
        """The selection half and the held-out half, each in file order; no cluster is in both.

        Choices are made on the first half and competence is measured on the second, so that a model that memorised one
        of them shows it on the other. Raises ProbeError when all probes are in one half.
        """
        return self._half("selection", held_out=False), self._half("held-out", held_out=True)

    def _half(self, half: str, *, held_out: bool) -> ProbeSet:
        probes = tuple(probe for probe in self.probes if probe.held_out == held_out)
        if not probes:
            what = f"none of the {len(self.probes)} probes is in the {half} half, drawn by a hash of the cluster."
            raise ProbeError(Problem(self.name, what, "Add probes of other clusters."))
        return ProbeSet(f"{self.name}, {half} half", _digest(f"{self.sha256} {half}".encode()), probes, self.license)


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


def load_probes(reference: str) -> ProbeSet:
    """The built-in set of that name, else the probe file at that path."""
    return builtin_probes(reference) if reference in BUILT_IN else read_probes(Path(reference))


def builtin_probes(name: str) -> ProbeSet:
    """A probe set shipped with hybridizer: a name in BUILT_IN. Raises ProbeError for any other name."""
    if name not in BUILT_IN:
        raise ProbeError(Problem("probes", f"there is no built-in probe set '{name}'.", DidYouMean(name, BUILT_IN)))
    data = resources.files("hybridizer.trace").joinpath("data", f"{name}.jsonl").read_bytes()
    return ProbeSet(name, _digest(data), _parse(f"{name}.jsonl", data), BUILT_IN[name])


def read_probes(path: Path) -> ProbeSet:
    """The probes in a JSON Lines file; blank lines and a byte-order mark are skipped.

    Raises ProbeError with every problem of the file, each with its line: not UTF-8, not JSON, an unknown or
    repeated key, a text that is missing, empty or not a text, a cluster of several kinds, a prompt that has several
    clusters or several targets in one, a file without a probe.
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
    probes: dict[int, Probe] = {}  # by line
    problems: list[Problem] = []
    for number, line in enumerate(_decode(name, data).split("\n"), start=1):
        if line.strip():
            parsed = _parse_line(f"{name}:{number}", line)
            if isinstance(parsed, Probe):
                probes[number] = parsed
            else:
                problems += parsed
    problems += _contradictions(name, probes)
    if problems:
        raise ProbeError(*_shortened(name, problems))
    if not probes:
        raise ProbeError(Problem(name, "the file holds no probe.", 'Write one {"prompt": "..."} per line.'))
    return tuple(probes.values())


def _decode(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = f"{name}:{data[: error.start].count(10) + 1}"
        what = f"not UTF-8 text: byte 0x{data[error.start]:02x} at offset {error.start}."
        raise ProbeError(Problem(where, what, "Save the file as UTF-8.")) from None


def _parse_line(where: str, line: str) -> Probe | list[Problem]:
    """The probe of one line, or its problems."""
    fix = 'Write {"prompt": "...", "target": "..."}.'
    try:
        pairs = json.loads(line, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        return [Problem(where, f"not valid JSON: {getattr(error, 'msg', error)}.", fix)]
    if not isinstance(pairs, _Pairs):
        return [Problem(where, "the line is not a JSON object.", fix)]
    values = dict(pairs)
    problems = [*_key_problems(where, pairs), *_text_problems(where, "prompt", values.get("prompt"))]
    for key in KEYS[1:]:
        if values.get(key) is not None:
            problems += _text_problems(where, key, values[key])
    return problems or Probe(values["prompt"], *(values.get(key) for key in KEYS[1:]))


def _contradictions(name: str, probes: Mapping[int, Probe]) -> Iterator[Problem]:
    """Yield where labels contradict each other: a cluster has one kind, and equal prompts one cluster and target.

    `probes` are keyed by line. Prompts repeated without a cluster are left alone: nothing is claimed of them.
    """
    clusters: dict[str, int] = {}
    prompts: dict[str, int] = {}
    for number, probe in probes.items():
        where, cluster = f"{name}:{number}", probe.cluster
        if cluster is not None:
            line = clusters.setdefault(cluster, number)
            if (kind := probes[line].kind) != probe.kind:
                what = f"the cluster {cluster!r} has kind {probe.kind!r} here and {kind!r} in line {line}."
                yield Problem(where, what, "Give both lines one kind, or each a cluster of its own.")
        line = prompts.setdefault(probe.prompt, number)
        same = probes[line]
        if same.cluster != cluster:
            what = f"the prompt has cluster {cluster!r} here and {same.cluster!r} in line {line}."
            yield Problem(where, what, "Give both lines one cluster: equal prompts are not independent.")
        elif cluster is not None and same.target != probe.target:
            what = f"the prompt has target {probe.target!r} here and {same.target!r} in line {line}."
            yield Problem(where, what, "Keep the line that is right.")


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as its pairs, so that repeated keys are found."""


def _key_problems(where: str, pairs: _Pairs) -> Iterator[Problem]:
    for key, count in Counter(key for key, _ in pairs).items():
        if key not in KEYS:
            yield Problem(where, f"unknown key '{key}'.", DidYouMean(key, KEYS))
        elif count > 1:
            yield Problem(where, f"the key '{key}' occurs {count} times.", "Keep one.")


def _text_problems(where: str, key: str, value: Any) -> Iterator[Problem]:
    if value is None:
        yield Problem(where, f"there is no '{key}'.", f'Give it: "{key}": "...".')
    elif not isinstance(value, str):
        shown = json.dumps(dict(value) if isinstance(value, _Pairs) else value)[:40]
        yield Problem(where, f"'{key}' is not text but {shown}.", "Put it in double quotes.")
    elif not value.strip():
        fix = "Give it some text." if key == "prompt" else "Give it some text, or leave it out."
        yield Problem(where, f"'{key}' is empty.", fix)
    elif any("\ud800" <= character <= "\udfff" for character in value):
        yield Problem(
            where, f"'{key}' holds half of a surrogate pair, which is not a character.", "Write the whole character."
        )


def _shortened(name: str, problems: list[Problem]) -> list[Problem]:
    rest = len(problems) - MAX_PROBLEMS_SHOWN
    if rest <= 0:
        return problems
    return [*problems[:MAX_PROBLEMS_SHOWN], Problem(name, f"and {rest} more problems of this kind.", "")]
