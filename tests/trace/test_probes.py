"""Probe files are read whole or refused whole, and targets are judged by the tokenizer that will see them."""

import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import pytest

import hybridizer
from hybridizer.core.errors import InputError
from hybridizer.trace.probes import (
    BUILT_IN,
    KEYS,
    MAX_PROBLEMS_SHOWN,
    Probe,
    ProbeError,
    ProbeSet,
    builtin_probes,
    check_targets,
    continuation,
    load_probes,
    read_probes,
)
from support.tiny import tiny_tokenizer

DATA = Path(hybridizer.__file__).parent / "trace" / "data"
SHA256 = {
    "antonyms-en": "5c4808cfececd55ab64a300c3e401570bf3ea9e4e4a50f69d6359cddee48e4f8",
    "antonyms-zh": "be2511d9511d9eb23e8125ec1800fc2cbb89be7f7f4e05d01376ad6092a6f285",
    "tasks-en": "397a5911bbbd8e05e38cf72b7d0d73b3e5c8f9443148e14b50566ffa13f68684",
    "tasks-zh": "7f8db1657540d19b0dc32ad6b48bb3af8c3b6cf1c204470158f54cebfb73e147",
}
KINDS = {  # how many prompts of each kind
    "antonyms-en": {"antonyms": 400, "synonyms": 100},
    "antonyms-zh": {"antonyms": 400, "synonyms": 100},
    "tasks-en": {"antonyms": 120, "arithmetic": 110, "capitals": 102, "past tense": 120, "plurals": 120},
    "tasks-zh": {"antonyms": 120, "arithmetic": 86, "capitals": 120, "simplified": 120, "translation": 120},
}


class Greedy:
    """A tokenizer of a few pieces, longest match first, with no mask or padding token and perhaps no unknown one."""

    def __init__(self, pieces, unk_token_id=None):
        self.pieces = sorted(pieces, key=len, reverse=True)
        if unk_token_id is not None:
            self.unk_token_id = unk_token_id

    def __call__(self, texts, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [self.encode(text) for text in texts]}

    def encode(self, text):
        ids = []
        while text:
            piece = next((piece for piece in self.pieces if text.startswith(piece)), None)
            ids.append(99 if piece is None else self.pieces.index(piece))
            text = text[1 if piece is None else len(piece) :]
        return ids


@pytest.fixture
def probe_file(tmp_path):
    def write(content):
        path = tmp_path / "mine.jsonl"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def refusal(path):
    with pytest.raises(ProbeError) as caught:
        read_probes(path)
    return str(caught.value)


def test_probes_come_back_in_file_order_with_the_digest_of_the_bytes(probe_file):
    content = '{"prompt": "hot is not", "target": " cold"}\n\n{"prompt": "雪是"}\r\n{"prompt": "x", "target": null}'
    path = probe_file(content)
    assert read_probes(path) == ProbeSet(
        name="mine.jsonl",
        sha256=hashlib.sha256(content.encode()).hexdigest(),
        probes=(Probe("hot is not", " cold"), Probe("雪是", None), Probe("x", None)),
        license=None,
    )


def test_labels_are_read_and_may_be_left_out(probe_file):
    line = '{"prompt": "hot versus", "target": "cold", "kind": "antonyms", "template": "versus", "cluster": "hot/cold"}'
    path = probe_file(line + '\n{"prompt": "x", "kind": null, "cluster": "x"}')
    assert read_probes(path).probes == (
        Probe("hot versus", "cold", kind="antonyms", template="versus", cluster="hot/cold"),
        Probe("x", None, kind=None, template=None, cluster="x"),
    )


def test_a_line_separator_inside_a_prompt_ends_no_line(probe_file):
    assert read_probes(probe_file('{"prompt": "a\u2028b\x85c"}')).probes == (Probe("a\u2028b\x85c"),)


