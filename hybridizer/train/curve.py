"""Held-out curves: texts that training never sees, measured every few steps on the model that is in memory.

What the texts are comes from outside (`CurveText`): training gives token losses and gets the bits of documents. A curve
is nothing but the rows of curve.jsonl, so that a killed run continues it and a finished one can be read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from hybridizer.core.files import write_file
from hybridizer.recipe.models import Evaluate
from hybridizer.train.folder import CURVE, read_curve

if TYPE_CHECKING:
    from torch import Tensor

    from hybridizer.evaluate.compare import Comparison

TokenLosses: TypeAlias = "Callable[[Tensor], Tensor]"
Interval: TypeAlias = tuple[float, float]
Key: TypeAlias = tuple[str, str, str]
IN_DOMAIN, GENERAL = "in-domain", "general"
BEST, STOP = "best", "stop"
DIGITS = 3  # of the bits of a document in a row; a token has a few


class Processes(Protocol):
    """What a curve needs of the processes that train together: see train/runtime.py."""

    @property
    def rank(self) -> int: ...

    @property
    def num_ranks(self) -> int: ...

    @property
    def is_main(self) -> bool: ...

    def sum(self, *values: float) -> list[float]: ...

    def barrier(self) -> None: ...


@dataclass(frozen=True)
class CurveText:
    """A text that is measured while a model trains: `role` is "in-domain" (held out of training) or "general".

    `num_bytes` are those of each document, `identity` a hash of their tokens and of how they are cut into windows,
    `largest_token` the largest token id. `score` gives the bits of the documents with the given numbers, from a
    function that maps token ids, int64 (rows, tokens) on the host, to -ln p of every token but the first of each row,
    float32 (rows, tokens - 1).
    """

    name: str
    role: str
    identity: str
    num_bytes: tuple[int, ...]
    largest_token: int
    score: Callable[[TokenLosses, Sequence[int]], Sequence[float]]

    @property
    def key(self) -> Key:
        """What its rows are known by; the name of a source is its path, which may change."""
        return _key(self.name, self.role, self.identity.removeprefix("sha256:")[:12])


@dataclass(frozen=True)
class CurveRequest:
    """The texts of a curve, and when they are measured and what follows from it.

    `start` are the rows of the model that the whole training started from, where stages were trained before this one:
    changes count from there.
    """

    texts: tuple[CurveText, ...]
    settings: Evaluate
    start: tuple[CurveRow, ...] = ()

    @property
    def keeps_best(self) -> bool:
        """Whether the result is the best of the measured steps."""
        return self.settings.keep == BEST

    def facts(self) -> dict[str, Any]:
        """What decides which step is the best, where that one is kept; nothing else of a curve changes the result."""
        if not self.keeps_best:
            return {}
        texts = [text.key for text in self.texts if text.role == IN_DOMAIN]
        return {"curve": {"keep": BEST, "every": self.settings.every, "texts": [list(key) for key in texts]}}


@dataclass(frozen=True)
class CurvePoint:
    """How far a training is: steps, tokens, floating-point operations, and seconds without those of measuring."""

    step: int
    tokens: int
    flop: float
    seconds: float


@dataclass(frozen=True)
class CurveRow:
    """One text at one point. `change` is that of the bits per byte since step 0, with its paired 95% interval.

    `text` is the beginning of the text's identity. `bits` has one figure per document, `num_bytes` their sizes, in the
    row of step 0 only.
    """

    step: int
    tokens: int
    flop: float
    seconds: float
    set: str
    role: str
    text: str
    bits_per_byte: float
    change: float
    change_ci: Interval | None
    bits: tuple[float, ...]
    num_bytes: tuple[int, ...] | None = None

    @property
    def key(self) -> Key:
        """What its text is known by."""
        return _key(self.set, self.role, self.text)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> CurveRow:
        """The row of one line of the file; the `stage` that it may be of is not part of it."""
        read = {key: value for key, value in values.items() if key != "stage"}
        found: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in read.items()}
        return cls(**found)


@dataclass(frozen=True)
class Forgetting:
    """A general text whose bits per byte rose above the limit: by `rise` since step 0, all of `rise_ci` above it."""

    text: str
    step: int
    rise: float
    rise_ci: Interval
    limit: float

    def __str__(self) -> str:
        low, high = self.rise_ci
        return (
            f"{self.text} rose by {self.rise:.3f} ({low:.3f}..{high:.3f}) bits per byte, above the limit "
            f"{self.limit:g}, at step {self.step}"
        )


@dataclass(frozen=True)
class CurveSummary:
    """The in-domain bits per byte of the best measured step and of the last, and the paired change between the two."""

    best_step: int
    best: float
    last_step: int
    last: float
    change: float
    change_ci: Interval | None
    verdict: str


def read_rows(folder: Path) -> list[CurveRow]:
    """The rows of the file in `folder`; none where there is no file."""
    return [CurveRow.read(values) for values in read_curve(folder)]


def trim(folder: Path, step: int) -> None:
    """Drop the rows of steps after `step` from the file in `folder`, where a run resumes that measures no curve."""
    rows = read_rows(folder)
    if any(row.step > step for row in rows):
        write_file(folder / CURVE, "".join(_line(row) for row in rows if row.step <= step))


class Curve:
    """The rows of one training, in its folder and in memory, the same in every process."""

    def __init__(self, request: CurveRequest, folder: Path, processes: Processes) -> None:
        self._request, self._path, self._processes = request, folder / CURVE, processes
        self._rows: dict[int, dict[Key, CurveRow]] = {}
        self._start = {row.key: row for row in request.start}

    def read(self) -> None:
        """Take all rows from the file: a training that has ended."""
        for row in read_rows(self._path.parent):
            self._rows.setdefault(row.step, {})[row.key] = row

    def begin(self, step: int) -> tuple[str, ...]:
        """Take the rows of a run that resumes at `step` from the file, and drop those that will be measured again.

        Steps that are not due are dropped as well: the last step of a start that ended early. Returns the names of
        texts whose rows were of other documents or windows, and were dropped for that.
        """
        known = {text.key for text in self._request.texts}
        found = read_rows(self._path.parent)
        rows = [row for row in found if row.step <= step and self.is_due(row.step)]
        self._rows = {}
        for row in rows:
            if row.key in known:
                self._rows.setdefault(row.step, {})[row.key] = row
        self._processes.barrier()  # until here every process reads the file
        if self._processes.is_main:
            write_file(self._path, "".join(_line(row) for at in sorted(self._rows) for row in self._rows[at].values()))
        return tuple(dict.fromkeys(row.set for row in rows if row.key not in known))

    def is_due(self, step: int) -> bool:
        """Whether `step`, counted from 0 before the first, is one of those that are measured in any case."""
        return step % self._request.settings.every == 0

    def measure(self, point: CurvePoint, losses: TokenLosses) -> tuple[CurveRow, ...]:
        """The rows of the texts that have none at this point; in memory until `store`. Every process must call this.

        The processes share the documents. Raises what the scoring of a text raises.
        """
        here = self._rows.setdefault(point.step, {})
        rows = []
        for text in self._request.texts:
            if text.key not in here:
                here[text.key] = self._row(text, point, losses)
                rows.append(here[text.key])
        return tuple(rows)

    def store(self, rows: Iterable[CurveRow]) -> None:
        """Append `rows` to the file."""
        if self._processes.is_main:
            with self._path.open("a") as file:
                file.write("".join(_line(row) for row in rows))

    def has(self, step: int) -> bool:
        """Whether every text was measured at `step`."""
        return len(self._rows.get(step, {})) == len(self._request.texts)

    def forgetting(self, step: int) -> Forgetting | None:
        """The general text that rose most at `step` of those above the limit; None where none is, by its interval."""
        from hybridizer.evaluate.compare import LEAST_DOCUMENTS

        limit = self._request.settings.retention
        rows = [row for row in self._rows.get(step, {}).values() if row.role == GENERAL]
        if limit is None:
            return None
        above = [
            Forgetting(row.set, step, row.change, row.change_ci, limit)
            for row in rows
            if row.change_ci is not None and len(row.bits) >= LEAST_DOCUMENTS and row.change_ci[0] > limit
        ]
        return max(above, key=lambda found: found.rise, default=None)

    def warned_before(self, step: int) -> bool:
        """Whether a step before this one was above the limit."""
        return any(self.forgetting(other) is not None for other in self._rows if other < step)

    def best_step(self, up_to: int | None = None) -> int | None:
        """The step with the fewest in-domain bits per byte, the first of equals; None where none was measured.

        With `up_to` it is that of a run that resumes at that step: see `begin`.
        """
        steps = [step for step in sorted(self._rows) if self._in_domain(step) is not None]
        if up_to is not None:
            steps = [step for step in steps if step <= up_to and self.is_due(step)]
        return min(steps, key=self._figure, default=None)

    def summary(self) -> CurveSummary | None:
        """The best step beside the last one; None where no in-domain text was measured."""
        best = self.best_step()
        if best is None:
            return None
        last = max(step for step in self._rows if self._in_domain(step) is not None)
        found = self._compare(self._in_domain(best) or [], self._in_domain(last) or [])
        return CurveSummary(best, found.before, last, found.after, found.change, found.change_ci, found.verdict)

    def words(self, step: int) -> str:
        """The figures of `step` and their changes since step 0, in one line."""
        figures = [
            f"{row.set} {row.bits_per_byte:.3f}" + (f" ({row.change:+.3f})" if step else "")
            for row in self._rows[step].values()
        ]
        return f"step {step}: bits per byte of {', '.join(figures)}"

    def _row(self, text: CurveText, point: CurvePoint, losses: TokenLosses) -> CurveRow:
        numbers = range(self._processes.rank, len(text.num_bytes), self._processes.num_ranks)
        scored = [0.0] * len(text.num_bytes)
        for number, value in zip(numbers, text.score(losses, numbers), strict=True):
            scored[number] = float(value)
        bits = tuple(round(value, DIGITS) for value in self._processes.sum(*scored))
        start = self._start.get(text.key) or self._rows.get(0, {}).get(text.key)
        found = _compare(start.bits if start else bits, bits, text.num_bytes)
        return CurveRow(
            step=point.step,
            tokens=point.tokens,
            flop=point.flop,
            seconds=round(point.seconds, 3),
            set=text.name,
            role=text.role,
            text=text.key[2],
            bits_per_byte=found.after,
            change=found.change,
            change_ci=found.change_ci,
            bits=bits,
            num_bytes=None if start else text.num_bytes,
        )

    def _in_domain(self, step: int) -> list[CurveRow] | None:
        """The in-domain rows of `step`; None where one is missing, or there is none."""
        asked = [text.key for text in self._request.texts if text.role == IN_DOMAIN]
        rows = [self._rows[step].get(key) for key in asked]
        found = [row for row in rows if row is not None]
        return found if found and len(found) == len(rows) else None

    def _figure(self, step: int) -> float:
        """The in-domain bits per byte of `step`: of all documents of all sources together."""
        return sum(sum(row.bits) for row in self._in_domain(step) or []) / sum(self._sizes())

    def _sizes(self) -> list[int]:
        return [size for text in self._request.texts if text.role == IN_DOMAIN for size in text.num_bytes]

    def _compare(self, before: Sequence[CurveRow], after: Sequence[CurveRow]) -> Comparison:
        first, second = ([value for row in rows for value in row.bits] for rows in (before, after))
        return _compare(first, second, self._sizes())


def _key(name: str, role: str, text: str) -> Key:
    return name if role == GENERAL else "", role, text


def _compare(before: Sequence[float], after: Sequence[float], num_bytes: Sequence[int]) -> Comparison:
    from hybridizer.evaluate.compare import compare_bits  # loads numpy, which those who name a text do not need

    return compare_bits(before, after, num_bytes)


def _line(row: CurveRow) -> str:
    values = {key: value for key, value in asdict(row).items() if key != "num_bytes" or value is not None}
    return json.dumps(values) + "\n"
