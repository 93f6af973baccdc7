"""Limits: read with their mistakes, and judged by intervals."""

import pytest

from hybridizer.core.errors import InputError, RecipeError
from hybridizer.evaluate.figures import ACCURACY, BITS_PER_BYTE, compare_pairs, make_figure
from hybridizer.evaluate.gate import Limit, check_gate, check_limits, exit_code, judge, read_limits

GROUPS = [str(n) for n in range(30)]


def figures(loss, spread=0.0, metric=BITS_PER_BYTE):
    """Two models, the second worse by `loss` bits per byte, more or less."""
    base = [10.0 + n % 7 for n in range(30)]
    worse = [value + loss * 10 + spread * (n % 2 * 2 - 1) for n, value in enumerate(base)]
    return [
        (name, [make_figure("news", metric, "i", bits, [10] * 30, GROUPS)])
        for name, bits in (("a", base), ("b", worse))
    ]


def verdict_of(loss, spread, limit):
    found = figures(loss, spread)
    directions = {("news", BITS_PER_BYTE): True}
    results = judge([Limit("news", BITS_PER_BYTE, limit)], compare_pairs(found), directions, "a")
    return results[0].verdict, exit_code(results), str(results[0])


def test_a_limit_is_kept_broken_or_not_to_be_told():
    assert verdict_of(0.005, 0.0, 0.01)[:2] == ("kept", 0)
    assert verdict_of(-0.1, 0.0, 0.01)[:2] == ("kept", 0)
    assert verdict_of(0.02, 0.01, 0.01)[:2] == ("broken", 1)
    verdict, code, text = verdict_of(0.011, 0.1, 0.01)
    assert (verdict, code) == ("undecided", 3)
    assert "news (bits_per_byte): undecided: 'b' loses +0.0110, 95% " in text and "the limit is 0.01" in text


def test_a_loss_of_accuracy_is_a_lower_one():
    right = [1.0] * 25 + [0.0] * 5
    sets = [("a", right), ("b", [0.0] * 20 + right[20:])]
    found = [(name, [make_figure("exam", ACCURACY, "i", values, [1] * 30, GROUPS)]) for name, values in sets]
    results = judge([Limit("exam", ACCURACY, 0.1)], compare_pairs(found), {("exam", ACCURACY): False}, "a")
    assert results[0].verdict == "broken" and results[0].loss == pytest.approx(20 / 30)
    back = judge([Limit("exam", ACCURACY, 0.1)], compare_pairs(found[::-1]), {("exam", ACCURACY): False}, "b")
    assert back[0].verdict == "kept"


def test_few_documents_and_nothing_measured_cannot_be_told():
    few = [
        (name, [make_figure("news", BITS_PER_BYTE, "i", [bits] * 5, [1] * 5, GROUPS[:5])])
        for name, bits in (("a", 1), ("b", 2))
    ]
    limit = Limit("news", BITS_PER_BYTE, 0.01)
    assert judge([limit], compare_pairs(few), {}, "a")[0].verdict == "undecided"
    nothing = judge([limit], (), {}, "a")
    assert exit_code(nothing) == 3 and "nothing was measured" in str(nothing[0])
    assert exit_code([]) == 0


def test_limits_are_read_from_yaml(tmp_path):
    path = tmp_path / "limits.yaml"
    path.write_text("news: {bits_per_byte: {max_loss: 0.01}}\nexam-en:\n  accuracy: {max_loss: 0.02}\n")
    assert read_limits(path) == (Limit("news", "bits_per_byte", 0.01), Limit("exam-en", "accuracy", 0.02))
    path.write_text(
        "news: 0.01\nexam: {accuracy: {most: 1}}\nx: {accuracy: {max_loss: -1}}\ny: {a: {max_loss: true}}\n"
    )
    with pytest.raises(RecipeError) as caught:
        read_limits(path)
    assert len(caught.value.problems) == 4 and "the limit of 'news' is not" in str(caught.value)
    with pytest.raises(RecipeError, match="cannot be read"):
        read_limits(tmp_path / "gone.yaml")


def test_a_limit_on_what_is_not_measured_is_refused():
    with pytest.raises(InputError, match="'a' has no figure 'accuracy' of 'news'"):
        check_limits([Limit("news", "accuracy", 0.1)], figures(0.1), "limits.yaml")
    limits, metrics = (
        [Limit("news", "accuracy", 0.1), Limit("nws", "acc", 0.1), Limit("arc", "acc", 0.1)],
        {"news": (BITS_PER_BYTE,)},
    )
    with pytest.raises(InputError) as caught:
        check_gate(limits, {**metrics, "arc": None}, 1, "limits.yaml")
    assert [problem.what for problem in caught.value.problems] == [
        "a limit compares two models or more.",
        "'news' has no figure 'accuracy'.",
        "this evaluation has neither a set nor a task 'nws'.",
    ]
    check_gate([Limit("news", BITS_PER_BYTE, 0.1)], metrics, 2, "limits.yaml")
