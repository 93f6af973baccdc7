"""YAML into plain values: what each word means, the line of everything, and the dangers that are refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hybridizer.core.errors import RecipeError
from hybridizer.recipe.dump import to_yaml
from hybridizer.recipe.tree import Tree, locate
from hybridizer.recipe.yaml import MAX_NODES, read_word, read_yaml


def read(text: str) -> Tree:
    tree = Tree()
    tree.values = read_yaml(text, tree, lambda line: f"r.yaml:{line}")
    return tree


def problems(text: str) -> str:
    """All problems of `text`, those that stop the reading and those that do not."""
    try:
        return "\n".join(map(str, read(text).problems))
    except RecipeError as error:
        return str(error)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("3", 3),
        ("-3", -3),
        ("0", 0),
        ("0.5", 0.5),
        (".5", 0.5),
        ("1.", 1.0),
        ("3e-5", 3e-5),
        ("1E5", 1e5),
        ("true", True),
        ("False", False),
        ("~", None),
        ("0..14", "0..14"),
        ("1.2.3", "1.2.3"),
        ("2024-01-01", "2024-01-01"),
        ("y", "y"),
        ("tRue", "tRue"),
        ("nO", "nO"),
        ("1e", "1e"),
        ("nan", "nan"),
        ("donors/x_1", "donors/x_1"),
        ("٣", "٣"),
    ],
)
def test_words_mean_what_a_reader_expects(word: str, value: object) -> None:
    assert read_word(word) == (value, "", "")
    assert type(read_word(word).value) is type(value)


@pytest.mark.parametrize(
    "word", ["no", "Yes", "ON", "off", "017", "08", "0x1F", "0o17", "0b1", "1_000", "1_0.5", "1:30", "190:20:30"]
)
def test_words_that_yaml_readers_disagree_on_are_refused(word: str) -> None:
    reading = read_word(word)
    assert reading.value == word
    assert "YAML readers" in reading.what
    assert f"'{word}'" in reading.fix


@pytest.mark.parametrize("word", [".inf", "-.INF", ".nan", "1e999", "-1e400", "9" * 19, "9" * 5000])
def test_numbers_without_end_are_refused(word: str) -> None:
    assert isinstance(read_word(word).value, str)
    assert "number" in read_word(word).what


@given(st.text("0123456789.eE+-_:xoyYnNaifTrue~ ", max_size=12))
def test_any_word_has_a_meaning(word: str) -> None:
    value = read_word(word).value
    assert value is None or isinstance(value, (bool, int, float)) or value == word


def test_every_value_knows_its_line() -> None:
    tree = read("a:\n  b: [1,\n      2]\nc:\n  - d: x\n\n  - e: y\n")
    lines = {path: place for path, place in tree.places.items() if path}
    assert lines == {
        ("a",): "r.yaml:1",
        ("a", "b"): "r.yaml:2",
        ("a", "b", 0): "r.yaml:2",
        ("a", "b", 1): "r.yaml:3",
        ("c",): "r.yaml:4",
        ("c", 0): "r.yaml:5",
        ("c", 0, "d"): "r.yaml:5",
        ("c", 1): "r.yaml:7",
        ("c", 1, "e"): "r.yaml:7",
    }
    assert locate(tree.places, ("c", 1, "f", 3)) == "r.yaml:7"


def test_an_alias_is_a_copy_that_keeps_its_lines() -> None:
    tree = read("a: &x\n  - 1\n  - {k: v}\nb: *x\n")
    assert tree.values["b"] == tree.values["a"] == [1, {"k": "v"}]
    assert tree.values["b"] is not tree.values["a"]
    assert tree.values["b"][1] is not tree.values["a"][1]
    assert tree.places["b",] == "r.yaml:4"
    assert tree.places["b", 1, "k"] == "r.yaml:3"


def test_quotes_and_blocks_make_text() -> None:
    assert read("a: '1'\nb: \"no\"\nc: |\n  1\nd: 'no'\n'3': x\n").values == {
        "a": "1",
        "b": "no",
        "c": "1\n",
        "d": "no",
        "3": "x",
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", "r.yaml:3: `a` is given twice, first at r.yaml:1."),
        ("a: !!python/object/apply:os.system [ls]\n", "r.yaml:1: the tag `!!python/object/apply:os.system`"),
        ("a: !mine 3\n", "r.yaml:1: the tag `!mine`"),
        ("a: ! x\n", "r.yaml:1: the tag `!`"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", "r.yaml:3: the merge key `<<`"),
        ("a: 1\nb: &x [*x]\n", "r.yaml:2: the alias `*x` stands inside its own anchor."),
        ("a: *x\n", "r.yaml:1: the alias `*x` has no anchor `&x` above it."),
        ("a: 1\n---\nb: 2\n", "r.yaml:2: a second YAML document begins here."),
        ("1: a\n", "r.yaml:1: the key `1` is the number 1 to YAML; keys are text.\n  Quote the key: '1'."),
        ("true: a\n", "the key `true` is true to YAML; keys are text."),
        ("~: a\n", "the key `~` is nothing to YAML; keys are text."),
        ("no: a\n", "the key `no` is text to some YAML readers and false to others.\n  Quote the key: 'no'."),
        ("? [1]\n: a\n", "a key of the recipe that is not plain text."),
        ("? *x\n: a\n", "a key of the recipe that is not plain text."),
        ("s: {donor: a, layers: 0..14, 20}\n", "put the list in brackets: [0..14, 20]."),
        ("a:\n  b:\nc: 1\n", "r.yaml:2: `b` has no value.\n  Give it one, or delete the line."),
        ("a: [1, ~]\n", "r.yaml:1: entry 1 of `a` has no value."),
        ("a: .nan\n", "r.yaml:1: `a`: .nan is not a finite number."),
        ("a: [0, -.inf]\n", "r.yaml:1: entry 1 of `a`: -.inf is not a finite number."),
        ('a: "\\e[31m"\n', "r.yaml:1: the control character U+001B in `a`."),
        ('a: "\\ud800"\n', "the control character U+D800 in `a`."),
        ('"\\e": 1\n', "a key of the recipe that is not plain text."),
        ("a: 1\nb: \x07\n", "r.yaml:2: the character U+0007 cannot stand in YAML text."),
        ("a: " + "[" * 40 + "]" * 40, "values nested more than 32 deep."),
        ("a:\n\tb: 1\n", "r.yaml:2: a tab in the indentation; YAML takes only spaces there."),
        ("a: |\n  x\n\ty\n", "r.yaml:3: a tab in the indentation"),
        ("a: 1\nb: [1, 2\nc: 3\n", "r.yaml:3: the bracket that opens on line 2 goes wrong here."),
        ("a: 1\nb: [1, 2\n", "r.yaml:2: a bracket that opens here and never closes."),
        ("a: 1\nb: [\n", "r.yaml:2: a bracket that opens here and never closes."),
        ("a: {b: [1],\n\n", "r.yaml:1: a bracket that opens here and never closes."),
        ("a: 1\nb: 'x\nc: 2\n", "r.yaml:2: a quote that opens here and never closes."),
        ("a: x: y\n", "r.yaml:1: a colon where no key can stand."),
        ("a: 1\n  b: 2\n", "r.yaml:2: a colon where no key can stand."),
        ("a: @x\n", "r.yaml:1: a value cannot begin with `@` in YAML.\n  Quote it: '@...'."),
        ("a: ]\n", "r.yaml:1: a `]` that closes nothing."),
        ('a: "\\q"\n', "a backslash in double quotes that begins no escape YAML knows."),
        ('a: "\\U99999999"\n', "r.yaml:1: a number that YAML cannot hold."),
        ("%YAML 1." + "9" * 5000 + "\n---\na: 1\n", "a number that YAML cannot hold."),
        ("- a\nb: 1\n", "r.yaml:2: this is not YAML.\n  Look at the indentation"),
    ],
)
def test_dangers_are_refused_with_their_line(text: str, words: str) -> None:
    assert words in problems(text)


def test_several_refusals_come_together() -> None:
    found = problems("a: no\nb: .inf\nb: 017\nc: [1, 2\n").splitlines()
    assert [line.split(": ")[0] for line in found if line.startswith("r.yaml")] == [
        f"r.yaml:{n}" for n in (1, 2, 3, 3, 4)
    ]


def test_aliases_cannot_explode() -> None:
    names = "abcdefgh"
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]" for before, name in pairwise(names)]
    assert f"more than {MAX_NODES} values" in problems("\n".join(lines))


def test_a_chain_of_aliases_cannot_dig_below_the_limit() -> None:
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 40)]
    assert "nested more than 32 deep" in problems("\n".join(lines))


def test_an_anchor_may_stand_for_a_refused_word_only_once() -> None:
    tree = read("a: &x [1_000]\nb: *x\n")
    assert len(tree.problems) == 1
    assert tree.refused == {("a", 0), ("b", 0)}


WORDS = st.text(max_size=20).filter(lambda text: text.isprintable())
VALUES = st.recursive(
    WORDS | st.integers(-(10**17), 10**17) | st.floats(allow_nan=False, allow_infinity=False) | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.slow
@given(
    st.dictionaries(WORDS | st.sampled_from(["no", "1", "1e5", "0o7", "1:30", "~", "<<", ".inf"]), VALUES, max_size=4)
)
def test_what_is_written_is_read_back(values: dict[str, Any]) -> None:
    tree = read(to_yaml(values))
    assert tree.values == values
    assert not tree.problems


@pytest.mark.slow
@given(WORDS)
def test_text_is_written_so_that_pyyaml_agrees(text: str) -> None:
    assert yaml.safe_load(to_yaml({"a": text})) == {"a": text}
