"""What the probe builders share: WordNet's relations, few-shot prompts with their labels, balanced halves.

Not a command; the scripts build_probes_*.py import it.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from hybridizer.trace.probes import Probe

WORDNET = Path("/usr/share/wordnet")  # Debian's wordnet-base, WordNet 3.0
WORDNET_COPYRIGHT = Path("/usr/share/doc/wordnet-base/copyright")
DATA = Path(__file__).parent.parent / "hybridizer" / "trace" / "data"
FILES = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
NUM_EXAMPLES = 3
NUMBERS = {"n": 1, "v": 2, "a": 3, "r": 4, "s": 5}  # how sense keys spell the part of speech

Pair = tuple[str, str]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Question:
    """One question of a task: `text` up to the answer, and `shown`, the whole line with its answer, as an example."""

    kind: str
    template: str
    cluster: str
    text: str
    target: str
    shown: str


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
        self.folder = folder
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

    def words(self, name: str) -> set[str]:
        """Every word that is a noun, verb, adj or adv, as WordNet's files name the parts of speech."""
        lines = (self.folder / f"index.{name}").read_text().splitlines()
        return {line.split()[0] for line in lines if not line.startswith(" ")}

    def mostly(self, name: str, min_share: float) -> list[str]:
        """Words in small letters that are of this part of speech in at least `min_share` of their tagged uses."""
        pos = next(letter for letter, file in FILES.items() if file == name)
        uses: Counter[str] = Counter()
        for key, count in self.sense_counts.items():
            word, _, rest = key.partition("%")
            uses[word] += count if rest.startswith(str(NUMBERS[pos])) else 0
        plain = (word for word in sorted(self.words(name)) if re.fullmatch("[a-z]+", word))
        return [word for word in plain if uses[word] >= min_share * max(1, self.word_counts[word])]

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


def few_shot(kind: str, pairs: Sequence[Pair], template: str, generator: random.Random) -> list[dict[str, str]]:
    """One prompt for each direction of each pair: three other pairs set into `template`, then the question."""
    prompts = []
    for pair in [*pairs, *((b, a) for a, b in pairs)]:
        cluster = pair if pair in pairs else pair[::-1]
        asked = question(kind, template, label(kind, *cluster), a=pair[0], b=pair[1])
        others = [other for other in pairs if not set(pair) & set(other)]
        examples = [other[:: generator.choice((1, -1))] for other in generator.sample(others, NUM_EXAMPLES)]
        shown = "".join(template.format(a=first, b=second) + "\n" for first, second in examples)
        prompts.append(prompt(asked, shown))
    return prompts


def label(kind: str, *words: str) -> str:
    """The cluster of a prompt about these words."""
    return f"{kind}: {'/'.join(words)}"


def question(kind: str, template: str, cluster: str, **words: str) -> Question:
    """The words set into the template, whose `{b}` is the answer. The space before it belongs to the target."""
    before = template.partition("{b}")[0]
    text = before.rstrip(" ")
    return Question(
        kind, template, cluster, text.format(**words), before[len(text) :] + words["b"], template.format(**words)
    )


def prompt(asked: Question, examples: str) -> dict[str, str]:
    """One line of a probe file."""
    labels = {"kind": asked.kind, "template": asked.template, "cluster": asked.cluster}
    return {"prompt": examples + asked.text, "target": asked.target, **labels}


def ask(questions: Sequence[Question], generator: random.Random) -> list[dict[str, str]]:
    """One prompt per question, behind three other questions of its template with their answers.

    The examples are of the same half of the set, so that a model that was trained on one half has not seen the answers
    of the other. No prompt shows its own answer: what cannot be asked so is left out.
    """
    groups: dict[tuple[str, str, bool], list[Question]] = defaultdict(list)
    for asked in questions:
        groups[asked.kind, asked.template, is_held_out(asked.cluster)].append(asked)
    prompts = []
    for asked in questions:
        group = groups[asked.kind, asked.template, is_held_out(asked.cluster)]
        others = [o for o in group if o.cluster != asked.cluster and not shows(o.shown, asked.target)]
        if not shows(asked.text, asked.target) and len(others) >= NUM_EXAMPLES:
            examples = generator.sample(others, NUM_EXAMPLES)
            prompts.append(prompt(asked, "".join(example.shown + "\n" for example in examples)))
    return prompts


def shows(text: str, target: str) -> bool:
    """Whether the text holds the target as a word; Chinese is not divided into words: anywhere."""
    word = target.strip()
    return word in re.findall(r"\w+", text) if word.isascii() else word in text


def is_held_out(cluster: str) -> bool:
    """The half of a cluster, as hybridizer draws it."""
    return Probe("", cluster=cluster).held_out


def take_balanced(items: Iterable[Item], clusters: Callable[[Item], str], count: int) -> list[Item]:
    """The first `count` / 2 items of either half, or as many as the smaller half has; the two halves in turns."""
    halves: tuple[list[Item], list[Item]] = ([], [])
    for item in items:
        halves[is_held_out(clusters(item))].append(item)
    size = min(count // 2, *map(len, halves))
    return [item for both in zip(halves[0][:size], halves[1][:size], strict=True) for item in both]


def in_turns(items: Sequence[Item], count: int) -> list[Sequence[Item]]:
    """`count` groups of items that came in turns from both halves: pair after pair, so that each group is balanced."""
    return [[item for k in range(2 * i, len(items), 2 * count) for item in items[k : k + 2]] for i in range(count)]


def wordnet_license() -> str:
    """WordNet's licence as Debian states it."""
    stanza = WORDNET_COPYRIGHT.read_text("utf-8").partition("License: WordNet3.0\n")[2].partition("\nFiles:")[0]
    return "\n".join(line.removeprefix(" ").removeprefix(".") for line in stanza.rstrip().split("\n")) + "\n"


def write_questions(name: str, questions: Sequence[Question], generator: random.Random, license_text: str) -> None:
    """Write the questions as a shuffled probe set, and print their clusters in order."""
    prompts = ask(questions, generator)
    generator.shuffle(prompts)
    write_probes(name, prompts, license_text)
    print(*dict.fromkeys(asked.cluster for asked in questions), sep="\n")


def write_probes(name: str, prompts: Iterable[Mapping[str, str]], license_text: str) -> None:
    """Write the probe set and its licence into the package's data folder."""
    lines = [json.dumps(prompt, ensure_ascii=False) + "\n" for prompt in prompts]
    (DATA / f"{name}.jsonl").write_text("".join(lines), "utf-8")
    (DATA / f"{name}.LICENSE").write_text(license_text, "utf-8")
