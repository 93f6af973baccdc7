"""Tokenised documents on disk: one folder per large file or group of small files, written once, memory-mapped.

tokens.npy   token ids of all documents, one after the other (uint16 or uint32)
ends.npy     where each document ends in it (int64)
keys.npy     the first 8 bytes of each document's SHA-256 (uint64): equal text, equal key
token_file.json   format, source, prefix, counts, bad records; written last: a folder without it is not finished
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hybridizer.checkpoint.hashing import hash_file
from hybridizer.core.errors import CheckpointError, Problem
from hybridizer.core.files import new_folder, remove_stale
from hybridizer.core.progress import Monitor
from hybridizer.core.records import content_hash, read_json, write_json
from hybridizer.data.documents import BadRecords, file_kind, read_documents
from hybridizer.recipe.models import DataEntry

FORMAT = 3
GROUP_BYTES = 64 << 20  # small files share a token file up to here: a process may have 1024 files open
MAPPED_BYTES = 1 << 20  # smaller arrays are read: a memory map keeps its file open
BATCH_CHARACTERS = 4_000_000
ARRAYS = ("tokens", "ends", "keys", "sizes")

Tokens = npt.NDArray[np.unsignedinteger[Any]]


class Encoder(Protocol):
    """Text to token ids, many documents at a time and on all cores, special tokens included."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def identity(self) -> str:
        """A hash of everything that decides the ids of a text."""
        ...

    @property
    def prefix(self) -> tuple[int, ...]:
        """The ids that every text begins with, whatever its content."""
        ...

    def encode(self, texts: list[str]) -> list[list[int]]: ...


@dataclass(frozen=True)
class TokenFile:
    """The documents of one file, or of several small ones, as memory maps.

    `prefix` are the ids that every document begins with. `bad` lists what was left out and why.
    """

    folder: Path
    source: str
    tokens: Tokens
    ends: npt.NDArray[np.int64]
    keys: npt.NDArray[np.uint64]
    sizes: npt.NDArray[np.int64]
    bad: BadRecords = field(default_factory=BadRecords)
    prefix: tuple[int, ...] = ()

    @property
    def num_documents(self) -> int:
        """How many documents there are."""
        return len(self.ends)


def tokenise_files(
    paths: Sequence[Path], encoder: Encoder, entry: DataEntry, cache: Path, monitor: Monitor
) -> tuple[TokenFile, ...]:
    """The documents of all files, in order: one token file for each large file and for each group of small ones.

    A group comes from `cache` if its files were tokenised before with this tokenizer, and with the field and limit of
    `entry`. Raises InputError for a file that cannot be read.
    """
    return tuple(_tokenise_group(group, encoder, entry, cache, monitor) for group in _group(paths))


