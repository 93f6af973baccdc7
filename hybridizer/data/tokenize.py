"""Tokenised documents on disk: one folder a file and tokenizer, written once, read through memory maps.

tokens.npy   token ids of all documents, one after the other (uint16 or uint32)
ends.npy     where each document ends in it (int64)
keys.npy     the first 8 bytes of each document's SHA-256 (uint64): equal text, equal key
token_file.json   format, source, counts, bad records; written last, so that a folder without it is not finished
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hybridizer.checkpoint.hashing import hash_file
from hybridizer.core.errors import CheckpointError, InputError, Problem
from hybridizer.core.files import new_folder
from hybridizer.core.progress import Monitor
from hybridizer.core.records import content_hash, read_json, write_json
from hybridizer.data.documents import BadRecords, read_documents

FORMAT = 2
BATCH_CHARACTERS = 4_000_000
ARRAYS = ("tokens", "ends", "keys", "sizes")

Tokens = npt.NDArray[np.unsignedinteger[Any]]


class Encoder(Protocol):
    """Text to token ids, many documents at a time and on all cores, with the special tokens that documents get."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def identity(self) -> str:
        """A hash of everything that decides which ids a text gets."""
        ...

    def encode(self, texts: list[str]) -> list[list[int]]: ...


@dataclass(frozen=True)
class TokenFile:
    """The documents of one file as memory maps; `bad` says what was left out of it and why."""

    folder: Path
    source: str
    tokens: Tokens
    ends: npt.NDArray[np.int64]
    keys: npt.NDArray[np.uint64]
    sizes: npt.NDArray[np.int64]
    bad: BadRecords = field(default_factory=BadRecords)

    @property
    def num_documents(self) -> int:
        """How many documents there are."""
        return len(self.ends)


@dataclass(frozen=True)
class ReadSettings:
    """How the documents of a file are read: the JSONL field or Parquet column, and the longest document in bytes."""

    text_field: str = "text"
    max_document_bytes: int = 10_000_000


def tokenise_file(path: Path, encoder: Encoder, settings: ReadSettings, cache: Path, monitor: Monitor) -> TokenFile:
    """The token_file of one file, from `cache` if this content was tokenised with this tokenizer and settings before.

    Raises InputError for a file that cannot be read and for one without a single usable document.
    """
    identity = content_hash(
        [FORMAT, hash_file(path), encoder.identity, settings.text_field, settings.max_document_bytes]
    )
    folder = cache / identity.removeprefix("sha256:")[:32]
    if not (folder / "token_file.json").is_file():
        bad = BadRecords()
        texts = read_documents(path, settings.text_field, settings.max_document_bytes, bad)
        write_token_file(folder, str(path), texts, encoder, bad, monitor, total_bytes=path.stat().st_size)
    return open_token_file(folder)


def write_token_file(
    folder: Path,
    source: str,
    texts: Iterable[str],
    encoder: Encoder,
    bad: BadRecords,
    monitor: Monitor,
    total_bytes: int,
) -> None:
    """Tokenise `texts` into `folder`: complete under its name or not there. `total_bytes` only scales the progress.

    Raises InputError when `texts` holds no document at all.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with new_folder(folder) as partial:
            record = _write_arrays(partial, texts, encoder, monitor.task(f"tokenise {source}", total_bytes, "B"))
            if not record["num_documents"]:
                what = f"no usable document; left out: {bad.counts or 'nothing'}."
                raise InputError(Problem(source, what, "Check the file."))
            facts = {"format": FORMAT, "source": source, **record, "bad_counts": bad.counts, "bad_listed": bad.listed}
            write_json(partial / "token_file.json", facts)
    except OSError:
        # Another process finished the same token_file meanwhile. Its bytes are the same, and may be mapped already.
        if not (folder / "token_file.json").is_file():
            raise


def open_token_file(folder: Path) -> TokenFile:
    """The token_file in `folder`, memory-mapped. Raises CheckpointError when its arrays do not fit its record."""
    record = read_json(folder / "token_file.json")
    try:
        tokens, ends, keys, sizes = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS)
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(folder, str(error)) from error
    found = (len(tokens), len(ends), len(keys), len(sizes), int(ends[-1]) if len(ends) else 0)
    count, documents = record["num_tokens"], record["num_documents"]
    if found != (count, documents, documents, documents, count):
        raise _damaged(folder, f"holds {found}, its record says {count} tokens in {documents} documents")
    bad = BadRecords(record["bad_counts"], record["bad_listed"])
    return TokenFile(folder, record["source"], tokens, ends, keys, sizes, bad)


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
    """Lists of documents of about BATCH_CHARACTERS: enough to keep every core busy, little enough to hold."""
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
        Problem(str(folder), f"damaged token cache: {what}.", "Delete the folder; it is made again.")
    )
