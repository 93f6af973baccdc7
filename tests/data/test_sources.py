import json

import pytest

from hybridizer.core.errors import InputError
from hybridizer.core.progress import SilentMonitor
from hybridizer.data.sources import open_sources
from hybridizer.recipe.models import DataEntry
from support.monitors import Notes
from support.token_texts import ByteEncoder


def open_all(folder, *entries, monitor=None):
    return open_sources(entries, folder, ByteEncoder(), folder / "cache", monitor or SilentMonitor())


def texts_of(source):
    found = []
    for token_file in source.token_files:
        starts = [0, *token_file.ends]
        found += [
            bytes(token_file.tokens[a : b - 1].tolist()).decode() for a, b in zip(starts, token_file.ends, strict=False)
        ]
    return found


def test_a_glob_becomes_one_source(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"text {name}")
    (source,) = open_all(tmp_path, DataEntry(path="*.txt", weight=2.0))
    assert (source.name, source.weight) == ("*.txt", 2.0)
    assert texts_of(source) == ["text a", "text b"]


def test_records_left_out_are_noted(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\nbroken\n{"text": ""}\nbroken')
    monitor = Notes()
    open_all(tmp_path, DataEntry(path="a.jsonl"), monitor=monitor)
    assert monitor.notes == [f"{tmp_path}/a.jsonl: left out 2 not JSON, 1 empty"]


def test_only_a_source_without_any_document_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text("broken\n")
    (tmp_path / "b.jsonl").write_text('{"text": ""}')
    with pytest.raises(InputError, match=r"left out: 1 not JSON, 2 without a usable document, 1 empty"):
        open_all(tmp_path, DataEntry(path="*.jsonl"))
    (tmp_path / "c.jsonl").write_text('{"text": "good"}')
    assert texts_of(open_all(tmp_path, DataEntry(path="*.jsonl"))[0]) == ["good"]


def test_a_hub_dataset_is_streamed_up_to_its_limit_and_cached(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    records = [{"body": text} for text in ("eins", "zwei", " ", None, "drei", "vier")]
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text("\n".join(map(json.dumps, records)))
    entry = DataEntry(hub=str(tmp_path / "set"), max_documents=5, field="body")
    (source,) = open_all(tmp_path, entry)
    assert texts_of(source) == ["eins", "zwei", "drei"]
    assert source.token_files[0].bad.counts == {"empty": 1, "no text in field 'body'": 1}
    monkeypatch.setattr("hybridizer.data.sources.stream_texts", None)
    assert texts_of(open_all(tmp_path, entry)[0]) == ["eins", "zwei", "drei"]


def test_a_hub_dataset_without_the_column_is_refused(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text('{"body": "x"}')
    with pytest.raises(InputError, match="no column 'text'; it has body"):
        open_all(tmp_path, DataEntry(hub=str(tmp_path / "set")))
