"""What tests of the whole line share: tiny donors in a folder, recipes beside them, and the command line in-process."""

import json
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from hybridizer.cli import main
from support.tiny import make_tiny, tiny_tokenizer


def make_donor(folder: Path, model_type: str = "llama", seed: int = 0, **overrides) -> Path:
    """A tiny donor with a tokenizer."""
    make_tiny(model_type, folder, seed=seed, **overrides)
    tiny_tokenizer(folder)
    return folder


def exchange_tokens(folder: Path, one: str, other: str) -> None:
    """Give two tokens of a donor's tokenizer each other's number."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    numbers = content["model"]["vocab"]
    numbers[one], numbers[other] = numbers[other], numbers[one]
    path.write_text(json.dumps(content))


def make_donors(folder: Path) -> Path:
    """Two tiny llamas of four layers in `folder`, `a` and `b`; the folder."""
    for seed, name in enumerate("ab", 1):
        make_donor(folder / name, seed=seed)
    return folder


def write_documents(path: Path, number: int) -> None:
    """`number` short documents as JSON Lines."""
    texts = [f"document {i} says " + "the cat sat on the mat " * (i % 7 + 1) for i in range(number)]
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))


def write_recipe(path: Path, **content) -> Path:
    """A recipe file of the given sections."""
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def hybridize(*arguments, code: int = 0):
    """Run the command line; its result, after checking the exit code."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"exit {result.exit_code}: {result.output} {result.exception!r}"
    return result


def hybridize_json(*arguments, code: int = 0):
    """The JSON object that the command printed."""
    return json.loads(hybridize(*arguments, "--json", code=code).stdout)


@contextmanager
def working_in(folder: Path):
    """`folder` as the working folder, with a cache of its own, inside the block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYBRIDIZER_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        yield patch


def bench_in(folder, text="the cat sat on the mat " * 40):
    """`folder`, with a tiny llama "a" and the text "t.txt" in it."""
    make_donor(folder / "a")
    (folder / "t.txt").write_text(text)
    return folder
