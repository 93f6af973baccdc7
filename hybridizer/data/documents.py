"""Files of text, one document after the other, with every unusable record counted and located.

A `.txt` or `.md` file is one document; `.jsonl` holds one per line in a named field; `.parquet` one per row in a named
column. Each may be compressed (.gz, .bz2, .xz, and .zst: from Python 3.14 on, or with the package `backports.zstd`).
"""

from __future__ import annotations

import bz2
import glob
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from hybridizer.core.errors import InputError, Problem
from hybridizer.data import zstd

TEXT_SUFFIXES = (".txt", ".md", ".rst")
MAX_LISTED = 20
MAX_LOOKED_AT = 10_000
CHAT_FIELDS = {"messages", "conversations", "conversation", "dialogue", "turns"}


@dataclass
class BadRecords:
    """Records left out: how many for each reason, and where the first MAX_LISTED of each reason are.

    `fields` are those of the first record that lacks the field with the text.
    """

    counts: dict[str, int] = field(default_factory=dict)
    listed: dict[str, list[str]] = field(default_factory=dict)
    fields: tuple[str, ...] = ()

    def add(self, reason: str, where: str) -> None:
        """Count one record as left out for `reason`."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        if self.counts[reason] <= MAX_LISTED:
            self.listed.setdefault(reason, []).append(where)

    def __str__(self) -> str:
        return ", ".join(f"{count} {reason}" for reason, count in self.counts.items())


def find_files(pattern: str, folder: Path) -> tuple[Path, ...]:
    """The files that `pattern` (a path or a glob with ** for any depth, relative to `folder`) names, sorted.

    Raises InputError when there is none, or when one is of a kind that cannot be read.
    """
    names = glob.glob(pattern, root_dir=folder, recursive=True)  # noqa: PTH207 -- Path.glob takes no absolute pattern
    found = sorted(path for name in names if (path := folder / name).is_file())
    if not found:
        raise InputError(Problem(pattern, f"no file in {folder} matches.", "Check the path; ** matches any depth."))
    problems = [problem for path in found if (problem := _kind_problem(path)) is not None]
    if problems:
        raise InputError(*problems)
    return tuple(found)


def read_documents(path: Path, text_field: str, max_bytes: int, bad: BadRecords) -> Iterator[str]:
    """The documents of one file, in order; unusable ones are added to `bad`.

    `max_bytes` limits one document in UTF-8. Raises InputError when the file as a whole cannot be read: damaged
    compression, damaged Parquet.
    """
    for _, text in locate_documents(path, text_field, max_bytes, bad):
        yield text


def locate_documents(path: Path, text_field: str, max_bytes: int, bad: BadRecords) -> Iterator[tuple[str, str]]:
    """The documents that `read_documents` gives, each after its place: the file, "file:line" or "file:row n"."""
    for where, text in _records(path, text_field, bad):
        if usable(text, where, max_bytes, bad):
            yield where, text


def look_for_document(
    name: str, paths: Sequence[Path], text_field: str, max_bytes: int, key: str = "`field`"
) -> Problem | None:
    """None if the files hold a usable document; otherwise the problem, which names the fields of their records.

    `key` is where the field is named. Reads up to the first document, or up to MAX_LOOKED_AT unusable records, after
    which the answer is None, too. Raises InputError for a file that cannot be read.
    """
    bad = BadRecords()
    for path in paths:
        for _ in read_documents(path, text_field, max_bytes, bad):
            return None
        if sum(bad.counts.values()) > MAX_LOOKED_AT:
            return None
    return no_document(name, bad, key)


def no_document(name: str, bad: BadRecords, key: str = "`field`") -> Problem:
    """The problem of files without a usable document; `key` is where the field with the text is named."""
    fix = "Look at the files."
    if set(bad.fields) & CHAT_FIELDS:
        fix = f"These are chat records ({', '.join(bad.fields)}): write each as one text, with the chat template."
    elif bad.fields:
        fix = f"Name one of the fields of its records as {key}: {', '.join(bad.fields)}."
    return Problem(name, f"no usable document; left out: {str(bad) or 'nothing'}.", fix)


def usable(text: str, where: str, max_bytes: int, bad: BadRecords) -> bool:
    """Whether `text` can be trained on; if not, it is added to `bad`: empty, too long, not valid as UTF-8."""
    if not text.strip():
        bad.add("empty", where)
    elif len(text) * 4 > max_bytes and len(text.encode(errors="replace")) > max_bytes:
        bad.add(f"longer than {max_bytes} bytes", where)
    elif not _encodable(text):
        bad.add("not UTF-8", where)
    else:
        return True
    return False


def file_kind(path: Path) -> str:
    """How the file is read, as its suffixes: ".jsonl", ".txt.gz". Equal bytes are other documents in another kind."""
    compression = path.suffix.lower() if path.suffix.lower() in _openers() else ""
    return _kind(path) + compression


def _records(path: Path, text_field: str, bad: BadRecords) -> Iterator[tuple[str, str]]:
    kind, opener = _kind(path), _opener(path)
    try:
        if kind == ".parquet":
            yield from _parquet_rows(path, text_field, bad)
            return
        with opener(path) as file:
            yield from _json_lines(path, file, text_field, bad) if kind == ".jsonl" else _whole(path, file, bad)
    except _damage() as error:
        fix = "Restore the file, or leave it out of `data`."
        raise InputError(Problem(str(path), f"cannot be read: {error}.", fix)) from error


def _damage() -> tuple[type[Exception], ...]:
    return OSError, EOFError, lzma.LZMAError, zlib.error, *zstd.errors()


def _whole(path: Path, file: BinaryIO, bad: BadRecords) -> Iterator[tuple[str, str]]:
    text = _decoded(file.read(), str(path), bad)
    if text is not None:
        yield str(path), text.removeprefix("\ufeff")


def _json_lines(path: Path, file: BinaryIO, text_field: str, bad: BadRecords) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(file, start=1):
        where = f"{path}:{number}"
        text = _decoded(line, where, bad)
        if text is None:
            continue
        if not text.strip():
            bad.add("empty", where)
            continue
        try:
            record = json.loads(text.removeprefix("\ufeff"))
        except (json.JSONDecodeError, RecursionError):
            bad.add("not JSON", where)
            continue
        value = record.get(text_field) if isinstance(record, dict) else None
        if isinstance(value, str):
            yield where, value
        else:
            bad.add(f"no text in field '{text_field}'", where)
            if isinstance(record, dict) and not bad.fields:
                bad.fields = tuple(map(str, record))[:MAX_LISTED]


def _parquet_rows(path: Path, text_field: str, bad: BadRecords) -> Iterator[tuple[str, str]]:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        names = file.schema_arrow.names
        if text_field not in names:
            found = f"has no column '{text_field}'; it has {', '.join(names)}."
            raise InputError(Problem(str(path), found, "Name one of its columns as `field`."))
        number = 0
        for batch in file.iter_batches(batch_size=1024, columns=[text_field]):
            for value in batch.column(0).to_pylist():
                number += 1
                if isinstance(value, str):
                    yield f"{path}:row {number}", value
                else:
                    bad.add(f"no text in field '{text_field}'", f"{path}:row {number}")
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise InputError(Problem(str(path), f"damaged Parquet: {error}.", "Restore the file.")) from error


def _decoded(data: bytes, where: str, bad: BadRecords) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        bad.add("not UTF-8", where)
        return None


def _encodable(text: str) -> bool:
    """Whether `text` has no lone surrogates, which JSON escapes can contain and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(path: Path) -> str:
    """The suffix that names the format of the records, without that of the compression."""
    return Path(path.stem).suffix.lower() if path.suffix.lower() in _openers() else path.suffix.lower()


