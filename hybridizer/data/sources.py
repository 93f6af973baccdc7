"""The data entries of a recipe -> tokenised sources: local files by pattern, hub datasets as streams."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from hybridizer.core.errors import InputError, Problem
from hybridizer.core.progress import Monitor
from hybridizer.core.records import content_hash
from hybridizer.data.batches import Source
from hybridizer.data.documents import BadRecords, find_files, usable
from hybridizer.data.hub import pin_dataset, stream_texts
from hybridizer.data.tokenize import (
    FORMAT,
    Encoder,
    TokenFile,
    cached_token_file,
    tokenise_files,
    write_token_file,
)
from hybridizer.recipe.models import DataEntry


def open_sources(
    entries: Sequence[DataEntry], folder: Path, encoder: Encoder, cache: Path, monitor: Monitor
) -> tuple[Source, ...]:
    """The sources of a mixture, tokenised now or found in `cache`; relative paths are relative to `folder`.

    Records left out are noted to `monitor`, counted by reason. Raises InputError for files that are missing or
    unreadable and for a source without any document, DonorError for a hub dataset that cannot be opened.
    """
    sources = []
    for entry in entries:
        if entry.path is not None:
            token_files = tokenise_files(find_files(entry.path, folder), encoder, entry, cache, monitor)
        else:
            token_files = (_tokenise_stream(entry, encoder, cache, monitor),)
        for token_file in token_files:
            if left_out := str(token_file.bad):
                monitor.note(f"{token_file.source}: left out {left_out}")
        if not any(token_file.num_documents for token_file in token_files):
            raise InputError(_no_document(entry.name, token_files))
        sources.append(Source(entry.name, token_files, entry.weight))
    return tuple(sources)


def _no_document(name: str, token_files: Sequence[TokenFile]) -> Problem:
    counts: Counter[str] = Counter()
    for token_file in token_files:
        counts.update(token_file.bad.counts)
    left_out = ", ".join(f"{count} {reason}" for reason, count in counts.items())
    fix = "Check the files, and `field`, which names the field with the text."
    return Problem(name, f"no usable document; left out: {left_out or 'nothing'}.", fix)


def _tokenise_stream(entry: DataEntry, encoder: Encoder, cache: Path, monitor: Monitor) -> TokenFile:
    """The documents of a hub dataset, or of a folder that `datasets` reads, up to `entry.max_documents`."""
    assert entry.hub is not None, "an entry has a path or a hub dataset"
    pin = pin_dataset(entry.hub, entry.revision)  # the same name may have other content tomorrow
    identity = content_hash([FORMAT, replace(entry, revision=None, weight=1.0), pin, encoder.identity])

    def write(folder: Path) -> None:
        bad = BadRecords()
        write_token_file(folder, entry.name, _usable_values(entry, bad), encoder, bad, monitor, total_bytes=0)

    return cached_token_file(cache / identity.removeprefix("sha256:")[:32], write, monitor)


def _usable_values(entry: DataEntry, bad: BadRecords) -> Iterator[str]:
    assert entry.hub is not None, "an entry has a path or a hub dataset"
    values = stream_texts(entry.hub, entry.config, entry.split, entry.revision, entry.field)
    for number, value in enumerate(islice(values, entry.max_documents), start=1):
        where = f"{entry.hub}:record {number}"
        if not isinstance(value, str):
            bad.add(f"no text in field '{entry.field}'", where)
        elif usable(value, where, entry.max_document_bytes, bad):
            yield value
