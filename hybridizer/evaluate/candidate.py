"""A model to evaluate: loaded when the first figure is missing in the cache, and what it is measured with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from hybridizer.core.progress import Monitor
from hybridizer.evaluate.bits import num_scored_tokens, score_documents
from hybridizer.evaluate.chat import Chats, encode_chats, score_chats
from hybridizer.evaluate.exam import Exam, Question, Style, ask
from hybridizer.evaluate.figures import (
    ACCURACY,
    ANSWER_BITS,
    BITS_PER_BYTE,
    MARGIN_BITS,
    make_figure,
)
from hybridizer.evaluate.heldout import HeldoutText, encode_heldout
from hybridizer.evaluate.model import compute_dtype, default_device
from hybridizer.evaluate.outcome import SET, TASK, Outcome
from hybridizer.evaluate.recall import make_recall
from hybridizer.evaluate.rows import Row, RowScorer, encode_row
from hybridizer.evaluate.texts import TextSet
from hybridizer.models.load import load_causal_lm, load_tokenizer, max_tokens
from hybridizer.models.parts import find_parts
from hybridizer.models.quiet import without_bars


class Candidate:
    """The model in `folder`, called `name`. `identity` is a hash of its content."""

    def __init__(self, name: str, folder: Path, identity: str, monitor: Monitor, remote_code: bool = False) -> None:
        """Nothing is loaded yet."""
        self.name, self.folder, self.identity = name, folder, identity
        self._monitor, self._remote_code = monitor, remote_code

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer alone, which is enough to count."""
        return load_tokenizer(self.folder, self._remote_code)

    @cached_property
    def model(self) -> Any:
        """The model on this machine's accelerator if it has one, in the precision that `compute_dtype` gives."""
        self._monitor.note(f"load {self.name}")
        with without_bars():
            model, _ = load_causal_lm(self.folder, compute_dtype(), trust_remote_code=self._remote_code)
        return model.to(default_device())

    @cached_property
    def parts(self) -> Any:
        """The model's layers, norm and head."""
        return find_parts(self.model)

    @cached_property
    def rows(self) -> RowScorer:
        """What scores prompts with their continuations."""
        return RowScorer(self.model, self.parts, self._monitor.note)

    @property
    def place(self) -> tuple[str, str]:
        """Device and dtype: what the numbers depend on besides content."""
        return default_device().type, compute_dtype()

    @property
    def dtype(self) -> str:
        """The dtype of the loaded weights, such as "bfloat16"."""
        return str(next(self.model.parameters()).dtype).removeprefix("torch.")

    def score_text(self, text: HeldoutText, context: int) -> Outcome:
        """Bits per byte of a held-out text, in windows of `context` tokens or what the model takes."""
        from hybridizer.data.tokenizer import TokenizerEncoder

        encoded = encode_heldout(text, TokenizerEncoder(self.tokenizer))
        window = min(context, max_tokens(self.model.config) or context)
        with self._task(text.name, num_scored_tokens(encoded, window), "tokens") as advance:
            bits = score_documents(self.model, self.parts, encoded, window, advance).tolist()
        sizes = [passage.num_bytes for passage in text.passages]
        groups = [passage.group for passage in text.passages]
        figure = make_figure(text.name, BITS_PER_BYTE, text.identity, bits, sizes, groups)
        facts = {
            "documents": len(sizes), "documents_available": text.documents_available, "num_bytes": sum(sizes),
            "bytes_available": text.bytes_available, "num_tokens": encoded.num_tokens, "context": window,
            "dtype": self.dtype,
        }  # fmt: skip
        rows = tuple({"bits": b, "num_bytes": n, "group": g} for b, n, g in zip(bits, sizes, groups, strict=True))
        return Outcome(SET, text.name, (figure,), facts, text.passages[0].text[:400], rows)

    def score_set(self, text: TextSet, context: int) -> Outcome:
        """Bits per byte of documents that are tokens already, of this model's tokenizer; each is a group of its own."""
        window = min(context, max_tokens(self.model.config) or context)
        with self._task(text.name, num_scored_tokens(text, window), "tokens") as advance:
            bits = score_documents(self.model, self.parts, text, window, advance).tolist()
        sizes = [document.num_bytes for document in text.documents]
        groups = [str(number) for number in range(len(sizes))]
        figure = make_figure(text.name, BITS_PER_BYTE, text.identity, bits, sizes, groups)
        facts = {
            "role": text.role, "documents": len(sizes), "documents_available": text.documents_available,
            "documents_trained": text.documents_trained, "num_bytes": sum(sizes), "num_tokens": text.num_tokens,
            "context": window, "dtype": self.dtype,
        }  # fmt: skip
        return Outcome(SET, text.name, (figure,), facts)

    def score_chats(self, chats: Chats) -> Outcome:
        """Bits per byte of what the assistant says, under the model's chat template."""
        rows = encode_chats(self.tokenizer, chats)
        where = f"chats '{chats.name}'"
        with self._task(chats.name, sum(len(row.ids) for row in rows), "tokens") as advance:
            bits = score_chats(self.model, self.parts, rows, where, advance)
        names = [str(number) for number in range(len(rows))]
        figure = make_figure(chats.name, BITS_PER_BYTE, chats.identity, bits, chats.num_bytes, names)
        facts = {
            "documents": len(rows), "num_bytes": sum(chats.num_bytes), "num_tokens": sum(sum(r.spoken) for r in rows),
            "dtype": self.dtype, "chat": True,
        }  # fmt: skip
        lines = tuple({"bits": b, "num_bytes": n} for b, n in zip(bits, chats.num_bytes, strict=True))
        return Outcome(SET, chats.name, (figure,), facts, self.tokenizer.decode(rows[0].ids), lines)

    def score_exam(self, exam: Exam, shots: int, style: Style) -> Outcome:
        """Accuracy, bits of the right answer and its margin over the wrong ones, see `exam_outcome`."""
        questions = ask(exam, shots, style)
        rows = [self._row(question.prompt, text) for question in questions for text in question.continuations]
        with self._task(exam.name, len(rows), "answers") as advance:
            scores = self.rows.score(rows, f"items '{exam.name}'", advance)
        left = iter(scores)
        bits = [[next(left).bits for _ in question.continuations] for question in questions]
        facts = {"shots": shots, "style": style, "dtype": self.dtype}
        return exam_outcome(exam, questions, bits, facts)

    def score_recall(self, num_pairs: int) -> Outcome:
        """The share of values that the model finds again among `num_pairs`, each of their tokens the most probable one.

        That is what greedy generation would give, token for token.
        """
        name = f"recall-{num_pairs}"
        contexts = make_recall(num_pairs)
        found, lengths = [], []
        with self._task(name, sum(map(len, contexts)), "questions") as advance:
            for questions in contexts:
                rows = [self._row(question.prompt, question.continuations[0]) for question in questions]
                found += [float(score.is_greedy) for score in self.rows.score(rows, f"task '{name}'", advance)]
                lengths += [len(row.inputs) for row in rows]
        asked = [question for questions in contexts for question in questions]
        groups = [question.subject for question in asked]
        items = f"recall/1/{num_pairs}"
        figure = make_figure(name, ACCURACY, items, found, [1.0] * len(found), groups, 1 / num_pairs)
        rows_out = tuple(
            {"prompt": q.prompt.rpartition("\n")[2], "answer": q.continuations[0], "right": bool(right)}
            for q, right in zip(asked, found, strict=True)
        )
        facts = {"mean_tokens": round(sum(lengths) / len(lengths)), "dtype": self.dtype}
        return Outcome(TASK, name, (figure,), facts, asked[0].prompt + asked[0].continuations[0], rows_out)

    def _row(self, prompt: str, continuation: str) -> Row:
        return encode_row(self.tokenizer, prompt, continuation)

    def _task(self, what: str, total: int, unit: str) -> Any:
        return self._monitor.task(f"{self.name}: {what}", total, unit)


