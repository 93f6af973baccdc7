"""What to evaluate models on: the sections of an evaluation file, and of the options that mean the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge
from pydantic import ConfigDict, Field, Strict
from pydantic.dataclasses import dataclass

from hybridizer.core.errors import InputError, Problem, RecipeError
from hybridizer.recipe.fields import AtLeastTwo, Count, Text
from hybridizer.recipe.measures import MAX_PAIRS, ItemsEntry, Shots
from hybridizer.recipe.messages import make_section
from hybridizer.recipe.models import TextEntry
from hybridizer.recipe.tree import Tree
from hybridizer.recipe.trial import ITEM_METRICS, RECALL_METRICS, TEXT_METRICS
from hybridizer.recipe.yaml import read_yaml

_CONFIG = ConfigDict(extra="forbid", defer_build=True)
# Options that say how those of others are measured: without any of them they would change nothing.
_USED_BY = {
    "shots": ("items", "tasks"), "style": ("items",), "include_path": ("tasks",), "limit": ("tasks",),
}  # fmt: skip


@dataclass(frozen=True, config=_CONFIG)
class SetEntry(TextEntry):
    """A held-out text; `source` is the field of a record that says where its document comes from."""

    source: Text | None = Field(default=None, description="the JSONL field that names a document's source")


@dataclass(frozen=True, config=_CONFIG)
class ChatEntry:
    """Held-out chats."""

    name: Text = Field(description="the name of the chats in tables")
    path: Text = Field(description="a JSON Lines file with `messages`")


@dataclass(frozen=True, config=_CONFIG)
class TaskEntry:
    """A task of lm-eval."""

    name: Text = Field(description="the name of a task or group of lm-eval", examples=["ceval-valid"])
    include_path: Text | None = Field(default=None, description="a folder of task files")
    shots: Shots | None = Field(default=None, description="how many examples are shown; the task's own if left out")
    limit: Annotated[int, Strict(), Ge(1)] | None = Field(default=None, description="the most items per subtask")


@dataclass(frozen=True, config=_CONFIG)
class EvalRequest:
    """Everything that models are evaluated on. Paths are relative to the file that names them."""

    bits_per_byte: tuple[SetEntry, ...] = Field(default=(), description="held-out texts")
    items: tuple[ItemsEntry, ...] = Field(default=(), description="multiple-choice items")
    chats: tuple[ChatEntry, ...] = Field(default=(), description="held-out chats")
    recall: tuple[Annotated[int, Strict()], ...] = Field(
        default=(), description="numbers of pairs of the recall probe, 2 to 2000"
    )
    tasks: tuple[TaskEntry, ...] = Field(default=(), description="tasks of lm-eval")
    max_bytes: Count = Field(default=400_000, description="the most bytes per text")
    context: AtLeastTwo = Field(default=1024, description="tokens per window")
    training_text: tuple[Text, ...] = Field(default=(), description="training text to look for overlaps in")
    training_field: Text = Field(default="text", description="the JSONL field or Parquet column with that text")
    gate: Text | None = Field(default=None, description="a file of limits")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all sets and tasks, in the order in which they are measured."""
        named = [[entry.name for entry in self.bits_per_byte], [entry.name for entry in self.chats]]
        named += [[entry.name for entry in self.items], [f"recall-{count}" for count in self.recall]]
        return tuple(name for names in (*named, [entry.name for entry in self.tasks]) for name in names)

    @property
    def metrics(self) -> dict[str, tuple[str, ...] | None]:
        """The metrics of each set and task; None for a task of lm-eval, whose metrics only its results say."""
        found: dict[str, tuple[str, ...] | None] = {}
        found |= {entry.name: TEXT_METRICS for entry in self.bits_per_byte}
        found |= {entry.name: TEXT_METRICS for entry in self.chats}
        found |= {entry.name: ITEM_METRICS for entry in self.items}
        found |= {f"recall-{count}": RECALL_METRICS for count in self.recall}
        return found | {entry.name: None for entry in self.tasks}


def read_request(path: Path) -> dict[str, Any]:
    """The keys in an evaluation file, unchecked; paths in it are made relative to the working folder.

    Raises RecipeError for what is not YAML.
    """
    values = read_mapping(path)
    for entry in _mappings(values):
        for key in ("path", "examples", "include_path"):
            if isinstance(entry.get(key), str):
                entry[key] = str(path.parent / entry[key])
    if isinstance(values.get("gate"), str):
        values["gate"] = str(path.parent / values["gate"])
    if isinstance(values.get("training_text"), list):
        values["training_text"] = [str(path.parent / str(pattern)) for pattern in values["training_text"]]
    return values


