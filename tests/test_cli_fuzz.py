"""Random recipes with random options: `check`, `plan`, `init`, `inspect` and `rank` refuse them or work, never exit 70.

See support/fuzz.py for more cases than the few here.
"""

import copy
import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from hybridizer.cli import main
from support.fuzz import try_all
from support.lines import make_donors

CASES = 300
GOOD = {
    "donors": {"a": {"source": "a"}, "b": {"source": "b", "allow": ["vocabulary"]}},
    "layout": {"host": "a", "deep": "a", "shallow": "b", "boundary": 0.5},
    "train": {
        "data": [{"path": "t.jsonl", "weight": 1.0}], "tokens": 2000, "freeze": "deep", "seq_len": 64,
        "global_batch_size": 4, "lr": 1e-3, "heldout_ratio": 0.1, "max_steps": 3, "precision": "auto",
    },
    "evaluate": {"bits_per_byte": [{"name": "t", "path": "t.jsonl"}], "max_tokens": 100, "context": 64},
    "output": {"dtype": "bfloat16", "max_shard_bytes": "1MB"},
    "trial": {"arms": {"d": {"train.freeze": "deep"}, "n": {"train": {"freeze": "none"}}}, "seeds": [0], "lr": [1e-3]},
    "seed": 0,
    "name": "x",
}  # fmt: skip
SLICES = [{"donor": "a", "layers": "0..1"}, {"donor": "b", "layers": [2, 3]}, {"donor": "a", "layers": 0}]
VALUES = [
    None, True, False, 0, 1, -1, 3, 10**18, 2**64, -(10**30), 0.5, 1.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"),
    "", " ", "a", "b", "[bold]", "[/x]", "\x1b[31m", "\u202e", "\x00", "\udcff", "模" * 50, "../..", "/", "/dev/null",
    ".",
    "a/config.json", "pkg:x/y", "pkg:__main__/x", "hub:x/y", "folder:a", "folder:", "t.jsonl", "**", "[", "*" * 200,
    "n" * 5000, "0..1", "3..0", "0..999999999", "auto", "deep", "none", "keep", "float32", "5GB", "9" * 400, [], {},
    [[]],
    [0, 1], ["a"], {"a": "a"}, {"": ""}, SLICES, [{"donor": "a"}] * 3,
]  # fmt: skip
WORDS = [
    "",
    "a",
    "x.yaml",
    "t.jsonl",
    "-1",
    "0.5",
    "9" * 5000,
    "nan",
    "\x1b[31m",
    "\udcff",
    "n" * 5000,
    "[/x]",
    "--",
    "cpu",
]
TAKES_VALUE = {"--runs", "--device", "--boundary", "--seed", "--allow", "--mask-ratio", "--probes", "--tau"}
OPTIONS = {
    "check": ["--set", "--json", "--bogus"],
    "plan": ["--set", "--json", "--runs", "--layers", "--device"],
    "inspect": ["--tensors", "--json"],
    "init": ["--json"],
    "rank": ["--boundary", "--seed", "--json", "--allow", "--mask-ratio", "--probes", "--tau"],
}


def places(value, path=()):
    """The path of every value in nested mappings and lists."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def broken_recipe(chance):
    """A good recipe in which up to three values are changed, missing or renamed."""
    recipe = copy.deepcopy(GOOD)
    for _ in range(chance.randint(0, 3)):
        *above, last = chance.choice(list(places(recipe)))
        parent = recipe
        for key in above:
            parent = parent[key]
        match chance.randrange(4):
            case 0:
                del parent[last]
            case 1 if isinstance(parent, dict):
                parent[f"{chance.choice(VALUES)}"[:100]] = parent.pop(last)
            case _:
                parent[last] = copy.deepcopy(chance.choice(VALUES))
        if not recipe:
            break
    return recipe


def damaged(text, chance):
    """A text with a few of its bytes changed, one time out of four."""
    data = bytearray(text.encode(errors="surrogatepass"))
    if data and chance.random() < 0.25:
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
    return bytes(data)


def arguments(chance):
    """A command with its argument and a few options."""
    verb = chance.choices(list(OPTIONS), weights=[6, 6, 1, 1, 1])[0]
    words = [verb, *([] if chance.random() < 0.05 else [{"inspect": "a", "rank": "nowhere"}.get(verb, "x.yaml")])]
    if verb == "init":
        words = [verb, chance.choice([*WORDS, "a", "t.jsonl/x"])]
    for _ in range(chance.randrange(3)):
        words.append(chance.choice(OPTIONS[verb]))
        if words[-1] == "--set":
            key = ".".join(str(part) for part in chance.choice(list(places(GOOD))))
            words.append(f"{key}{chance.choice(['=', '', '=='])}{str(chance.choice(VALUES))[:6000]}")
        elif words[-1] in (
            "--runs",
            "--device",
            "--boundary",
            "--seed",
            "--allow",
            "--mask-ratio",
            "--probes",
            "--tau",
        ):
            words.append(chance.choice(WORDS))
    return words


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    make_donors(folder)
    texts = [{"text": f"document {i} says that the cat sat on the mat"} for i in range(40)]
    (folder / "t.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    return folder


def test_no_recipe_and_no_options_are_a_bug(folder, monkeypatch):
    monkeypatch.setenv("HYBRIDIZER_CACHE", str(folder / "cache"))
    monkeypatch.chdir(folder)

    def attempt(chance):
        text = yaml.safe_dump(broken_recipe(chance), allow_unicode=True, sort_keys=False)
        Path("x.yaml").write_bytes(damaged(text, chance))
        words = arguments(chance)
        result = CliRunner().invoke(main, words)
        assert result.exit_code in (0, 1, 2), f"{words} {result.output}"
        for shown in (result.stdout, result.stderr):
            assert all(letter.isprintable() or letter == "\n" for letter in shown), f"{words} {shown!r}"
        if words[-1] == "--json" and words[-2] not in TAKES_VALUE and "--" not in words:
            try:
                assert json.loads(result.stdout)
            except ValueError:
                pytest.fail(f"{words} {result.stdout!r}")
        return f"exit {result.exit_code}"

    ended = try_all("recipe", attempt, CASES)
    assert ended["exit 0"] > ended.total() / 20 and ended["exit 2"] > ended.total() / 4, ended  # enough of both
