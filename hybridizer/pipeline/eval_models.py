"""Any models on the same texts, questions and tasks: `hybridize eval`."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from hybridizer.core.errors import InputError, Problem
from hybridizer.core.files import write_file
from hybridizer.core.progress import Monitor
from hybridizer.core.records import to_jsonable, write_json
from hybridizer.data.documents import find_files, look_for_document
from hybridizer.donors.donor import Donor
from hybridizer.donors.open import Access, open_donor
from hybridizer.donors.reference import parse_reference
from hybridizer.evaluate.figures import Difference, Figure, compare_pairs, estimate
from hybridizer.evaluate.gate import GateResult, Limit, check_gate, check_limits, judge, read_limits
from hybridizer.evaluate.outcome import SET, Outcome, cached_outcome
from hybridizer.evaluate.request import EvalRequest
from hybridizer.pipeline.faults import reporting_os_errors
from hybridizer.pipeline.run import find_model
from hybridizer.recipe.measures import ItemsEntry

if TYPE_CHECKING:
    from hybridizer.evaluate.candidate import Candidate
    from hybridizer.evaluate.chat import Chats
    from hybridizer.evaluate.exam import Exam
    from hybridizer.evaluate.heldout import HeldoutText
    from hybridizer.evaluate.overlap import Overlap

SCHEMA = "hybridizer.eval/1"
Measure: TypeAlias = Callable[[str, Any, Callable[[], Outcome]], None]  # name, settings, and what is cached by both


@dataclass(frozen=True)
class EvaluatedModel:
    """One model: as it was named, a hash of its content, its outcomes, and what was left out with the reason."""

    name: str
    identity: str
    outcomes: tuple[Outcome, ...]
    left_out: Mapping[str, str]

    @property
    def figures(self) -> tuple[Figure, ...]:
        """All figures, in the order in which they were measured."""
        return tuple(figure for outcome in self.outcomes for figure in outcome.figures)

    def to_json(self, seed: int) -> dict[str, Any]:
        """The model's entry in the record: its sets, and one entry for each metric of each task."""
        sets, tasks = [], []
        for outcome in self.outcomes:
            for figure in outcome.figures:
                found = estimate(figure, seed)
                about = {"groups": found.num_groups, "caveat": found.caveat}
                if outcome.kind == SET:
                    measured = {"bits_per_byte": found.value, "bits_per_byte_ci": found.value_ci}
                    sets.append({"name": outcome.name, **measured, **about, **outcome.facts})
                else:
                    measured = {"value": found.value, "value_ci": found.value_ci, "chance": found.chance, "n": found.n}
                    task = {"name": outcome.name, "metric": figure.metric, **measured, **about, **outcome.facts}
                    tasks.append({**task, "lower_is_better": figure.lower_is_better})
        prompts = {outcome.name: outcome.prompt for outcome in self.outcomes}
        named = {"name": self.name, "identity": self.identity, "sets": sets, "tasks": tasks}
        return {**named, "left_out": dict(self.left_out), "prompts": prompts}


@dataclass(frozen=True)
class Evaluation:
    """Models on the same items, every two of them compared, the limits judged, and the overlaps with training text."""

    models: tuple[EvaluatedModel, ...]
    pairs: tuple[Difference, ...]
    gate: tuple[GateResult, ...]
    overlaps: tuple[Overlap, ...]
    seed: int

    def to_json(self) -> dict[str, Any]:
        """The record of schema "hybridizer.eval/1", without results per item."""
        record = {
            "schema": SCHEMA,
            "seed": self.seed,
            "models": [model.to_json(self.seed) for model in self.models],
            "pairs": self.pairs,
            "gate": self.gate,
            "overlaps": self.overlaps,
        }
        found: dict[str, Any] = to_jsonable(record)
        return found


@dataclass(frozen=True)
class _Material:
    """What the request names, read from its files."""

    texts: tuple[HeldoutText, ...]
    chats: tuple[Chats, ...]
    exams: tuple[Exam, ...]
    limits: tuple[Limit, ...]
    training: tuple[Path, ...]


