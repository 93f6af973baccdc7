"""Multiple-choice items: formats, prompts, examples, and the figures of an exam."""

import json
import math

import pytest

from hybridizer.core.errors import InputError
from hybridizer.evaluate.candidate import exam_outcome
from hybridizer.evaluate.exam import Exam, Item, ask, load_exam
from hybridizer.evaluate.recall import make_recall

LETTERED = {"question": "1+1? ", "A": "1", "B": "2", "C": "3", "D": "4", "answer": "B", "subject": "sums"}
LISTED = {"question": "Is it?", "choices": ["yes", "no"], "answer": 1}


def write_items(path, *records):
    path.write_text("\n".join(record if isinstance(record, str) else json.dumps(record) for record in records))
    return path


def test_both_formats_are_read(tmp_path):
    exam = load_exam("mine", write_items(tmp_path / "a.jsonl", LETTERED, "", LISTED))
    assert exam.items == (Item("1+1? ", ("1", "2", "3", "4"), 1, "sums"), Item("Is it?", ("yes", "no"), 1, "all"))
    assert exam.chance == (0.25 + 0.5) / 2


def test_every_mistake_is_reported_with_its_line(tmp_path):
    wrong = [{**LETTERED, "answer": "E"}, {**LISTED, "choices": ["a"]}, "{", {**LISTED, "question": ""}, "[]",
             {**LISTED, "answer": True}]  # fmt: skip
    with pytest.raises(InputError) as caught:
        load_exam("mine", write_items(tmp_path / "a.jsonl", *wrong))
    places = [problem.where.rpartition(":")[2] for problem in caught.value.problems]
    assert places == list("123456")
    with pytest.raises(InputError, match="Did you mean 'exam-en'"):
        load_exam("exam-em", None)


@pytest.mark.parametrize(("name", "least"), [("exam-en", 800), ("exam-zh", 700)])
def test_the_built_in_items_are_sound(name, least):
    exam = load_exam(name, None)
    assert len(exam.items) >= least and exam.chance == 0.25 and exam.language == name[-2:]
    assert all(len(set(item.choices)) == 4 for item in exam.items)
    assert len({item.question for item in (*exam.items, *exam.examples)}) == len(exam.items) + len(exam.examples)
    assert len({item.subject for item in exam.items}) > 40
    places = [sum(item.answer == at for item in exam.items) / len(exam.items) for at in range(4)]
    assert all(0.2 < share < 0.3 for share in places)  # the same letter every time scores at chance


def test_a_prompt_is_that_of_c_eval():
    example = Item("0+1?", ("1", "2"), 0, "other")
    exam = Exam("x", "zh", (Item("1+1?", ("1", "2"), 1, "sums"),), (example,))
    (question,) = ask(exam, 1)
    assert question.prompt == (
        "以下是单项选择题，请选出其中的正确答案。\n\n0+1?\nA. 1\nB. 2\n答案： A\n\n1+1?\nA. 1\nB. 2\n答案："
    )
    assert question.continuations == (" A", " B") and question.answer == 1
    (question,) = ask(Exam("x", "en", exam.items, exam.examples), 1, "text")
    assert question.prompt.endswith("\n\n0+1?\nAnswer: 1\n\n1+1?\nAnswer:") and question.continuations == (" 1", " 2")


def test_examples_are_of_the_items_subject_where_there_are_any():
    examples = (Item("other?", ("1", "2"), 0, "other"), Item("own?", ("1", "2"), 0, "sums"))
    exam = Exam("x", "en", (Item("1+1?", ("1", "2"), 1, "sums"),), examples)
    assert "own?" in ask(exam, 1)[0].prompt and "other?" not in ask(exam, 1)[0].prompt
    with pytest.raises(InputError, match="2 examples are requested, and there are 1 for 'sums'"):
        ask(exam, 2)


def test_the_figures_of_an_exam_are_what_their_names_say():
    items = (Item("a", ("1", "2", "3", "4"), 1, "s"), Item("b", ("1", "2"), 0, "t"))
    exam = Exam("x", "en", items)
    outcome = exam_outcome(exam, ask(exam, 0), [[3.0, 2.0, 4.0, 5.0], [2.0, 1.0]], {})
    accuracy, answer_bits, margin = outcome.figures
    assert accuracy.values == (1.0, 0.0) and accuracy.chance == 0.375 and not accuracy.lower_is_better
    shares = [2**-2 / (2**-2 + 2**-3 + 2**-4 + 2**-5), 2**-2 / (2**-2 + 2**-1)]
    assert answer_bits.values == pytest.approx([-math.log2(share) for share in shares])
    assert answer_bits.chance == 1.5 and answer_bits.lower_is_better
    assert margin.values == pytest.approx([(3 + 4 + 5) / 3 - 2, 1 - 2]) and margin.chance == 0
    assert accuracy.groups == ("s", "t") and outcome.rows[1]["chosen"] == 1
    assert outcome.prompt.endswith("D. 4\nAnswer: B")


def test_bits_that_float_cannot_raise_two_to_still_give_a_share():
    exam = Exam("x", "en", (Item("a", ("1", "2"), 0, "s"),))
    outcome = exam_outcome(exam, ask(exam, 0), [[5000.0, 4000.0]], {})
    assert outcome.figures[1].values == pytest.approx([1000.0])


@pytest.mark.parametrize("num_pairs", [2, 8, 50])
def test_recall_questions_have_one_answer_which_is_in_their_context(num_pairs):
    contexts = make_recall(num_pairs)
    assert contexts == make_recall(num_pairs) != make_recall(num_pairs, seed=1)
    for questions in contexts:
        listed = dict(line.split(": ") for line in questions[0].prompt.split("\n\n")[0].split("\n"))
        assert len(listed) == len(set(listed.values())) == num_pairs
        for question in questions:
            assert listed[question.prompt.rpartition("\n")[2].rstrip(":")] == question.continuations[0].strip()
    places = [list(listed).index(question.prompt.rpartition("\n")[2].rstrip(":")) for question in questions]
    assert places == sorted(places) and len(set(places)) == min(5, num_pairs)