def _kind_problem(path: Path) -> Problem | None:
    known = (*TEXT_SUFFIXES, ".jsonl", ".parquet")
    if _kind(path) not in known:
        fix = f"Give {', '.join(known)}, or one of these compressed with {', '.join(_openers())}."
        return Problem(str(path), f"'{_kind(path) or path.name}' is not a known kind of text file.", fix)
    needed = {
        ".parquet": ("pyarrow", find_spec("pyarrow") is not None),
        ".zst": (zstd.PACKAGE, zstd.is_installed()),
    }
    for suffix, (package, installed) in needed.items():
        if suffix in (_kind(path), path.suffix.lower()) and not installed:
            return Problem(str(path), f"reading {suffix} needs the package {package}.", f"pip install {package}")
    return None


def _opener(path: Path) -> Callable[[Path], BinaryIO]:
    return _openers().get(path.suffix.lower(), lambda plain: plain.open("rb"))


def _openers() -> dict[str, Callable[[Path], BinaryIO]]:
    return {
        ".gz": lambda path: io.BufferedReader(gzip.open(path)),
        ".bz2": lambda path: io.BufferedReader(bz2.open(path)),
        ".xz": lambda path: io.BufferedReader(lzma.open(path)),
        ".zst": zstd.open_zstandard,
    }