@reporting_os_errors()
def eval_models(
    models: Sequence[str],
    request: EvalRequest,
    monitor: Monitor,
    *,
    allow: tuple[str, ...] = (),
    seed: int = 0,
    out: Path | None = None,
) -> Evaluation:
    """Evaluate `models`, which are named as donors are, or by the folder of a run, on everything in `request`.

    All files are read and all models opened before the first is scored. Every outcome is kept in the cache when it is
    finished, so that the same call resumes an evaluation that was stopped. The results of every item go into the folder
    `out`, which is made before anything is scored. Raises InputError for what cannot be scored or compared, RunError
    where a model's figures are not numbers or memory does not hold a single item.
    """
    twice = [name for name, count in Counter(models).items() if count > 1]
    if twice:
        raise InputError(Problem("models", f"'{twice[0]}' is named twice.", "Name each model once."))
    material = _read(request, len(models), monitor)
    donors = [_open(name, allow, monitor) for name in models]
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    evaluated = tuple(_evaluate(donor, request, material, monitor) for donor in donors)
    figures = [(model.name, model.figures) for model in evaluated]
    pairs = compare_pairs(figures, seed)
    if material.limits:
        check_limits(material.limits, figures, str(request.gate))
    directions = {(figure.what, figure.metric): figure.lower_is_better for _, found in figures for figure in found}
    gate = judge(material.limits, pairs, directions, models[0])
    overlaps = _find_overlaps(request, material, evaluated[0], monitor)
    evaluation = Evaluation(evaluated, pairs, gate, overlaps, seed)
    if out is not None:
        _write_details(evaluation, out)
    return evaluation


def _write_details(evaluation: Evaluation, folder: Path) -> None:
    """Write eval.json, and for each model a folder with one row per item and the first prompt of each set and task."""
    write_json(folder / "eval.json", evaluation.to_json())
    for number, model in enumerate(evaluation.models):
        own = folder / f"{number}-{_as_file_name(model.name)}"
        own.mkdir(parents=True, exist_ok=True)
        for outcome in model.outcomes:
            name = _as_file_name(outcome.name)
            rows = "".join(_json_line(row) for row in outcome.rows)
            write_file(own / f"{name}.jsonl", rows)
            write_file(own / f"{name}.prompt.txt", outcome.prompt or "")


def _json_line(row: Mapping[str, Any]) -> str:
    return json.dumps(to_jsonable(row), ensure_ascii=False) + "\n"


def _as_file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")[-60:] or "model"


def _read(request: EvalRequest, num_models: int, monitor: Monitor) -> _Material:
    from hybridizer.evaluate.chat import read_chats
    from hybridizer.evaluate.heldout import read_heldout

    limits = read_limits(Path(request.gate)) if request.gate else ()
    if limits:
        check_gate(limits, request.metrics, num_models, str(request.gate))
    here = Path.cwd()
    material = _Material(
        tuple(read_heldout(entry, here, request.max_bytes, entry.source) for entry in request.bits_per_byte),
        tuple(read_chats(entry.name, Path(entry.path)) for entry in request.chats),
        read_exams(request.items, Path()),
        limits,
        _find_training(request, here),
    )
    for text in material.texts:
        if text.left_out:
            monitor.note(f"{text.name}: left out {text.left_out}")
    for entry in request.tasks:
        from hybridizer.evaluate.harness import check_task

        check_task(entry, here)
    return material


def _find_training(request: EvalRequest, folder: Path) -> tuple[Path, ...]:
    """The files of training text. Raises InputError for those without a usable document: nothing overlaps with them."""
    from hybridizer.evaluate.overlap import MAX_DOCUMENT_BYTES

    found: dict[Path, None] = {}
    problems = []
    for pattern in request.training_text:
        files = find_files(pattern, folder)
        found |= dict.fromkeys(files)
        name, field = f"training text {pattern}", "`training_field` in an evaluation file (--set-file)"
        if problem := look_for_document(name, files, request.training_field, MAX_DOCUMENT_BYTES, field):
            problems.append(problem)
    if problems:
        raise InputError(*problems)
    return tuple(found)


def _open(name: str, allow: tuple[str, ...], monitor: Monitor) -> Donor:
    reference = parse_reference(name, Path.cwd(), where=name)
    if reference.kind == "folder" and reference.path is not None and find_model(reference.path) != reference.path:
        reference = parse_reference(f"folder:{find_model(reference.path)}", Path.cwd(), where=name)
    donor = open_donor(name, reference, Access(fetch=True, fingerprint=True, allow=allow), name, monitor)
    assert isinstance(donor, Donor), "a model that may be fetched is there afterwards"
    return donor


