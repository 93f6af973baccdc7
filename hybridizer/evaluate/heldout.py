"""Held-out text that several models are scored on: chosen by its content alone, so that tokenizers do not matter."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hybridizer.core.errors import InputError, Problem
from hybridizer.core.records import content_hash
from hybridizer.data.documents import BadRecords, find_files, locate_documents, no_document
from hybridizer.data.tokenize import Encoder
from hybridizer.evaluate.texts import GENERAL, LEAST_TOKENS, Document, TextSet
from hybridizer.recipe.models import TextEntry

MAX_DOCUMENT_BYTES = 10_000_000
FIELD = "`field` in an evaluation file (--set-file)"


@dataclass(frozen=True)
class Passage:
    """One document, and the group it belongs to: itself, or its source where records name one."""

    text: str
    group: str

    @property
    def num_bytes(self) -> int:
        """Its size in UTF-8."""
        return len(self.text.encode())


@dataclass(frozen=True)
class HeldoutText:
    """Documents that are scored together, `passages`, taken of `documents_available`, which hold `bytes_available`.

    `left_out` says how many records were unusable, and why; it is empty where none was.
    """

    name: str
    passages: tuple[Passage, ...]
    documents_available: int
    bytes_available: int
    left_out: str = ""

    @property
    def identity(self) -> str:
        """A hash of the documents and their groups, in order."""
        return content_hash([(passage.text, passage.group) for passage in self.passages])


def read_heldout(entry: TextEntry, folder: Path, max_bytes: int, source: str | None = None) -> HeldoutText:
    """The documents of `entry`, equal texts once, in the order of their hashes until there are `max_bytes`.

    The order depends on the texts alone, so that a limit takes a sample and not the beginning of the first file. The
    document that reaches the limit is cut there, between characters. `source` names the field of a record that says
    which source it comes from. Raises InputError for files that cannot be read, and where no document is left.
    """
    found: dict[bytes, Passage] = {}
    bad = BadRecords()
    for path in find_files(entry.path, folder):
        groups = dict(locate_documents(path, source, MAX_DOCUMENT_BYTES, BadRecords())) if source else {}
        for where, text in locate_documents(path, entry.field, MAX_DOCUMENT_BYTES, bad):
            key = hashlib.sha256(text.encode()).digest()[:8][::-1]
            found.setdefault(key, Passage(text, groups.get(where, key.hex())))
    if not found:
        raise InputError(no_document(f"text '{entry.name}' in {entry.path}", bad, FIELD))
    ordered = [found[key] for key in sorted(found)]
    total = sum(passage.num_bytes for passage in ordered)
    return HeldoutText(entry.name, tuple(_take(ordered, max_bytes)), len(ordered), total, str(bad))


def encode_heldout(text: HeldoutText, encoder: Encoder) -> TextSet:
    """The documents of `text` as token ids of one tokenizer, every document kept, in the same order.

    Raises InputError for a document of fewer than two tokens: it would be scored for one model and not for another.
    """
    rows = encoder.encode([passage.text for passage in text.passages])
    for row, passage in zip(rows, text.passages, strict=True):
        if len(row) < LEAST_TOKENS:
            what = f"the document {passage.text[:40]!r} is {len(row)} tokens, and the first of them is not predicted."
            raise InputError(Problem(f"text '{text.name}'", what, "Leave it out of the file."))
    documents = tuple(
        Document(np.asarray(row, np.int64), passage.num_bytes) for row, passage in zip(rows, text.passages, strict=True)
    )
    tokens = sum(map(len, rows))
    return TextSet(text.name, GENERAL, documents, text.documents_available, tokens, prefix=encoder.prefix)


def _take(ordered: list[Passage], max_bytes: int) -> Iterator[Passage]:
    left = max_bytes
    for passage in ordered:
        if left <= 0:
            return
        data = passage.text.encode()
        cut = data[:left].decode(errors="ignore") if len(data) > left else passage.text
        if cut.strip():
            yield Passage(cut, passage.group)
        left -= len(data)
