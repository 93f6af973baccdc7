"""`hybridize eval` from outside, on tiny models: figures, pairs, limits, resuming, and what is refused."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from hybridizer.evaluate import candidate as candidate_module
from hybridizer.evaluate.gate import read_limits
from hybridizer.evaluate.request import make_request, read_request
from support.lines import hybridize, hybridize_json, make_donor, write_recipe

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}<assistant>{% endif %}"
ITEMS = [
    {
        "question": f"{n} + 1?",
        "A": str(n),
        "B": str(n + 1),
        "C": "no",
        "D": "yes",
        "answer": "B",
        "subject": f"s{n % 8}",
    }
    for n in range(24)
]


def write_lines(path, records):
    Path(path).write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture(autouse=True)
def bench(bench, monkeypatch):
    """The working folder: models `a` and `b`, `c` with another tokenizer and a chat template, texts, items, chats."""
    monkeypatch.setenv("COLUMNS", "120")
    for seed, name in enumerate("abc"):
        make_donor(bench / name, seed=seed)
    tokenizer = AutoTokenizer.from_pretrained("c")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained("c")
    write_lines("news.jsonl", [{"text": f"story {n}: " + "it rained " * (n % 5 + 2)} for n in range(30)])
    write_lines("mine.jsonl", ITEMS)
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    write_lines("talk.jsonl", [{"messages": talk}] * 2)
    return bench


ALL = ("--text", "news=news.jsonl", "--items", "mine=mine.jsonl", "--recall", "2", "--chat", "talk=talk.jsonl")


def damage(source, target, scale):
    """A copy of a model whose layers' outputs are scaled."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.save_pretrained(target)
    Path(target, "config.json").write_text(Path(source, "config.json").read_text())
    tensors = load_file(Path(source, "model.safetensors"))
    head = tensors["lm_head.weight"]
    save_file({**tensors, "lm_head.weight": head * scale}, Path(target, "model.safetensors"), {"format": "pt"})


@pytest.mark.slow
def test_the_record_has_every_figure_of_every_model_and_every_pair():
    record = hybridize_json("eval", "a", "b", "c", *ALL)
    assert record["schema"] == "hybridizer.eval/1" and [m["name"] for m in record["models"]] == ["a", "b", "c"]
    for model in record["models"]:
        news = model["sets"][0]
        assert (news["name"], news["documents"], news["num_bytes"]) == ("news", 30, Path("news.jsonl").stat().st_size
                                                                        - 30 * len('{"text": ""}\n'))  # fmt: skip
        assert news["bits_per_byte_ci"][0] < news["bits_per_byte"] < news["bits_per_byte_ci"][1]
        assert 6 < news["bits_per_byte"] < 10  # of 256 tokens, one per byte, by a random model
        tasks = {(task["name"], task["metric"]): task for task in model["tasks"]}
        assert [*tasks] == [("mine", "accuracy"), ("mine", "answer_bits"), ("mine", "margin_bits"),
                            ("recall-2", "accuracy")]  # fmt: skip
        accuracy = tasks["mine", "accuracy"]
        assert (accuracy["n"], accuracy["groups"], accuracy["chance"]) == (24, 8, 0.25)
        assert tasks["mine", "answer_bits"]["chance"] == 2 and tasks["recall-2", "accuracy"]["chance"] == 0.5
        assert model["prompts"]["mine"].endswith("0 + 1?\nA. 0\nB. 1\nC. no\nD. yes\nAnswer: B")
    assert [model["left_out"] for model in record["models"][:2]] == [{"talk": "the model has no chat template"}] * 2
    assert record["models"][2]["sets"][1]["name"] == "talk" and record["models"][2]["left_out"] == {}
    pairs = {(pair["a"], pair["b"], pair["what"]) for pair in record["pairs"]}
    assert pairs == {(a, b, what) for a, b in ("ab", "ac", "bc") for what in ("news", "mine", "recall-2")}


def test_a_model_against_its_own_copy_has_no_difference_and_a_damaged_one_is_worse():
    damage("a", "same", 1.0)
    damage("a", "worse", 40.0)
    pairs = hybridize_json("eval", "a", "./same", "./worse", "--text", "news=news.jsonl")["pairs"]
    found = {(pair["a"], pair["b"]): pair for pair in pairs}
    assert found["a", "./same"]["difference"] == 0 and found["a", "./same"]["verdict"] == "no difference can be told"
    assert found["a", "./worse"]["verdict"] == "a is better"