def _evaluate(donor: Donor, request: EvalRequest, material: _Material, monitor: Monitor) -> EvaluatedModel:
    from hybridizer.evaluate.candidate import Candidate
    from hybridizer.evaluate.chat import has_template

    assert donor.fingerprint is not None, "it was requested"
    candidate = Candidate(donor.name, donor.folder, donor.fingerprint, monitor, "remote_code" in donor.allow)
    outcomes: list[Outcome] = []
    left_out: dict[str, str] = {}

    def measure(name: str, settings: Any, run: Callable[[], Outcome]) -> None:
        parts = [donor.fingerprint, candidate.place, name, settings]
        outcomes.append(cached_outcome(parts, f"{donor.name}: {name}", monitor, run))

    for text in material.texts:
        settings = ["text", text.identity, text.documents_available, text.bytes_available, request.context]
        measure(text.name, settings, lambda text=text: candidate.score_text(text, request.context))  # type: ignore[misc]
    for chats in material.chats:
        if not has_template(candidate.tokenizer):
            left_out[chats.name] = "the model has no chat template"
            monitor.note(f"{donor.name}: {chats.name} is left out: the model has no chat template")
            continue
        measure(chats.name, ["chats", chats.identity], lambda chats=chats: candidate.score_chats(chats))  # type: ignore[misc]
    measure_items(candidate, material.exams, request.items, request.recall, measure)
    _run_tasks(candidate, request, measure)
    return EvaluatedModel(donor.name, donor.fingerprint, tuple(outcomes), left_out)


def measure_items(
    candidate: Candidate, exams: Sequence[Exam], entries: Sequence[ItemsEntry], recall: Sequence[int], measure: Measure
) -> None:
    """Call `measure` with name, settings and work, for every exam, asked as its entry says, and every recall probe."""
    for exam, entry in zip(exams, entries, strict=True):
        examples = [to_jsonable(example) for example in exam.examples]
        settings = ["items", exam.identity, examples, exam.language, entry.shots, entry.style]
        measure(
            exam.name, settings, lambda exam=exam, entry=entry: candidate.score_exam(exam, entry.shots, entry.style)  # type: ignore[misc]
        )  # fmt: skip
    for count in recall:
        measure(f"recall-{count}", ["recall"], lambda count=count: candidate.score_recall(count))  # type: ignore[misc]


def read_exams(entries: Sequence[ItemsEntry], folder: Path) -> tuple[Exam, ...]:
    """The questions that `entries` name; paths count from `folder`.

    Raises InputError for what cannot be read, and where there are fewer examples than an entry shows.
    """
    from hybridizer.evaluate.exam import ask, load_exam

    def find(text: str | None) -> Path | None:
        return None if text is None else folder / text

    exams = tuple(load_exam(entry.name, find(entry.path), find(entry.examples), entry.language) for entry in entries)
    for exam, entry in zip(exams, entries, strict=True):
        ask(exam, entry.shots, entry.style)
    return exams


def _run_tasks(candidate: Candidate, request: EvalRequest, measure: Measure) -> None:
    if not request.tasks:
        return
    from hybridizer.evaluate.harness import run_task, task_settings

    for entry in request.tasks:
        settings = ["task", task_settings(entry, Path.cwd())]
        measure(entry.name, settings, lambda entry=entry: run_task(candidate, entry, Path.cwd()))  # type: ignore[misc]


def _find_overlaps(
    request: EvalRequest, material: _Material, model: EvaluatedModel, monitor: Monitor
) -> tuple[Overlap, ...]:
    """The overlaps of everything that was read; the items of tasks are those in the outcomes of any `model`."""
    if not material.training:
        return ()
    from hybridizer.evaluate.overlap import find_overlaps

    sets = {text.name: [passage.text for passage in text.passages] for text in material.texts}
    for chats in material.chats:
        sets[chats.name] = [" ".join(m["content"] for m in messages) for messages in chats.conversations]
    for exam in material.exams:
        sets[exam.name] = [" ".join((item.question, *item.choices)) for item in exam.items]
    tasks = {entry.name for entry in request.tasks}
    for outcome in model.outcomes:
        if outcome.name in tasks:  # one row for each filter: every item once
            items = {(row["task"], row["doc_id"]): row["text"] for row in outcome.rows}
            sets[outcome.name] = list(items.values())
    return find_overlaps(sets, material.training, request.training_field, monitor)
