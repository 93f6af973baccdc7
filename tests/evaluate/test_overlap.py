"""Overlaps with training text: exact runs of 13 words, in any case and script."""

import json

from hybridizer.core.progress import SilentMonitor
from hybridizer.evaluate.overlap import Overlap, find_overlaps

WORDS = [f"word{n}" for n in range(40)]


def overlap_of(texts, training, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in training))
    (found,) = find_overlaps({"news": texts}, [path], "text", SilentMonitor())
    return found


def test_a_run_of_13_words_is_found_and_one_of_12_is_not(tmp_path):
    text = " ".join(WORDS[:20])
    inside = "before, " + "; ".join(WORDS[3:16]).upper() + " after"
    assert overlap_of([text], [inside], tmp_path) == Overlap("news", 1, 1, 0, 1 / 8)
    assert overlap_of([text], [" ".join(WORDS[3:15]) + " after"], tmp_path).num_found == 0
    assert overlap_of([text], [" ".join(WORDS[15:2:-1])], tmp_path).num_found == 0


def test_shares_are_of_all_runs_and_short_texts_are_counted(tmp_path):
    texts = [" ".join(WORDS[:13]), " ".join(WORDS[20:40]), "too short"]
    assert overlap_of(texts, ["x " + " ".join(WORDS[:14]), "y"], tmp_path) == Overlap("news", 3, 1, 1, 1 / 9)
    assert overlap_of(["too short"], ["too short"], tmp_path) == Overlap("news", 1, 0, 1, 0.0)


def test_characters_are_the_words_of_scripts_without_spaces(tmp_path):
    text = "一二三四五六七八九十百千万亿"
    assert overlap_of([text], [f"前面{text}后面"], tmp_path).run_share == 1
    assert overlap_of([text], [text[:12]], tmp_path).num_found == 0