def test_what_was_measured_is_not_measured_again_and_a_killed_evaluation_resumes(monkeypatch):
    honest, scored = candidate_module.Candidate.score_exam, []

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(candidate_module.Candidate, "score_exam", stop)
    hybridize("eval", "a", *ALL, code=130)
    monkeypatch.setattr(candidate_module.Candidate, "score_exam", honest)
    text = candidate_module.Candidate.score_text
    monkeypatch.setattr(candidate_module.Candidate, "score_text", lambda *args: scored.append(args) or text(*args))
    resumed = hybridize("eval", "a", *ALL, "--json")
    assert not scored and "news: unchanged, from the cache" in resumed.stderr
    again = hybridize("eval", "a", *ALL, "--json")
    assert "load a" not in again.stderr and again.stdout == resumed.stdout
    hybridize("eval", "a", *ALL, "--context", "16")
    assert len(scored) == 1


def test_limits_decide_the_exit_code(bench):
    damage("a", "worse", 40.0)
    damage("a", "same", 1.0)
    Path("limits.yaml").write_text("news: {bits_per_byte: {max_loss: 0.01}}\n")
    text = ("--text", "news=news.jsonl", "--gate", "limits.yaml")
    kept = hybridize("eval", "a", "./same", *text)
    assert "news (bits_per_byte): kept: './same' loses +0.0000" in kept.stdout
    broken = hybridize_json("eval", "a", "./worse", *text, code=1)
    assert broken["gate"][0]["verdict"] == "broken" and broken["gate"][0]["loss_ci"][0] > 0.01
    assert hybridize("eval", "./worse", "a", *text).exit_code == 0
    write_lines("news.jsonl", [{"text": "one story"}])
    assert "undecided" in hybridize("eval", "a", "./worse", *text, code=3).stdout
    assert "neither a set nor a task 'news'" in hybridize("eval", "a", "b", "--recall", "2", *text[2:], code=2).stderr
    assert "compares two models" in hybridize("eval", "a", *text, code=2).stderr


@pytest.mark.slow
def test_every_item_and_the_first_prompt_are_written_out():
    hybridize("eval", "a", "c", *ALL, "--out", "found", "--json", "x.json")
    assert json.loads(Path("found/eval.json").read_text()) == json.loads(Path("x.json").read_text())
    rows = [json.loads(line) for line in Path("found/0-a/mine.jsonl").read_text().splitlines()]
    assert len(rows) == 24 and all(row["answer"] == 1 and len(row["bits"]) == 4 for row in rows)
    assert Path("found/1-c/talk.prompt.txt").read_text() == "<user>hi\n<assistant>hello\n"
    assert sorted(path.name for path in Path("found/1-c").iterdir()) == sorted(
        f"{what}.{kind}" for what in ("mine", "news", "recall-2", "talk") for kind in ("jsonl", "prompt.txt")
    )


def test_a_file_of_sets_is_the_same_as_options_and_its_paths_count_from_it(bench):
    (bench / "sets").mkdir()
    Path("news.jsonl").rename("sets/news.jsonl")
    Path("sets/eval.yaml").write_text(
        "bits_per_byte: [{name: news, path: news.jsonl}]\nrecall: [2]\nitems: [{name: mine, path: ../mine.jsonl}]\n"
    )
    one = hybridize_json("eval", "a", "--set-file", "sets/eval.yaml")
    other = hybridize_json("eval", "a", "--text", "news=sets/*.jsonl", "--recall", "2", "--items", "mine=mine.jsonl")
    assert one == other
    short = ("--max-bytes", "200")
    assert (
        hybridize_json("eval", "a", "--set-file", "sets/eval.yaml", *short)["models"][0]["sets"][0]["num_bytes"] == 200
    )
    Path("sets/eval.yaml").write_text("bits_per_byt: []\n")
    assert (
        "sets/eval.yaml: there is no key `bits_per_byt`."
        in hybridize("eval", "a", "--set-file", "sets/eval.yaml", code=2).stderr
    )


