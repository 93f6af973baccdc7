"""From what a recipe names as data to tokenised sources: local files by pattern, hub datasets as streams."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from hybridizer.core.errors import InputError, Problem, RecipeError
from hybridizer.core.progress import Monitor
from hybridizer.core.records import content_hash
from hybridizer.data.batches import Source
from hybridizer.data.documents import BadRecords, find_files, usable
from hybridizer.data.hub import stream_texts
from hybridizer.data.tokenize import (
    FORMAT,
    Encoder,
    ReadSettings,
    TokenFile,
    cached_token_file,
    tokenise_files,
    write_token_file,
)


@dataclass(frozen=True)
class HubDataset:
    """A dataset on a hub (or a folder that `datasets` reads), read as a stream up to `max_documents`.

    `pin` is its commit, or a hash of the folder: the same name may hold other texts tomorrow.
    """

    name: str
    split: str = "train"
    config: str | None = None
    revision: str | None = None
    max_documents: int = 100_000
    pin: str = ""


@dataclass(frozen=True)
class SourceSettings:
    """One entry of a mixture: either `path`, a file or glob, or a `hub` dataset; its weight in training tokens."""

    path: str | None = None
    hub: HubDataset | None = None
    weight: float = 1.0
    read: ReadSettings = field(default_factory=ReadSettings)

    @property
    def name(self) -> str:
        """What the source is called in messages and records."""
        return self.path or (self.hub.name if self.hub else "nothing")


def open_sources(
    entries: Sequence[SourceSettings], folder: Path, encoder: Encoder, cache: Path, monitor: Monitor
) -> tuple[Source, ...]:
    """The sources of a mixture, tokenised now or found in `cache`; relative paths count from `folder`.

    Records left out are noted to `monitor`, counted by reason. Raises RecipeError for an entry that names both or
    neither kind, InputError for files that are missing, unreadable or hold nothing.
    """
    problems = [
        Problem(f"train.data[{i}]", "names a path and a hub dataset, or neither.", "Give one of the two.")
        for i, entry in enumerate(entries)
        if (entry.path is None) == (entry.hub is None)
    ]
    if problems:
        raise RecipeError(*problems)
    sources = []
    for entry in entries:
        if entry.path is not None:
            files = find_files(entry.path, folder)
            token_files = tokenise_files(files, encoder, entry.read, cache, monitor)
        else:
            assert entry.hub is not None
            token_files = (_tokenise_stream(entry.hub, entry.read, encoder, cache, monitor),)
        for token_file in token_files:
            if token_file.bad.counts:
                left_out = ", ".join(f"{count} {reason}" for reason, count in token_file.bad.counts.items())
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
    fix = "Look at the files, and at `field`, which names where the text is."
    return Problem(name, f"no usable document; left out: {left_out or 'nothing'}.", fix)


def _tokenise_stream(
    dataset: HubDataset, read: ReadSettings, encoder: Encoder, cache: Path, monitor: Monitor
) -> TokenFile:
    identity = content_hash([FORMAT, dataset, read, encoder.identity]).removeprefix("sha256:")

    def write(folder: Path) -> None:
        bad = BadRecords()
        write_token_file(folder, dataset.name, _usable_values(dataset, read, bad), encoder, bad, monitor, total_bytes=0)

    return cached_token_file(cache / identity[:32], write, monitor)


def _usable_values(dataset: HubDataset, read: ReadSettings, bad: BadRecords) -> Iterator[str]:
    values = stream_texts(dataset.name, dataset.config, dataset.split, dataset.revision, read.text_field)
    for number, value in enumerate(islice(values, dataset.max_documents), start=1):
        where = f"{dataset.name}:record {number}"
        if not isinstance(value, str):
            bad.add(f"no text in field '{read.text_field}'", where)
        elif usable(value, where, read.max_document_bytes, bad):
            yield value
