"""What the arms of a trial are measured on, opened once: the two halves of the held-out documents, texts and items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridizer import __version__
from hybridizer.core.errors import InputError, Problem
from hybridizer.core.progress import Monitor
from hybridizer.core.records import content_hash, to_jsonable
from hybridizer.data.tokenizer import load_encoder
from hybridizer.evaluate.outcome import Outcome, cached_outcome
from hybridizer.evaluate.trial_scores import SCHEMA
from hybridizer.pipeline.eval_models import measure_items, read_exams
from hybridizer.pipeline.texts import generate_texts
from hybridizer.pipeline.trial_setup import TrialSetup
from hybridizer.recipe.models import DataEntry, Evaluate
from hybridizer.train.run import open_texts

if TYPE_CHECKING:
    from hybridizer.evaluate.candidate import Candidate
    from hybridizer.evaluate.exam import Exam
    from hybridizer.evaluate.texts import TextSet

REPORTED, SELECTION = 0, 1  # the halves of the held-out documents, by the last bit of their keys


@dataclass(frozen=True)
class TrialSets:
    """Two lists of what models are measured on: `selection` to choose learning rates by, the others to report.

    `context` is in tokens per window; `items` and `recall` are as the recipe has them.
    """

    selection: tuple[TextSet, ...]
    texts: tuple[TextSet, ...]
    exams: tuple[Exam, ...]
    setup: TrialSetup
    context: int

    def key(self, plan_hash: str, *, reported: bool) -> str:
        """A hash of a plan and of all that its model is measured on: equal where stored scores can be used again."""
        texts = [(text.name, text.role, text.identity) for text in (self.texts if reported else self.selection)]
        asked = self.setup.trial.evaluate if reported else None
        exams = [(e.identity, content_hash([to_jsonable(x) for x in e.examples])) for e in self.exams if reported]
        steps = self.setup.train.max_steps  # not in the plan: a training may resume when it is raised
        return content_hash([SCHEMA, plan_hash, steps, texts, self.context, asked, exams, __version__])

    def num_groups(self, name: str) -> int:
        """How many groups of items the text or task called `name` has: documents, subjects, contexts."""
        from hybridizer.evaluate.recall import make_recall

        sizes = {text.name: len(text.documents) for text in self.texts}
        sizes |= {exam.name: len({item.subject for item in exam.items}) for exam in self.exams}
        for count in self.setup.trial.evaluate.recall:
            sizes[f"recall-{count}"] = len(make_recall(count))
        return sizes[name]

    def measure(self, candidate: Candidate, monitor: Monitor, *, reported: bool) -> tuple[Outcome, ...]:
        """The outcomes of `candidate`, each kept in the cache as soon as it is measured."""
        found: list[Outcome] = []

        def measure(name: str, settings: Any, run: Callable[[], Outcome]) -> None:
            parts = [candidate.identity, candidate.place, name, settings]
            found.append(cached_outcome(parts, f"{candidate.name}: {name}", monitor, run))

        for text in self.texts if reported else self.selection:
            settings = ["set", text.identity, text.role, text.documents_trained, self.context]
            measure(text.name, settings, lambda text=text: candidate.score_set(text, self.context))  # type: ignore[misc]
        if reported:
            asked = self.setup.trial.evaluate
            measure_items(candidate, self.exams, asked.items, asked.recall, measure)
        return tuple(found)


def open_trial_sets(setup: TrialSetup, monitor: Monitor) -> TrialSets:
    """Open everything that the trial measures, before the first arm trains.

    Raises InputError for files that cannot be read, and where a training source has no held-out document in one half.
    """
    from hybridizer.evaluate.texts import general_text, heldout_texts, trained_keys

    recipe, train, base = setup.recipe, setup.train, setup.base
    request = recipe.evaluate or Evaluate()
    exams = read_exams(setup.trial.evaluate.items, recipe.folder)
    host = base.donors[base.plan.host]
    encoder = load_encoder(host.folder, "remote_code" in host.allow)
    generate_texts(base, monitor)
    sources = open_texts(train.data, recipe.folder, encoder, monitor)
    halves = [
        heldout_texts(sources, train.heldout_ratio, monitor, request.max_tokens, half) for half in (SELECTION, REPORTED)
    ]
    for half, name in zip(halves, ("chooses the learning rate", "is reported"), strict=True):
        _check_half([text.name for text in half], [source.name for source in sources], name)
    trained = trained_keys(sources, train.heldout_ratio)
    general = []
    for text in request.bits_per_byte:
        (source,) = open_texts((DataEntry(text.path, field=text.field),), recipe.folder, encoder, monitor)
        general.append(general_text(text.name, source, trained, request.max_tokens))
    return TrialSets(halves[0], (*halves[1], *general), exams, setup, request.context)


def _check_half(found: Sequence[str], sources: Sequence[str], use: str) -> None:
    missing = [name for name in sources if name not in found]
    if missing:
        what = f"none of its documents is in the half of the held-out ones that {use}."
        fix = "Raise train.heldout_ratio, or split the text into more documents."
        raise InputError(Problem(missing[0], what, fix))


def make_candidate(setup: TrialSetup, name: str, folder: Path, identity: str, monitor: Monitor) -> Candidate:
    """The model in `folder` as something to measure; loaded when the first outcome is not in the cache."""
    from hybridizer.evaluate.candidate import Candidate

    host = setup.base.donors[setup.base.plan.host]
    return Candidate(name, folder, identity, monitor, "remote_code" in host.allow)