def _group(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Runs of neighbouring files of together at most GROUP_BYTES; a larger file by itself."""
    group: list[Path] = []
    size = 0
    for path in paths:
        more = path.stat().st_size
        if group and size + more > GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(path)
        size += more
    if group:
        yield group


def _tokenise_group(
    paths: Sequence[Path], encoder: Encoder, entry: DataEntry, cache: Path, monitor: Monitor
) -> TokenFile:
    files = [(file_kind(path), hash_file(path)) for path in paths]
    identity = content_hash([FORMAT, files, encoder.identity, entry.field, entry.max_document_bytes])

    def write(folder: Path) -> None:
        bad = BadRecords()
        texts = (text for path in paths for text in _documents_of(path, entry, bad))
        source = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
        write_token_file(folder, source, texts, encoder, bad, monitor, sum(path.stat().st_size for path in paths))

    return cached_token_file(cache / identity.removeprefix("sha256:")[:32], write, monitor)


def cached_token_file(folder: Path, write: Callable[[Path], None], monitor: Monitor) -> TokenFile:
    """The token file in `folder`, made by `write` where it is not there or damaged."""
    if (folder / "token_file.json").is_file():
        try:
            return open_token_file(folder)
        except CheckpointError as error:
            monitor.note(f"tokenising again: {error}")
            shutil.rmtree(folder)
    write(folder)
    return open_token_file(folder)


def _documents_of(path: Path, entry: DataEntry, bad: BadRecords) -> Iterator[str]:
    """The documents of one file; a file without any is itself a bad record."""
    found = 0
    for text in read_documents(path, entry.field, entry.max_document_bytes, bad):
        found += 1
        yield text
    if not found:
        bad.add("without a usable document", str(path))


def write_token_file(
    folder: Path,
    source: str,
    texts: Iterable[str],
    encoder: Encoder,
    bad: BadRecords,
    monitor: Monitor,
    total_bytes: int,
) -> None:
    """Tokenise `texts` into `folder`: complete or not there. `total_bytes` only scales the progress."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(folder.parent)
    try:
        with new_folder(folder) as partial:
            record = _write_arrays(partial, texts, encoder, monitor.task(f"tokenise {source}", total_bytes, "bytes"))
            facts = {"format": FORMAT, "source": source, "prefix": encoder.prefix, **record}
            facts |= {"bad_counts": bad.counts, "bad_listed": bad.listed}
            write_json(partial / "token_file.json", facts)
    except OSError:
        # Another process finished the same token file meanwhile. Its bytes are the same, and may be mapped already.
        if not (folder / "token_file.json").is_file():
            raise


def open_token_file(folder: Path) -> TokenFile:
    """The token file in `folder`, memory-mapped. Raises CheckpointError when its arrays do not fit its record."""
    record = read_json(folder / "token_file.json")
    try:
        tokens, ends, keys, sizes = (_load(folder / f"{name}.npy") for name in ARRAYS)
        found = (len(tokens), len(ends), len(keys), len(sizes), int(ends[-1]) if len(ends) else 0)
        count, documents = record["num_tokens"], record["num_documents"]
        if found != (count, documents, documents, documents, count):
            raise _damaged(folder, f"holds {found}, its record has {count} tokens in {documents} documents")
        bad = BadRecords(record["bad_counts"], record["bad_listed"])
        return TokenFile(folder, record["source"], tokens, ends, keys, sizes, bad, tuple(record["prefix"]))
    except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
        raise _damaged(folder, f"{type(error).__name__}: {error}") from error


def _load(path: Path) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = np.load(path, mmap_mode="r" if path.stat().st_size > MAPPED_BYTES else None)
    return array


def _write_arrays(folder: Path, texts: Iterable[str], encoder: Encoder, task: Any) -> dict[str, int]:
    """Write the four arrays, the tokens piece by piece; the counts of documents, tokens and text bytes."""
    dtype = np.dtype(np.uint16 if encoder.vocab_size <= 2**16 else np.uint32)
    ends: list[int] = []
    keys: list[int] = []
    sizes: list[int] = []
    num_tokens = 0
    raw = folder / "tokens.raw"
    with raw.open("wb") as file, task as advance:
        for batch in _batches(texts):
            encoded = [text.encode() for text in batch]
            keys += [int.from_bytes(hashlib.sha256(data).digest()[:8], "little") for data in encoded]
            for ids in encoder.encode(batch):
                file.write(np.asarray(ids, dtype).tobytes())
                num_tokens += len(ids)
                ends.append(num_tokens)
            sizes += map(len, encoded)
            advance(sum(map(len, encoded)))
    np.save(folder / "tokens.npy", np.memmap(raw, dtype, "r") if num_tokens else np.empty(0, dtype))
    raw.unlink()
    np.save(folder / "ends.npy", np.asarray(ends, np.int64))
    np.save(folder / "keys.npy", np.asarray(keys, np.uint64))
    np.save(folder / "sizes.npy", np.asarray(sizes, np.int64))
    return {"num_documents": len(ends), "num_tokens": num_tokens, "num_bytes": sum(sizes)}


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Lists of documents of about BATCH_CHARACTERS: enough for all cores, few enough for memory."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _damaged(folder: Path, what: str) -> CheckpointError:
    return CheckpointError(
        Problem(str(folder), f"damaged token cache: {what}.", "Run the command again: the folder is written again.")
    )
