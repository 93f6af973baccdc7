"""The evaluation stage on tiny checkpoints: from a folder to scores, from two scores to the record."""

import json

import numpy as np
import pytest

from hybridizer.core.progress import SilentMonitor
from hybridizer.core.records import content_hash
from hybridizer.data.batches import Source
from hybridizer.data.tokenizer import TokenizerEncoder
from hybridizer.evaluate.run import compare_runs, evaluate
from hybridizer.evaluate.texts import general_text, heldout_texts, trained_keys
from hybridizer.recipe.models import Evaluate
from support.monitors import Notes
from support.tiny import make_tiny, tiny_tokenizer
from support.token_texts import token_file_of

SETTINGS = Evaluate(context=32, prompts=("the day and",), new_tokens=5)


class Heard(Notes):
    def __init__(self):
        super().__init__()
        self.tasks = []

    def task(self, label, total, unit):
        self.tasks.append((label, total, unit))
        return super().task(label, total, unit)


@pytest.fixture
def folders(bench):
    return [tiny_tokenizer(make_tiny("llama", bench / f"m{seed}", seed=seed)) for seed in range(2)]


@pytest.fixture
def texts(tmp_path, folders):
    from transformers import AutoTokenizer

    encoder = TokenizerEncoder(AutoTokenizer.from_pretrained(folders[0]))
    generator = np.random.default_rng(0)
    words = ["the", "opposite", "of", "hot", "is", "cold", "day", "night"]
    documents = [" ".join(generator.choice(words, n)) for n in generator.integers(3, 20, 40)]
    corpus = Source("corpus", (token_file_of(documents, tmp_path, "corpus", encoder),))
    news = Source("news", (token_file_of([*documents[:5], "not seen before", "nor this"], tmp_path, "news", encoder),))
    held = heldout_texts([corpus], 0.3, SilentMonitor())
    return [*held, general_text("news", news, trained_keys([corpus], 0.3))]


def test_two_models_are_scored_and_compared(folders, texts):
    before, after = (evaluate(f, str(f), texts, SETTINGS, SilentMonitor()) for f in folders)
    record = compare_runs(before, after, seed=0)
    assert json.loads(json.dumps(record)) == record
    assert [(row["name"], row["role"], row["context"]) for row in record["sets"]] == [
        ("corpus", "in-domain", 32), ("news", "general", 32)]  # fmt: skip
    for row, text in zip(record["sets"], texts, strict=True):
        assert (row["num_documents"], row["num_bytes"]) == (len(text.documents), text.num_bytes)
        assert 4 < row["before"] < 16 and row["change"] != 0  # a random model needs about 8 bits for a byte
    assert [s["source"] for s in record["samples"]] == ["corpus", "corpus", "news", "news", "recipe"]
    assert any(s["before"] != s["after"] for s in record["samples"])
    assert record["models"] == {"before": str(folders[0]), "after": str(folders[1])}


def test_what_was_scored_before_is_not_scored_again(folders, texts, tmp_path):
    first, again = Heard(), Heard()
    scores = evaluate(folders[0], "a", texts, SETTINGS, first)
    assert [label for label, _, _ in first.tasks] == ["continue prompts", "score 'corpus'", "score 'news'"]
    assert evaluate(tmp_path / "gone", "a", texts, SETTINGS, again) == scores
    assert not again.tasks and again.notes == ["scores of gone: unchanged, from the cache"]


def test_a_damaged_cache_entry_is_scored_again(folders, texts, tmp_path):
    scores = evaluate(folders[0], "a", texts[:1], SETTINGS, SilentMonitor())
    (path,) = (tmp_path / "cache/scores").iterdir()
    path.write_text(path.read_text()[:200])
    monitor = Heard()
    assert evaluate(folders[0], "a", texts[:1], SETTINGS, monitor) == scores
    assert "scoring again" in monitor.notes[0] and str(path) in monitor.notes[0]
    assert evaluate(tmp_path / "gone", "a", texts[:1], SETTINGS, SilentMonitor()) == scores


def test_other_models_texts_and_settings_are_scored_anew(folders, texts):
    evaluate(folders[0], "a", texts, SETTINGS, SilentMonitor())
    for identity, some, settings in [
        ("b", texts, SETTINGS), ("a", texts[:1], SETTINGS), ("a", texts, Evaluate(context=16, new_tokens=1))
    ]:  # fmt: skip
        monitor = Heard()
        evaluate(folders[0], identity, some, settings, monitor)
        assert monitor.tasks and not monitor.notes, (identity, content_hash(settings))


def test_the_window_is_never_longer_than_the_model_takes(folders, texts):
    scores = evaluate(folders[0], "a", texts, Evaluate(context=100_000, new_tokens=1), SilentMonitor())
    assert scores.texts[0].context == 512 and scores.dtype == "float32"


@pytest.mark.parametrize(("hardware", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_stored_bfloat16_computes_as_such_only_where_the_device_can(folders, texts, monkeypatch, hardware, dtype):
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr("hybridizer.evaluate.model.has_bfloat16", lambda device: hardware)
    AutoModelForCausalLM.from_pretrained(folders[0], dtype="bfloat16").save_pretrained(folders[0])
    assert evaluate(folders[0], "a", texts[:1], SETTINGS, SilentMonitor()).dtype == dtype