def test_a_byte_order_mark_is_passed_over(probe_file):
    assert read_probes(probe_file(b'\xef\xbb\xbf{"prompt": "a"}')).probes == (Probe("a"),)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"prompt": ' + "9" * 5000 + "}", "not valid JSON"),
        ('["prompt"]', "not a JSON object"),
        ('"prompt"', "not a JSON object"),
        ('{"target": "b"}', "no 'prompt'"),
        ('{"prompt": null}', "no 'prompt'"),
        ('{"prompt": 3}', "'prompt' is not text but 3"),
        ('{"prompt": "a", "target": ["b"]}', "'target' is not text but [\"b\"]"),
        ('{"prompt": "  "}', "'prompt' is empty"),
        ('{"prompt": "a", "target": ""}', "'target' is empty"),
        ('{"prompt": "a", "targets": "b"}', "unknown key 'targets'.\n  Did you mean 'target'?"),
        ('{"prompt": "a", "prompt": "b"}', "'prompt' occurs 2 times"),
        ('{"prompt": "a", "clusters": "b"}', "unknown key 'clusters'.\n  Did you mean 'cluster'?"),
        ('{"prompt": "a", "kind": 3}', "'kind' is not text but 3"),
        ('{"prompt": "a", "template": ["b"]}', "'template' is not text but [\"b\"]"),
        ('{"prompt": "a", "cluster": {}}', "'cluster' is not text but {}"),
        ('{"prompt": "a", "cluster": " "}', "'cluster' is empty.\n  Give it some text, or leave it out."),
        ('{"prompt": "a", "kind": "x", "kind": "y"}', "'kind' occurs 2 times"),
        ('{"prompt": "a\\ud800"}', "half of a surrogate pair"),
    ],
)
def test_a_bad_line_is_named_with_file_and_number(probe_file, line, words):
    path = probe_file('{"prompt": "fine"}\n\n' + line + "\n")
    message = refusal(path)
    assert message.startswith(f"{path}:3: ")
    assert words in message


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (
            {"prompt": "a", "kind": "x", "cluster": "c"},
            {"prompt": "b", "kind": "y", "cluster": "c"},
            "the cluster 'c' has kind 'y' here and 'x' in line 1",
        ),
        ({"prompt": "a", "cluster": "c"}, {"prompt": "a", "cluster": "d"}, "has cluster 'd' here and 'c' in line 1"),
        ({"prompt": "a", "cluster": "c"}, {"prompt": "a"}, "has cluster None here and 'c' in line 1"),
        (
            {"prompt": "a", "target": "x", "cluster": "c"},
            {"prompt": "a", "target": "y", "cluster": "c"},
            "has target 'y' here and 'x' in line 1",
        ),
    ],
    ids=["kinds", "clusters", "labelled and not", "targets"],
)
def test_labels_that_contradict_each_other_are_refused(probe_file, first, second, words):
    path = probe_file(f"{json.dumps(first)}\n\n{json.dumps(second)}\n")
    message = refusal(path)
    assert message.startswith(f"{path}:3: ") and words in message


def test_a_prompt_repeated_without_labels_is_taken_as_it_is(probe_file):
    assert len(read_probes(probe_file('{"prompt": "a", "target": "x"}\n{"prompt": "a", "target": "y"}')).probes) == 2


def pairs_both_ways(count):
    return [Probe(f"{a}{i} versus", f"{b}{i}", cluster=f"{i}") for i in range(count) for a, b in ("xy", "yx")]


def test_halves_hold_every_probe_once_and_no_cluster_is_in_both():
    probes = ProbeSet("p", "0" * 64, tuple(pairs_both_ways(200)), "some licence")
    halves = probes.halves()
    assert sorted(halves[0].probes + halves[1].probes, key=probes.probes.index) == list(probes.probes)
    clusters = [{probe.cluster for probe in half.probes} for half in halves]
    assert not clusters[0] & clusters[1] and min(map(len, clusters)) > 80
    assert [probe.held_out for half in halves for probe in half.probes] == [False] * len(halves[0].probes) + [
        True
    ] * len(halves[1].probes)
    assert {half.license for half in halves} == {"some licence"}
    assert len({probes.sha256, halves[0].sha256, halves[1].sha256}) == 3
    assert [half.name for half in halves] == ["p, selection half", "p, held-out half"]


def test_a_probe_keeps_its_half_when_others_are_added():
    """Drawn by its own content; the order of these 12 is the same on every machine and in every version."""
    drawn = "".join("01"[probe.held_out] for probe in pairs_both_ways(6))
    assert drawn == "000000110000" and [Probe(word).held_out for word in "abc"] == [True, False, False]
    few, many = (ProbeSet("p", "0", tuple(pairs_both_ways(count))).halves() for count in (40, 60))
    for half, larger in zip(few, many, strict=True):
        assert half.probes == tuple(probe for probe in larger.probes if int(probe.cluster) < 40)


def test_probes_without_cluster_are_drawn_one_by_one():
    sizes = [len(half.probes) for half in ProbeSet("p", "0", tuple(Probe(f"{i}") for i in range(400))).halves()]
    assert sum(sizes) == 400 and min(sizes) > 160