def test_the_files_in_the_documents_are_read(bench):
    page = (Path(__file__).parents[1] / "docs/evaluation.md").read_text()
    sets = re.search(r"```text\n(# --set-file.*?)```", page, re.DOTALL)[1]
    limits = re.search(r"```text\n(# limits.yaml.*?)```", page, re.DOTALL)[1]
    (bench / "eval.yaml").write_text(sets)
    (bench / "limits.yaml").write_text(limits)
    request = make_request(read_request(bench / "eval.yaml"), "eval.yaml")
    assert request.names == ("news", "talk", "exam-zh", "law", "recall-8", "recall-32", "recall-128", "ceval-valid")
    assert request.bits_per_byte[0].source == "site" and request.items[1].shots == 5
    assert request.items[1].path == str(bench / "law.jsonl") and request.max_bytes == 400_000
    assert [limit.what for limit in read_limits(bench / "limits.yaml")] == ["news", "exam-en"]


def test_examples_and_style_change_the_prompt(bench):
    write_lines("shown.jsonl", [{**item, "question": f"shown {n}"} for n, item in enumerate(ITEMS)])
    Path("eval.yaml").write_text(
        "items:\n- {name: few, path: mine.jsonl, examples: shown.jsonl, shots: 2}\n"
        "- {name: text, path: mine.jsonl, style: text}\n"
    )
    prompts = hybridize_json("eval", "a", "--set-file", "eval.yaml")["models"][0]["prompts"]
    assert prompts["few"].count("Answer: B") == 3 and "shown 0" in prompts["few"] and "shown 8" in prompts["few"]
    assert prompts["text"].endswith("\n\n0 + 1?\nAnswer: 1")


def test_overlap_with_training_text_is_shown(bench):
    write_lines("train.jsonl", [{"text": "unrelated"}])
    shown = hybridize("eval", "a", "--text", "news=news.jsonl", "--training-text", "train.jsonl").stdout
    assert "overlap of news with the training text: 0 of 30 items, 0.00% of its runs of 13 words" in shown
    write_lines(
        "train.jsonl", [{"text": f"story {n} it rained it rained it rained it rained it rained it"} for n in (4, 9)]
    )
    shown = hybridize("eval", "a", "--text", "news=news.jsonl", "--training-text", "*n.jsonl").stdout
    assert "2 of 30 items" in shown and "are too short to tell" in shown
    write_lines("train.jsonl", [{"content": json.loads(Path("train.jsonl").read_text().splitlines()[0])["text"]}])
    Path("eval.yaml").write_text("training_text: [train.jsonl]\ntraining_field: content\n")
    found = hybridize_json("eval", "a", "--text", "news=news.jsonl", "--set-file", "eval.yaml")["overlaps"]
    assert [overlap["num_found"] for overlap in found] == [1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("a",), "there is nothing to evaluate on"),
        (("a", "a", "--recall", "2"), "'a' is named twice"),
        (("a", "--text", "news.jsonl"), "is not NAME=PATH"),
        (("a", "--text", "x=gone.txt"), "no file in"),
        (("a", "--recall", "1"), "2 to 2000 pairs; got 1"),
        (("a", "--recall", "2", "--recall", "2"), "is the name of two sets or tasks"),
        (("a", "--items", "exam-fr"), "there are no built-in items 'exam-fr'"),
        (("gone", "--recall", "2"), "does not exist as a path"),
        (("a", "--text", "news=news.jsonl", "--max-bytes", "lots"), "max_bytes"),
        (("a", "--recall", "60"), "the model takes 512"),
        (("a", "--recall", "2", "--max-bytes", "200"), "--max-bytes has no effect without --text."),
        (("a", "--recall", "2", "--context", "64"), "--context has no effect without --text."),
        (("a", "--recall", "2", "--training-text", "news.jsonl"), "nothing that could occur in the training text"),
        (("a", "--recall", "2", "--limit", "5"), "--limit has no effect without --task."),
        (("a", "--task", "x", "--style", "text"), "--style has no effect without --items."),
        (("a", "--recall", "2", "--shots", "1"), "--shots has no effect without --items or --task."),
    ],
)
def test_what_cannot_be_done_is_refused_with_words(arguments, words):
    assert words in hybridize("eval", *arguments, code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--training-text", "gone.txt"), "no file in"),
        (("--training-text", "mine.jsonl"), "`training_field` in an evaluation file (--set-file): question, A, B"),
        (("--text", "other=mine.jsonl"), "`field` in an evaluation file (--set-file): question, A, B"),
        (("--items", "mine=mine.jsonl", "--shots", "1"), "1 examples are requested, and there are 0"),
        (("--gate", "limits.yaml"), "a limit compares two models or more."),
        (("b", "--gate", "limits.yaml"), "'news' has no figure 'accuracy'."),
        (("--out", "a/config.json/found"), "a/config.json/found: Not a directory."),
    ],
)
def test_mistakes_are_found_before_a_model_is_loaded(monkeypatch, arguments, words):
    monkeypatch.setattr(candidate_module, "load_causal_lm", None)
    Path("limits.yaml").write_text("news: {accuracy: {max_loss: 0.01}}\n")
    assert words in hybridize("eval", "a", "--text", "news=news.jsonl", *arguments, code=2).stderr


