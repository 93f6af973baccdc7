"""What is said of two models on the same documents: the figures, how sure they are, and when nothing is shown."""

import dataclasses
import json

import numpy as np
import pytest

from hybridizer.core.errors import CheckpointError
from hybridizer.evaluate.compare import compare_bits, compare_scores
from hybridizer.evaluate.scores import Sample, Scores, TextScores, read_scores

SIZES = np.array([100, 300, 50, 220, 400, 90, 180, 60, 500, 140, 75, 310])


def draw(count, change, seed, noise=0.05):
    """Documents of very different difficulty, and what a model that is `change` bits per byte off makes of them."""
    generator = np.random.default_rng(seed)
    size = np.ceil(generator.lognormal(6, 0.7, count))
    before = size * generator.normal(1.0, 0.25, count)
    return before, before + size * generator.normal(change, noise, count), size


def test_bits_per_byte_are_sums_over_sums():
    found = compare_bits([100.0, 300.0], [50.0, 250.0], [100, 400])
    assert (found.before, found.after, found.change) == pytest.approx((0.8, 0.6, -0.2))
    assert found.num_documents == 2


def test_a_model_compared_with_itself_shows_no_difference():
    bits = SIZES * np.linspace(0.5, 1.5, len(SIZES))
    found = compare_bits(bits, bits, SIZES)
    assert found.change == 0 and found.change_ci == (0, 0) and found.verdict == "no difference shown"
    assert found.before_ci == found.after_ci and found.before_ci[0] < found.before < found.before_ci[1]


def test_pairing_shows_a_change_far_smaller_than_the_documents_differ():
    before, after, size = draw(40, -0.05, seed=1)
    found = compare_bits(before, after, size)
    assert found.before_ci[0] < found.after < found.before_ci[1]
    assert found.verdict == "better" and found.change_ci[1] < 0 and found.caveat is None
    assert compare_bits(after, before, size).verdict == "worse"


@pytest.mark.slow
def test_the_change_is_covered_about_95_times_in_100():
    covered = sum(low <= -0.03 <= high for low, high in (compare_bits(*draw(40, -0.03, seed)).change_ci
                                                         for seed in range(300)))  # fmt: skip
    assert 0.89 <= covered / 300 <= 0.98  # four standard errors (1.4%) around the 94% of 40 uneven documents


@pytest.mark.slow
def test_without_a_change_a_verdict_is_rare():
    verdicts = [compare_bits(*draw(30, 0.0, seed)).verdict for seed in range(200)]
    assert 0.86 <= verdicts.count("no difference shown") / 200 < 1


@pytest.mark.parametrize(
    ("count", "verdict", "caveat"),
    [
        (1, "no difference shown", "one document has no interval"),
        (2, "no difference shown", "2 documents cannot show a difference at 95%, whatever their changes"),
        (5, "no difference shown", "5 documents cannot show a difference at 95%, whatever their changes"),
        (6, "better", "only 6 documents: the intervals are too narrow"),
        (9, "better", "only 9 documents: the intervals are too narrow"),
        (10, "better", None),
    ],
)
def test_few_documents_show_less_than_their_intervals_say(count, verdict, caveat):
    size = SIZES[:count].astype(float)
    found = compare_bits(size, 0.9 * size, size)
    assert (found.verdict, found.caveat) == (verdict, caveat)
    assert (found.change_ci is None) == (count == 1)


def scores(model="a", factor=1.0, identity="sha256:1"):
    text = TextScores(
        "news", "general", identity, tuple(factor * SIZES.astype(float)), tuple(SIZES.tolist()), 900, 30, 2000, 4, 64
    )
    samples = (Sample("news", "It was", f" {model}."), Sample("recipe", "1 + 1 =", f" {model}!"))
    return Scores(model, "float32", (text,), samples)


def test_the_record_holds_figures_counts_and_samples_side_by_side():
    record = compare_scores(scores("a"), scores("b", 0.5))
    assert json.loads(json.dumps(record)) == record
    assert record["schema"] == "hybridizer.scores/1" and record["models"] == {"before": "a", "after": "b"}
    (row,) = record["sets"]
    expected = {
        "name": "news", "role": "general", "num_documents": 12, "num_bytes": int(SIZES.sum()), "num_tokens": 900,
        "documents_available": 30, "tokens_available": 2000, "documents_trained": 4, "context": 64,
        "before": 1.0, "after": 0.5, "change": -0.5, "verdict": "better", "caveat": None,
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    assert row["before_ci"] == pytest.approx([1, 1]) and row["change_ci"] == pytest.approx([-0.5, -0.5])
    assert record["samples"][1] == {"source": "recipe", "prompt": "1 + 1 =", "before": " a!", "after": " b!"}


def test_scores_of_other_documents_or_prompts_are_never_compared():
    with pytest.raises(AssertionError, match="other documents"):
        compare_scores(scores(), scores(identity="sha256:2"))
    other = dataclasses.replace(scores(), samples=(Sample("news", "It is", ""), *scores().samples[1:]))
    with pytest.raises(AssertionError, match="other prompts"):
        compare_scores(scores(), other)


def test_scores_survive_json_bit_for_bit():
    first = scores(factor=1 / 3)
    assert read_scores(json.loads(json.dumps(first.to_json())), "x") == first


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"texts": [{}]}, "`texts.0.name`"),
        ({"texts": 3}, "`texts`"),
        ({"more": 1}, "`more`"),
        ({"schema": "x"}, "its schema"),
    ],
)
def test_a_damaged_file_of_scores_is_named(change, fault):
    with pytest.raises(CheckpointError, match=f"scores/x.json: {fault}"):
        read_scores({**scores().to_json(), **change}, "scores/x.json")