def exam_outcome(
    exam: Exam, questions: Sequence[Question], bits: Sequence[Sequence[float]], facts: dict[str, Any]
) -> Outcome:
    """The figures of an exam from the bits of each continuation, -log2 p given the prompt.

    `accuracy` is the share of items whose right answer takes the fewest bits. `answer_bits` is -log2 of the right
    answer's share of the probability of all answers of its item; guessing gives log2 of their number. `margin_bits` is
    what a wrong answer takes more than the right one, on average over the wrong ones; 0 for a model that cannot tell
    them apart. Both are continuous, and tell models apart that guess.
    """
    right, shares, margins, rows = [], [], [], []
    for question, of_item in zip(questions, bits, strict=True):
        chosen = min(range(len(of_item)), key=of_item.__getitem__)
        right.append(float(chosen == question.answer))
        shares.append(bits_among(of_item, question.answer))
        margins.append(margin_bits(of_item, question.answer))
        rows.append({"subject": question.subject, "answer": question.answer, "chosen": chosen, "bits": list(of_item)})
    ones, groups = [1.0] * len(right), [question.subject for question in questions]
    guess = sum(math.log2(len(question.continuations)) for question in questions) / len(questions)
    identity = exam.identity
    figures = tuple(
        make_figure(exam.name, metric, identity, values, ones, groups, chance)
        for metric, values, chance in (
            (ACCURACY, right, exam.chance), (ANSWER_BITS, shares, guess), (MARGIN_BITS, margins, 0.0),
        )
    )  # fmt: skip
    first = questions[0]
    return Outcome(TASK, exam.name, figures, facts, first.prompt + first.continuations[first.answer], tuple(rows))


def margin_bits(bits: Sequence[float], answer: int) -> float:
    """What a wrong answer of an item takes more than the one at `answer`, on average over the wrong ones."""
    wrong = [value for at, value in enumerate(bits) if at != answer]
    return sum(wrong) / len(wrong) - bits[answer]


def bits_among(bits: Sequence[float], answer: int) -> float:
    """-log2 of the share that the answer at `answer` has of the probability of all answers of its item."""
    least = min(bits)
    return bits[answer] - least + math.log2(sum(2.0 ** (least - value) for value in bits))