def test_records_that_cannot_be_read_are_counted():
    with Path("news.jsonl").open("a") as file:
        file.write('{"text": \n{"title": "no text"}\n')
    shown = hybridize("eval", "a", "--text", "news=news.jsonl").stderr
    assert "news: left out 1 not JSON, 1 no text in field 'text'" in shown


def test_a_run_is_named_by_its_folder():
    dial = {"host": "a", "deep": "a", "shallow": "a"}
    hybridize("build", write_recipe(Path("x.yaml"), donors={"a": "a"}, layout=dial), "--no-load")
    pairs = hybridize_json("eval", "a", "./runs/x", "--text", "news=news.jsonl")["pairs"]
    assert pairs[0]["difference"] == 0


@pytest.mark.slow
def test_a_build_ends_with_the_exit_code_of_its_gate(bench):
    dial = {"host": "a", "deep": "a", "shallow": "a", "boundary": 0.5}
    train = {
        "data": [{"path": "news.jsonl"}],
        "tokens": 3000,
        "seq_len": 64,
        "freeze": "none",
        "lr": 3e-2,
        "heldout_ratio": 0.5,
    }
    evaluate = {"bits_per_byte": [{"name": "other", "path": "other.jsonl"}], "context": 64, "new_tokens": 1}
    write_lines("other.jsonl", [{"text": f"QZ%{chr(65 + n)}" * 8} for n in range(12)])
    recipe = write_recipe(
        Path("x.yaml"), donors={"a": "a"}, layout=dial, train=train, evaluate={**evaluate, "gate": "limits.yaml"}
    )
    Path("limits.yaml").write_text("others: {bits_per_byte: {max_loss: 0.01}}\n")
    assert "no 'bits_per_byte' of 'others' is evaluated" in hybridize("build", recipe, code=2).stderr
    Path("limits.yaml").write_text("other: {bits_per_byte: {max_loss: 50}}\n")
    assert "kept" in hybridize("build", recipe).stdout
    Path("limits.yaml").write_text("other: {bits_per_byte: {max_loss: 0.0}}\n")
    found = hybridize_json("build", recipe, code=1)
    assert found["gate"][0]["verdict"] == "broken" and found["gate"][0]["loss_ci"][0] > 0
    assert Path("runs/x/model/manifest.json").is_file()


def test_tasks_without_lm_eval_say_how_to_install_it(monkeypatch):
    monkeypatch.setattr("hybridizer.evaluate.harness.find_spec", lambda name: None)
    shown = hybridize("eval", "a", "--task", "hybridizer_exam_en", code=2).stderr
    assert "lm-eval, which is not installed" in shown and "pip install 'hybridizer[eval]'" in shown


def test_a_model_that_gives_no_numbers_ends_the_run():
    damage("a", "broken", 1.0)
    tensors = load_file("broken/model.safetensors")
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], float("nan"))
    save_file(tensors, "broken/model.safetensors", {"format": "pt"})
    for arguments in (("--text", "news=news.jsonl"), ("--items", "mine=mine.jsonl"), ("--recall", "2")):
        assert "not a number" in hybridize("eval", "./broken", *arguments, code=1).stderr