def test_probes_that_are_all_in_one_half_cannot_be_halved():
    with pytest.raises(ProbeError, match="none of the 2 probes is in the .* half.*\n  Add probes of other clusters"):
        ProbeSet("p", "0", (Probe("a", cluster="c"), Probe("b", cluster="c"))).halves()


def test_every_problem_is_reported_at_once(probe_file):
    path = probe_file('{"prompt": 1, "target": 2, "x": 3}\n{"prompt": "fine"}\n[]\n')
    message = refusal(path)
    assert [message.count(f"{path}:{line}: ") for line in (1, 2, 3)] == [3, 0, 1]


def test_endless_problems_are_counted_not_listed(probe_file):
    message = refusal(probe_file("[]\n" * (MAX_PROBLEMS_SHOWN + 7)))
    assert message.count("not a JSON object") == MAX_PROBLEMS_SHOWN
    assert message.endswith("and 7 more problems of this kind.")


@pytest.mark.parametrize("content", [b"", b"\n \r\n", b"\xef\xbb\xbf"])
def test_a_file_without_a_probe_is_refused(probe_file, content):
    assert "holds no probe" in refusal(probe_file(content))


def test_text_that_is_not_utf8_is_refused_with_the_line(probe_file):
    path = probe_file(b'{"prompt": "a"}\n{"prompt": "caf\xe9"}')
    assert f"{path}:2: not UTF-8 text: byte 0xe9 at offset 31" in refusal(path)


def test_a_missing_file_and_a_folder_are_the_users_fault(tmp_path):
    assert "cannot be read: No such file" in refusal(tmp_path / "none.jsonl")
    assert "cannot be read: Is a directory" in refusal(tmp_path)
    assert issubclass(ProbeError, InputError)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_set_is_what_it_says_under_its_own_licence(name):
    probes = builtin_probes(name)
    assert (probes.name, probes.sha256, probes.license) == (name, SHA256[name], BUILT_IN[name])
    assert Counter(probe.kind for probe in probes.probes) == KINDS[name]
    assert len({probe.prompt for probe in probes.probes}) == len(probes.probes) == sum(KINDS[name].values())
    assert all(
        probe.target and probe.template and probe.cluster.startswith(f"{probe.kind}: ") for probe in probes.probes
    )
    assert load_probes(name) == probes


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_targets_are_one_word_behind_their_templates_place(name):
    for probe in builtin_probes(name).probes:
        assert probe.target.strip().isalnum(), probe
        before = probe.template.partition("{b}")[0]
        assert probe.target[0].isspace() == before.endswith(" ")
        assert probe.prompt.endswith(before.rstrip(" ").rpartition("}")[2])
        assert probe.prompt.count("\n") == probe.template.count("\n") + 3 * (probe.template.count("\n") + 1)


@pytest.mark.parametrize("name", BUILT_IN)
def test_both_halves_of_a_built_in_set_have_every_kind_and_template(name):
    """Balanced by construction in the sets of tasks, about so in the older ones."""
    selection, held_out = (Counter((probe.kind, probe.template) for probe in half.probes) for half in halves_of(name))
    assert selection.keys() == held_out.keys()
    for template, count in selection.items():
        assert 0.6 <= count / held_out[template] <= 1.6, template
    assert 0.85 <= selection.total() / held_out.total() <= 1.15


def halves_of(name):
    return builtin_probes(name).halves()


@pytest.mark.parametrize("name", ["tasks-en", "tasks-zh"])
def test_no_prompt_of_a_task_shows_an_answer_of_the_other_half(name):
    """The lines of the examples are questions with their answers: none of them is asked in the other half."""
    halves = [
        {line for probe in half.probes for line in _answered(probe).split("\n") if not line.isdigit()}
        for half in halves_of(name)
    ]
    examples = [{line for probe in half.probes for line in probe.prompt.split("\n")[:-1]} for half in halves_of(name)]
    assert not halves[0] & examples[1] and not halves[1] & examples[0]
    assert halves[0] & examples[0] and halves[1] & examples[1]


def _answered(probe):
    """The question with its answer, as an example of another prompt would show it."""
    num_lines = probe.template.count("\n") + 1
    question = "\n".join(probe.prompt.split("\n")[-num_lines:])
    return question + probe.target + probe.template.partition("{b}")[2]


@pytest.mark.parametrize("name", BUILT_IN)
def test_no_built_in_prompt_shows_its_own_answer(name):
    for probe in builtin_probes(name).probes:
        answer = probe.target.strip()
        if name == "antonyms-zh":
            assert answer not in [word for line in probe.prompt.split("\n") for word in _words(line)]
        elif answer.isascii():
            assert answer not in re.findall(r"\w+", probe.prompt)
        else:
            assert answer not in probe.prompt


