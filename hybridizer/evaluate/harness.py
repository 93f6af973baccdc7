"""Tasks of lm-eval (EleutherAI's lm-evaluation-harness): the one place that imports it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from hybridizer.checkpoint.hashing import hash_file
from hybridizer.core.errors import DidYouMean, InputError, Problem, RunError
from hybridizer.core.records import content_hash, to_jsonable
from hybridizer.evaluate.candidate import Candidate, bits_among, margin_bits
from hybridizer.evaluate.figures import ANSWER_BITS, MARGIN_BITS, Figure, make_figure
from hybridizer.evaluate.fitting import free_memory
from hybridizer.evaluate.outcome import TASK, Outcome
from hybridizer.evaluate.request import TaskEntry
from hybridizer.models.faults import library_faults
from hybridizer.models.parts import MODEL_FAULTS

BATCH_ROWS = 32
_VERSION = 2  # of the figures and rows that are made of what lm-eval gives
INSTALL = "pip install 'hybridizer[eval]'"


def require_harness() -> None:
    """Return if lm-eval is installed; InputError with the command that installs it otherwise."""
    if find_spec("lm_eval") is None:
        raise InputError(Problem("tasks", "tasks need the package lm-eval, which is not installed.", INSTALL))


def built_in_tasks() -> Path:
    """The folder with the tasks `exam-en` and `exam-zh`: our own items as lm-eval reads them."""
    return Path(str(files("hybridizer.evaluate").joinpath("data")))


def task_settings(entry: TaskEntry, folder: Path) -> list[Any]:
    """What decides the items and scores of a task, for the key of a cache: versions, settings, files of the folder.

    Data that task files take from elsewhere is not covered.
    """
    include = _include_path(entry, folder)
    found = sorted(path for path in include.rglob("*") if path.is_file())
    hashes = [(str(path.relative_to(include)), hash_file(path)) for path in found]
    return [_VERSION, version("lm_eval"), to_jsonable(replace(entry, include_path=None)), hashes]


def check_task(entry: TaskEntry, folder: Path) -> None:
    """Return if lm-eval has the task of `entry`, as `run_task` finds it; InputError otherwise. No data is read."""
    require_harness()
    where, include = f"task '{entry.name}'", _include_path(entry, folder)
    with contextlib.chdir(include), _reporting(where):
        _open_tasks(entry.name, include, where)


def run_task(candidate: Candidate, entry: TaskEntry, folder: Path) -> Outcome:
    """One task or group of tasks of lm-eval by its own `hf` backend, and every metric that it gives per item.

    `entry.include_path`, relative to `folder`, is a folder of task files; paths in those count from it. Without one the
    tasks are our own and those that lm-eval ships. Items are grouped by subtask, or by their `subject`. Nothing is
    fetched if the data is local. Raises InputError for a task that does not exist or cannot be read.
    """
    require_harness()
    where = f"task '{entry.name}'"
    include = _include_path(entry, folder)
    model, tokenizer = candidate.model, candidate.tokenizer
    with contextlib.chdir(include), _reporting(where):
        manager = _open_tasks(entry.name, include, where)
        results = _evaluate(model, tokenizer, entry, manager, where)
    samples = {name: found for name, found in results["samples"].items() if found}
    figures = tuple(_figures(entry.name, samples, results))
    if not figures:
        what = "it gives no metric per item, so that no interval can be computed."
        raise InputError(Problem(where, what, "Use a task with metrics such as acc or exact_match."))
    first = next(iter(samples.values()))[0]
    facts = {
        "shots": entry.shots, "limit": entry.limit, "subtasks": sorted(samples),
        "versions": {name: str(results["versions"].get(name)) for name in sorted(samples)},
    }  # fmt: skip
    rows = tuple(_row(name, sample) for name, found in sorted(samples.items()) for sample in found)
    return Outcome(TASK, entry.name, figures, facts, "".join(map(str, first["arguments"][0][:2])), rows)


def _include_path(entry: TaskEntry, folder: Path) -> Path:
    include = folder / entry.include_path if entry.include_path else built_in_tasks()
    if not include.is_dir():
        what = f"the folder {include} does not exist."
        raise InputError(Problem(f"task '{entry.name}'", what, "Give the folder of the task files."))
    return include


def _open_tasks(name: str, include: Path, where: str) -> Any:
    from lm_eval.tasks import TaskManager

    own = TaskManager(include_path=str(include), include_defaults=False)
    if name in own.all_tasks:
        return own
    everything = TaskManager(include_path=str(include))
    if name not in everything.all_tasks:
        raise InputError(Problem(where, "lm-eval has no task of this name.", DidYouMean(name, everything.all_tasks)))
    return everything


def _evaluate(model: Any, tokenizer: Any, entry: TaskEntry, manager: Any, where: str) -> Mapping[str, Any]:
    """What `simple_evaluate` gives; the batch is halved until the device's memory holds it."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    size = BATCH_ROWS
    while size:
        try:
            # The batch size of an object that is passed in is its own; simple_evaluate's argument is ignored.
            wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size)
            found: Mapping[str, Any] = simple_evaluate(
                wrapped, tasks=[entry.name], num_fewshot=entry.shots, limit=entry.limit, task_manager=manager,
                bootstrap_iters=0, log_samples=True,
            )  # fmt: skip
            return found
        except torch.OutOfMemoryError:
            size //= 2
        free_memory()
    raise RunError(Problem(where, "the device's memory does not hold a single row.", "Use a larger device."))


