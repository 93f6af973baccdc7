"""Multiple-choice questions in C-Eval's format: read from JSON Lines or built in, and set into prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from hybridizer.core.errors import DidYouMean, InputError, Problem
from hybridizer.core.records import content_hash

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
BUILT_IN = {  # name: licence
    "exam-en": "WordNet License",
    "exam-zh": "CC BY-SA 4.0",
}
MAX_PROBLEMS = 10
WORDS = {  # language: what stands before all questions, and before each answer
    "en": ("The following are multiple choice questions. Choose the correct answer.\n\n", "Answer:"),
    "zh": ("以下是单项选择题，请选出其中的正确答案。\n\n", "答案："),
}

Style = Literal["letters", "text"]


@dataclass(frozen=True)
class Item:
    """One question with its choices; `answer` is the index of the right one. `subject` groups items that are alike."""

    question: str
    choices: tuple[str, ...]
    answer: int
    subject: str


@dataclass(frozen=True)
class Exam:
    """Questions, and `examples` to show before each of them. `language` decides the words of the prompt."""

    name: str
    language: str
    items: tuple[Item, ...]
    examples: tuple[Item, ...] = ()

    @property
    def identity(self) -> str:
        """A hash of the questions, choices and answers, in order."""
        return content_hash([(i.question, i.choices, i.answer, i.subject) for i in self.items])

    @property
    def chance(self) -> float:
        """The accuracy of guessing."""
        return sum(1 / len(item.choices) for item in self.items) / len(self.items)


@dataclass(frozen=True)
class Question:
    """The text before an answer, and the texts of the answers, of which the one at `answer` is right."""

    prompt: str
    continuations: tuple[str, ...]
    answer: int
    subject: str


def load_exam(name: str, path: Path | None, examples: Path | None = None, language: str = "en") -> Exam:
    """The exam in the file `path`, or the built-in one called `name`. `examples` is a file of items to show.

    Raises InputError with every problem of a file, each with its line.
    """
    if path is not None:
        return Exam(name, language, _read(path), _read(examples) if examples else ())
    if name not in BUILT_IN:
        what = f"there are no built-in items '{name}'."
        fix = f"{DidYouMean(name, BUILT_IN)} Items of your own are NAME=PATH."
        raise InputError(Problem("items", what, fix))
    folder = resources.files("hybridizer.evaluate").joinpath("data")
    found = [_parse(file, folder.joinpath(file).read_bytes()) for file in (f"{name}.jsonl", f"{name}.examples.jsonl")]
    return Exam(name, name[-2:], found[0], found[1])


def ask(exam: Exam, num_examples: int, style: Style = "letters") -> tuple[Question, ...]:
    """Every item of `exam` as a prompt behind `num_examples` solved ones.

    With "letters" the choices are listed and a letter answers, as in C-Eval; with "text" they are not, and the text of
    a choice answers. Examples are the first ones of the item's subject if there are any, else the first of all. Raises
    InputError where there are not enough.
    """
    asked = []
    for item in exam.items:
        own = [example for example in exam.examples if example.subject == item.subject] or exam.examples
        if len(own) < num_examples:
            what = f"{num_examples} examples are requested, and there are {len(own)} for '{item.subject}'."
            raise InputError(Problem(f"items '{exam.name}'", what, "Give a file of `examples`, or fewer `shots`."))
        shown = [_write(example, exam.language, style) for example in own[:num_examples]]
        solved = "".join(f"{e.prompt}{e.continuations[e.answer]}\n\n" for e in shown)
        question = _write(item, exam.language, style)
        prompt = WORDS[exam.language][0] + solved + question.prompt
        asked.append(Question(prompt, question.continuations, question.answer, question.subject))
    return tuple(asked)


def _write(item: Item, language: str, style: Style) -> Question:
    listed = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, item.choices, strict=False)]
    lines = [item.question.strip(), *(listed if style == "letters" else ()), WORDS[language][1]]
    answers = LETTERS[: len(item.choices)] if style == "letters" else item.choices
    return Question("\n".join(lines), tuple(f" {answer}" for answer in answers), item.answer, item.subject)


def _read(path: Path) -> tuple[Item, ...]:
    try:
        return _parse(str(path), path.read_bytes())
    except OSError as error:
        what = f"the items cannot be read: {error.strerror}."
        raise InputError(Problem(str(path), what, "Give a JSON Lines file.")) from None


def _parse(name: str, data: bytes) -> tuple[Item, ...]:
    items: list[Item] = []
    problems: list[Problem] = []
    for number, line in enumerate(data.decode("utf-8", errors="replace").removeprefix("\ufeff").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            items.append(_item(record))
        except (ValueError, RecursionError) as error:
            fix = '{"question": ..., "choices": [...], "answer": 0, "subject": ...}, or A, B, C, D and a letter.'
            problems.append(Problem(f"{name}:{number}", f"{error}.", f"Write {fix}"))
    if not items and not problems:
        problems = [Problem(name, "the file holds no item.", "Write one JSON object per line.")]
    if problems:
        raise InputError(*problems[:MAX_PROBLEMS])
    return tuple(items)


def _item(record: Any) -> Item:
    """The item in a record; ValueError says what is wrong."""
    if not isinstance(record, Mapping):
        raise ValueError("the line is not a JSON object")
    question, choices = record.get("question"), _choices(record)
    if not isinstance(question, str) or not question.strip():
        raise ValueError("'question' is missing or not text")
    if not 2 <= len(choices) <= len(LETTERS):
        raise ValueError(f"an item has 2 to {len(LETTERS)} choices, this one has {len(choices)}")
    if any(not isinstance(choice, str) or not choice.strip() for choice in choices):
        raise ValueError("a choice is not text, or empty")
    answer = record.get("answer")
    index = LETTERS.find(answer.strip()) if isinstance(answer, str) and len(answer.strip()) == 1 else answer
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(choices):
        raise ValueError(f"the answer {answer!r} is none of its {len(choices)} choices")
    return Item(question, tuple(choices), index, str(record.get("subject", "all")))


def _choices(record: Mapping[str, Any]) -> Sequence[Any]:
    choices = record.get("choices")
    return choices if isinstance(choices, list) else list(_lettered(record))


def _lettered(record: Mapping[str, Any]) -> Iterator[Any]:
    for letter in LETTERS:
        if letter not in record:
            return
        yield record[letter]