def _words(line):
    return (
        line.strip("。")
        .replace("相反", "")
        .replace("不是", "")
        .replace("，而是", "和")
        .replace("，也就是", "和")
        .split("和")
    )


def test_every_built_in_question_is_asked_in_both_directions():
    probes = builtin_probes("antonyms-en").probes
    asked = {
        (probe.prompt.split("\n")[-1].removeprefix("The opposite of ").split()[0], probe.target[1:]) for probe in probes
    }
    assert len(asked) == 500
    assert all((b, a) in asked for a, b in asked)


def test_the_licence_texts_name_their_sources():
    for kind in ("antonyms", "tasks"):
        english, chinese = ((DATA / f"{kind}-{language}.LICENSE").read_text("utf-8") for language in ("en", "zh"))
        assert english.startswith(f"{kind}-en.jsonl: ") and chinese.startswith(f"{kind}-zh.jsonl: ")
        assert "WordNet 3.0 Copyright 2006 by Princeton University" in english
        assert "Attribution-ShareAlike 4.0 International" in chinese and "CC-CEDICT" in chinese


def test_an_unknown_built_in_set_is_answered_with_the_near_name():
    with pytest.raises(ProbeError, match="Did you mean 'antonyms-en'"):
        builtin_probes("antonym-en")


def test_a_reference_that_is_no_built_in_name_is_a_path(probe_file):
    assert load_probes(str(probe_file('{"prompt": "a"}'))).probes == (Probe("a"),)


@pytest.mark.parametrize(
    ("prompt", "target", "text"),
    [
        ("hot is not", "cold", " cold"),
        ("hot is not", " cold", " cold"),
        ("hot is not ", "cold", "cold"),
        ("hot:", "cold", " cold"),
        ('hot is not "', "cold", "cold"),
        ("hot (not", "cold", " cold"),
        ("hot (", "cold", "cold"),
        ("热和", "冷", "冷"),
        ("hot is", ".", "."),
        ("горячий, не", "холодный", " холодный"),
        ("熱いは", "さむい", "さむい"),
        ("the year 19", "7", " 7"),
    ],
)
def test_a_space_is_put_between_words_only_where_one_belongs(prompt, target, text):
    assert continuation(Probe(prompt, target)) == text


def test_a_target_is_single_only_where_it_stands():
    """'热' alone is one token of this tokenizer, but behind '和' the two merge."""
    tokenizer = Greedy(["和热", "热", "冷", "和", "，"])
    check = check_targets([Probe("冷和", "热"), Probe("冷，", "热")], tokenizer)
    assert check.token_ids == (None, tokenizer.encode("热")[0])
    assert check.num_several == 1


def test_a_target_that_changes_the_tokens_of_its_prompt_is_not_single():
    """Prompt ['冷'], together ['冷和', '热']: one token more, and still not the prompt and then the target."""
    check = check_targets([Probe("冷", "和热")], Greedy(["冷和", "冷", "热"]))
    assert (check.token_ids, check.num_several) == ((None,), 1)


def test_targets_are_counted_by_why_they_cannot_be_used():
    tokenizer = Greedy(["hot", " cold", " co", "ol"], unk_token_id=99)
    probes = [Probe("hot", "cold"), Probe("hot", " cool"), Probe("hot"), Probe("hot", "!")]
    check = check_targets(probes, tokenizer)
    assert check.token_ids == (tokenizer.encode(" cold")[0], None, None, None)
    assert (check.num_several, check.num_without, check.num_unknown) == (1, 1, 1)


def test_a_tokenizer_without_an_unknown_token_is_not_asked_for_one():
    assert check_targets([Probe("hot", "!")], Greedy(["hot"])).token_ids == (99,)


def test_a_real_tokenizer_of_bytes_takes_single_letters_only(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer(tmp_path))
    check = check_targets([Probe("a: ", "b"), Probe("hot is not", " cold"), Probe("冷和", "热")], tokenizer)
    assert tokenizer.decode([check.token_ids[0]]) == "b"
    assert check.token_ids[1:] == (None, None) and check.num_several == 2


def test_the_data_files_are_plain_json_lines():
    """Other programs read them too: one object a line, nothing else in it."""
    from importlib import resources

    for name in BUILT_IN:
        text = resources.files("hybridizer.trace").joinpath("data", f"{name}.jsonl").read_text("utf-8")
        assert {tuple(json.loads(line)) for line in text.splitlines()} == {KEYS}
