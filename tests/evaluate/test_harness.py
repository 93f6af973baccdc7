"""Tasks of lm-eval by its own backend, offline, where it is installed: our scorer gives the same accuracy."""

import json
import math
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from hybridizer.evaluate import harness
from support.lines import hybridize, hybridize_json, make_donor

pytestmark = [
    pytest.mark.skipif(find_spec("lm_eval") is None, reason="needs lm-eval: pip install 'hybridizer[eval]'"),
    pytest.mark.filterwarnings("ignore"),  # lm-eval and its dependencies warn of themselves
    pytest.mark.slow,
]
GENERATE = {
    "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "sums.jsonl"}}, "test_split": "test",
    "output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4}, "metric_list": [{"metric": "exact_match"}],
}  # fmt: skip


@pytest.fixture(autouse=True)
def bench(bench, monkeypatch):
    """The working folder, with a tiny model `a`, and a folder `own` with a group of two generation tasks."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(bench / "datasets"))
    make_donor(Path("a"))
    own = bench / "own"
    own.mkdir()
    (own / "sums.jsonl").write_text(
        "".join(json.dumps({"question": f"{n} + 1 =", "answer": n + 1}) + "\n" for n in range(6))
    )
    for name in ("one", "two"):
        (own / f"{name}.yaml").write_text(json.dumps({"task": name, **GENERATE}))
    (own / "both.yaml").write_text(json.dumps({"group": "both", "task": ["one", "two"]}))
    return bench


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("shots", [0, 1])
def test_our_scorer_gives_the_accuracy_of_lm_eval(language, shots):
    if (language, shots) == ("en", 1):
        pytest.skip("a prompt of two questions is longer than the tiny model takes")
    task, exam = f"hybridizer_exam_{language}", f"exam-{language}"
    shown = ("--shots", str(shots))
    (ours, *bits), (theirs, *their_bits) = (
        hybridize_json("eval", "a", *asked, *shown)["models"][0]["tasks"]
        for asked in (("--items", exam, "--out", "ours"), ("--task", task, "--out", "theirs"))
    )
    assert [figure["metric"] for figure in bits] == [figure["metric"] for figure in their_bits]
    for one, other in zip(bits, their_bits, strict=True):
        assert (one["chance"], one["lower_is_better"]) == (other["chance"], other["lower_is_better"])
        assert other["value"] == pytest.approx(one["value"], abs=1e-5)
        assert other["value_ci"] == pytest.approx(one["value_ci"], abs=1e-5)
    assert (ours["metric"], theirs["metric"]) == ("accuracy", "acc") and theirs["chance"] == ours["chance"] == 0.25
    assert (ours["n"], ours["groups"]) == (theirs["n"], theirs["groups"])
    assert ours["value"] == theirs["value"] and ours["value_ci"] == theirs["value_ci"]
    prompts = [
        Path(folder, "0-a", f"{name}.prompt.txt").read_text() for folder, name in (("ours", exam), ("theirs", task))
    ]
    assert prompts[0][:-1] == prompts[1][:-1]  # the last letter is the right answer here, and the first one there


SCORES = [(-1.0, False), (-2.0, True)]
ANSWERS = [("1 + 1 =", " one"), ("1 + 1 =", " two")]


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({"target": 1}, 1),
        ({"target": "two"}, 1),
        ({"target": "three"}, None),
        ({"target": 2}, None),
        ({"target": [0, 1]}, None),
        ({"target": 1, "metrics": ["acc", "acc_mutual_info"]}, None),
        ({"target": 0, "filtered_resps": SCORES[:1]}, None),
        ({"target": 0, "filtered_resps": ["one", "two"]}, None),
    ],
)
def test_only_items_with_one_right_answer_among_scored_ones_have_bits(changes, answer):
    sample = {"filtered_resps": SCORES, "arguments": ANSWERS, "metrics": ["acc"], **changes}
    found = harness._choice(sample)
    assert found == (None if answer is None else ([1 / math.log(2), 2 / math.log(2)], answer))


def test_a_group_of_generation_tasks_runs_from_local_files():
    record = hybridize_json("eval", "a", "--task", "both", "--include-path", "own", "--limit", "5")
    (task,) = record["models"][0]["tasks"]
    assert (task["name"], task["n"], task["groups"], task["subtasks"]) == ("both", 10, 2, ["one", "two"])
    again = hybridize("eval", "a", "--task", "both", "--include-path", "own", "--limit", "5")
    assert "both: unchanged, from the cache" in again.stderr
    Path("own/sums.jsonl").write_text(json.dumps({"question": "1 + 1 =", "answer": "2"}) + "\n")
    changed = hybridize_json("eval", "a", "--task", "both", "--include-path", "own", "--limit", "5")
    assert changed["models"][0]["tasks"][0]["n"] == 2


def test_overlap_of_a_task_is_that_of_its_items_without_examples():
    words = " ".join(f"word{n}" for n in range(13))
    items = [{"question": question, "answer": 2} for question in (words, "1 + 1 =")]
    Path("own/sums.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    Path("train.txt").write_text(f"before {words} after")
    arguments = ("--task", "both", "--include-path", "own", "--training-text", "train.txt")
    (found,) = hybridize_json("eval", "a", *arguments)["overlaps"]
    assert (found["what"], found["num_items"], found["num_found"], found["num_short"]) == ("both", 4, 2, 2)


def test_rows_are_fewer_until_memory_holds_them(monkeypatch):
    from lm_eval import evaluator

    honest, sizes, room = evaluator.simple_evaluate, [], [8]

    def limited(model, **options):
        sizes.append(model.batch_size)
        if model.batch_size > room[0]:
            raise torch.OutOfMemoryError("no room")
        return honest(model, **options)

    monkeypatch.setattr(evaluator, "simple_evaluate", limited)
    hybridize("eval", "a", "--task", "both", "--include-path", "own", "--limit", "2")
    assert sizes == [32, 16, 8]
    room[0] = 0
    shown = hybridize("eval", "a", "--task", "one", "--include-path", "own", code=1).stderr
    assert sizes[3:] == [32, 16, 8, 4, 2, 1] and "does not hold a single row" in shown


def test_a_task_that_is_not_there_or_has_no_data_is_refused(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("hybridizer.evaluate.candidate.load_causal_lm", None)  # found before a model is loaded
        shown = hybridize("eval", "a", "--task", "bth", "--include-path", "own", code=2).stderr
    assert "lm-eval has no task of this name" in shown and "Did you mean" in shown
    Path("own/sums.jsonl").unlink()
    assert "lm-eval cannot run it" in hybridize("eval", "a", "--task", "one", "--include-path", "own", code=2).stderr