@contextlib.contextmanager
def _reporting(where: str) -> Iterator[None]:
    """Turn what lm-eval and datasets raise on task files and data into an InputError; running out of memory stays."""
    try:
        with library_faults():
            yield
    except torch.OutOfMemoryError:
        raise
    except (OSError, *MODEL_FAULTS) as error:
        what = f"lm-eval cannot run it: {type(error).__name__}: {str(error)[:300]}"
        fix = "Check the task's files. Offline, give its data as local files and the folder as --include-path."
        raise InputError(Problem(where, what, fix)) from error


def _figures(
    name: str, samples: Mapping[str, Sequence[Mapping[str, Any]]], results: Mapping[str, Any]
) -> Iterator[Figure]:
    """A figure per metric and filter that all subtasks have as one number per item, pooled over the subtasks."""
    ordered = [(task, sample) for task, found in sorted(samples.items()) for sample in found]
    for filter_name in dict.fromkeys(sample["filter"] for _, sample in ordered):
        chosen = [(task, sample) for task, sample in ordered if sample["filter"] == filter_name]
        items = content_hash([(task, sample["doc_hash"]) for task, sample in chosen])
        groups = tuple(_group(task, sample, len(samples)) for task, sample in chosen)
        chance = _chance([sample for _, sample in chosen])
        for metric in chosen[0][1]["metrics"]:
            found = [sample.get(metric) for _, sample in chosen]
            values = tuple(float(v) for v in found if isinstance(v, int | float) and math.isfinite(v))
            if len(values) < len(found):  # such as the pairs of a perplexity, which only their aggregation understands
                continue
            shown = metric if filter_name == "none" else f"{metric},{filter_name}"
            lower = not results["higher_is_better"].get(chosen[0][0], {}).get(metric, True)
            guess = chance if metric.startswith("acc") else None
            yield Figure(name, shown, items, values, (1.0,) * len(values), groups, guess, lower)
        if filter_name == "none":
            yield from _choice_figures(name, [sample for _, sample in chosen], items, groups)


def _choice_figures(
    name: str, samples: Sequence[Mapping[str, Any]], items: str, groups: Sequence[str]
) -> Iterator[Figure]:
    """Bits of the right answer and its margin, as `exam_outcome` has them, where every item is a choice of answers."""
    found = [_choice(sample) for sample in samples]
    known = [choice for choice in found if choice is not None]
    if len(known) < len(found):
        return
    ones, guess = [1.0] * len(known), sum(math.log2(len(bits)) for bits, _ in known) / len(known)
    shares = [bits_among(bits, answer) for bits, answer in known]
    margins = [margin_bits(bits, answer) for bits, answer in known]
    yield make_figure(name, ANSWER_BITS, items, shares, ones, groups, guess)
    yield make_figure(name, MARGIN_BITS, items, margins, ones, groups, 0.0)


def _choice(sample: Mapping[str, Any]) -> tuple[list[float], int] | None:
    """The bits of each answer of an item and the place of the right one; None for an item of another kind.

    acc_mutual_info scores each answer a second time, alone: such items are none.
    """
    scores, target = sample["filtered_resps"], sample["target"]
    if len(scores) < 2 or "acc_mutual_info" in sample["metrics"]:
        return None
    if not all(isinstance(score, list | tuple) and len(score) == 2 for score in scores):
        return None
    if isinstance(target, str):
        answers = [str(arguments[1]).strip() for arguments in sample["arguments"]]
        target = answers.index(target.strip()) if answers.count(target.strip()) == 1 else None
    if not isinstance(target, int) or not 0 <= target < len(scores):
        return None
    bits = [-float(log_p) / math.log(2) for log_p, _ in scores]
    return (bits, target) if all(map(math.isfinite, bits)) else None


def _group(task: str, sample: Mapping[str, Any], num_tasks: int) -> str:
    return task if num_tasks > 1 else str(sample["doc"].get("subject", sample["doc_id"]))


def _chance(samples: Sequence[Mapping[str, Any]]) -> float | None:
    """The accuracy of guessing where each item has several answers to score."""
    counts = [len(sample["arguments"]) for sample in samples]
    return sum(1 / count for count in counts) / len(counts) if min(counts) > 1 else None


def _texts(value: Any) -> Iterator[str]:
    """Every text in a document of a task: its question, its choices, its answer."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(inner)


def _row(task: str, sample: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "task": task, "doc_id": sample["doc_id"], "filter": sample["filter"], "target": str(sample["target"]),
        "responses": [str(response) for response in sample["filtered_resps"]],
        "text": " ".join(_texts(sample["doc"])),
        **{metric: str(sample.get(metric)) for metric in sample["metrics"]},
    }  # fmt: skip
