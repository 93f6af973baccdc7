"""What the two probe builders share: WordNet's relations, a vocabulary as a measure of commonness, few-shot prompts.

Not a command; build_probes_en.py and build_probes_zh.py import it.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

WORDNET = Path("/usr/share/wordnet")  # Debian's wordnet-base, WordNet 3.0
WORDNET_COPYRIGHT = Path("/usr/share/doc/wordnet-base/copyright")
DATA = Path(__file__).parent.parent / "hybridizer" / "trace" / "data"
FILES = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
NUM_EXAMPLES = 3
NUMBERS = {"n": 1, "v": 2, "a": 3, "r": 4, "s": 5}  # how sense keys spell the part of speech

Pair = tuple[str, str]


@dataclass(frozen=True)
class Synset:
    """One meaning: words with lexical ids; pointers as (symbol, offset, part of speech, source and target word)."""

    kind: str
    file: str
    words: tuple[tuple[str, str], ...]
    pointers: tuple[tuple[str, str, str, str], ...]


class WordNet:
    """WordNet 3.0 as Debian ships it: synsets, and how often each sense and each word was tagged in its corpus."""

    def __init__(self, folder: Path = WORDNET) -> None:
        if not folder.is_dir():
            raise SystemExit(f"{folder} is missing: apt-get install wordnet-base")
        self.synsets = {
            (pos, line[:8]): _synset(line)
            for pos, name in FILES.items()
            for line in (folder / f"data.{name}").read_text().splitlines()
            if not line.startswith("  ")
        }
        self.sense_counts: Counter[str] = Counter()
        self.word_counts: Counter[str] = Counter()
        for line in (folder / "cntlist.rev").read_text().splitlines():
            key, _, count = line.split()
            self.sense_counts[key] += int(count)
            self.word_counts[key.partition("%")[0]] += int(count)

    def antonyms(self) -> dict[Pair, float]:
        """Direct antonyms as {(word, opposite): share}; see `_add` for what the share is."""
        pairs: dict[Pair, list[int]] = {}
        for synset in self.synsets.values():
            for symbol, offset, pos, ends in synset.pointers:
                if symbol == "!":
                    other = self.synsets[("a" if pos == "s" else pos, offset)]
                    self._add(pairs, synset, int(ends[:2], 16) - 1, other, int(ends[2:], 16) - 1)
        return self._shares(pairs)

    def synonyms(self) -> dict[Pair, float]:
        """Words of one synset as {(word, other word): share}, alike spellings (gray, grey) left out."""
        pairs: dict[Pair, list[int]] = {}
        for synset in self.synsets.values():
            for i, (a, _) in enumerate(synset.words):
                for j, (b, _) in enumerate(synset.words):
                    if a[:4] != b[:4] and a not in b and b not in a:
                        self._add(pairs, synset, i, synset, j)
        return self._shares(pairs)

    def _add(self, pairs: dict[Pair, list[int]], one: Synset, i: int, other: Synset, j: int) -> None:
        a, b = one.words[i][0], other.words[j][0]
        if all(word.isascii() and word.isalpha() and word.islower() for word in (a, b)):
            counts = pairs.setdefault((a, b), [0, 0])
            counts[0] += self.sense_counts[self._key(one, i)]
            counts[1] += self.sense_counts[self._key(other, j)]

    def _shares(self, pairs: Mapping[Pair, Sequence[int]]) -> dict[Pair, float]:
        """The smaller share of either word's tagged uses that have the related senses: 1 when they have no other.

        Half a use is added to the senses and one to the word, so that an untagged pair counts 0.5 and a rare sense
        of a frequent word ("even" against "odd") little.
        """
        return {
            pair: min((count + 0.5) / (self.word_counts[word] + 1) for word, count in zip(pair, counts, strict=True))
            for pair, counts in pairs.items()
        }

    def _key(self, synset: Synset, index: int) -> str:
        word, lexical_id = synset.words[index]
        head = ""
        if synset.kind == "s":  # a satellite's key ends with the head word of its cluster
            offset = next(pointer[1] for pointer in synset.pointers if pointer[0] == "&")
            head_word, head_id = self.synsets[("a", offset)].words[0]
            head = f"{head_word.lower()}:{int(head_id, 16):02d}"
        tail = head or ":"
        return f"{word.lower()}%{NUMBERS[synset.kind]}:{synset.file}:{int(lexical_id, 16):02d}:{tail}"


def _synset(line: str) -> Synset:
    fields = line.partition(" | ")[0].split()
    num_words = int(fields[3], 16)
    words = tuple((fields[4 + 2 * i].partition("(")[0], fields[5 + 2 * i]) for i in range(num_words))
    start = 4 + 2 * num_words
    num_pointers = int(fields[start])
    ends = [start + 1 + 4 * i for i in range(num_pointers)]
    pointers = tuple((fields[k], fields[k + 1], fields[k + 2], fields[k + 3]) for k in ends)
    return Synset(fields[2], fields[1], words, pointers)


def mutual_best(scores: Mapping[Pair, float]) -> list[Pair]:
    """Pairs each of whose words is the other's best partner, best first: "old/young" stays, "old/new" goes."""
    best: dict[str, str] = {}
    for (a, b), _ in sorted(scores.items(), key=lambda item: (-item[1], item[0])):
        best.setdefault(a, b)
    pairs = [(a, b) for a, b in best.items() if a < b and best.get(b) == a]
    return sorted(pairs, key=lambda pair: (-scores[pair], pair))


def few_shot(pairs: Sequence[Pair], pattern: str, answer: str, generator: random.Random) -> list[dict[str, str]]:
    """One prompt for each direction of each pair: three other pairs set into `pattern`, then the question.

    The question is the pattern up to `{b}`, without the space before it: that space belongs to the target.
    """
    prompts = []
    for a, b in [*pairs, *((b, a) for a, b in pairs)]:
        others = [pair for pair in pairs if not {a, b} & set(pair)]
        examples = [pair[:: generator.choice((1, -1))] for pair in generator.sample(others, NUM_EXAMPLES)]
        shown = "".join(pattern.format(a=first, b=second) for first, second in examples)
        question = pattern.partition("{b}")[0].rstrip(" ").format(a=a)
        prompts.append({"prompt": shown + question, "target": answer.format(b=b)})
    return prompts


def wordnet_license() -> str:
    """WordNet's licence as Debian states it."""
    stanza = WORDNET_COPYRIGHT.read_text("utf-8").partition("License: WordNet3.0\n")[2].partition("\nFiles:")[0]
    return "\n".join(line.removeprefix(" ").removeprefix(".") for line in stanza.rstrip().split("\n")) + "\n"


def write_probes(name: str, prompts: Iterable[Mapping[str, str]], license_text: str) -> None:
    """Write the probe set and its licence into the package's data folder."""
    lines = [json.dumps(prompt, ensure_ascii=False) + "\n" for prompt in prompts]
    (DATA / f"{name}.jsonl").write_text("".join(lines), "utf-8")
    (DATA / f"{name}.LICENSE").write_text(license_text, "utf-8")