def make_request(values: Mapping[str, Any], where: str) -> EvalRequest:
    """The request that `values` are. Raises InputError at `where` for values it does not take and names given twice."""
    request = _check_section(values, where)
    if wrong := [count for count in request.recall if not 2 <= count <= MAX_PAIRS]:
        what = f"`recall` takes 2 to {MAX_PAIRS} pairs; got {wrong[0]}."
        raise InputError(Problem(where, what, "Give the number of keys with values in each prompt."))
    twice = sorted({name for name in request.names if request.names.count(name) > 1})
    if twice:
        what = f"'{twice[0]}' is the name of two sets or tasks."
        raise InputError(Problem(where, what, "Give each a name of its own."))
    if not request.names:
        fix = "Give --text NAME=PATH, --items exam-en, --recall 64, --chat NAME=PATH or --task NAME."
        raise InputError(Problem(where, "there is nothing to evaluate on.", fix))
    if request.training_text and len(request.recall) == len(request.names):
        what = "nothing that could occur in the training text is evaluated: recall probes are made up."
        raise InputError(Problem(where, what, "Leave out `training_text`, or give texts, items, chats or tasks."))
    return request


def _check_section(values: Mapping[str, Any], where: str) -> EvalRequest:
    request: EvalRequest = make_section(EvalRequest, values, where, lambda key: f"`{key}`")
    return request


def gather_request(options: Mapping[str, Any], where: str) -> EvalRequest:
    """The request that the options of a command line make, added to the file of `set_file` if there is one.

    Raises InputError as `make_request` does, for a --text or --chat without a name, and for an option without effect.
    """
    _refuse_unused(options, where)
    values: dict[str, Any] = {}
    if file := options.get("set_file"):
        values = read_request(file)
        _check_section(values, str(file))  # its own mistakes, before options are added
    shots = options.get("shots")
    texts = [_split(text, where) for text in options.get("texts", ())]
    chats = [_split(text, where) for text in options.get("chats", ())]
    items = [
        _given(name=name, path=path or None, shots=shots, style=options.get("style"))
        for name, _, path in (text.partition("=") for text in options.get("items", ()))
    ]
    tasks = [
        _given(name=name, include_path=options.get("include_path"), shots=shots, limit=options.get("limit"))
        for name in options.get("tasks", ())
    ]
    more = {"bits_per_byte": texts, "items": items, "chats": chats, "tasks": tasks}
    more |= {"recall": list(options.get("recall", ())), "training_text": list(options.get("training_text", ()))}
    for key, entries in more.items():
        if entries:
            values[key] = [*values.get(key, ()), *entries]
    size = options.get("max_bytes")
    size = int(size) if size is not None and size.isdecimal() else size
    values |= _given(max_bytes=size, context=options.get("context"), gate=options.get("gate"))
    if not values.get("bits_per_byte"):
        for key, flag in (("max_bytes", "--max-bytes"), ("context", "--context")):
            if options.get(key) is not None:
                raise InputError(
                    Problem(where, f"{flag} has no effect without --text.", "Leave it out, or give a text.")
                )
    return make_request(values, where)


def _given(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _refuse_unused(options: Mapping[str, Any], where: str) -> None:
    problems = []
    for name, users in _USED_BY.items():
        if options.get(name) is not None and not any(options.get(user) for user in users):
            flags = [f"--{user.removesuffix('s') if user == 'tasks' else user}" for user in users]
            what = f"--{name.replace('_', '-')} has no effect without {' or '.join(flags)}."
            problems.append(Problem(where, what, "Leave it out; in a --set-file it is a key of the entry."))
    if problems:
        raise InputError(*problems)


def _split(text: str, where: str) -> dict[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise InputError(
            Problem(where, f"'{text}' is not NAME=PATH.", f"Write, for example, news={name or 'news.txt'}")
        )
    return {"name": name, "path": path}


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises RecipeError with every problem of reading, each with its line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(Problem(str(path), f"cannot be read: {error}.", "Name a YAML file.")) from None
    tree = Tree()
    values = read_yaml(text, tree, lambda line: f"{path}:{line}")
    if not isinstance(values, dict):
        tree.problems.append(Problem(str(path), "it holds no `key: value` lines.", "Write some."))
    if tree.problems:
        raise RecipeError(*tree.problems)
    found: dict[str, Any] = values
    return found


def _mappings(values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for section in values.values():
        if isinstance(section, Sequence) and not isinstance(section, str):
            yield from (entry for entry in section if isinstance(entry, dict))
