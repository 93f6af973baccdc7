"""Continuations scored against transformers' own logits, alone, in batches, and behind a shared prefix."""

import math

import pytest
import torch

from hybridizer.core.errors import InputError, RunError
from hybridizer.evaluate import rows as rows_module
from hybridizer.evaluate.fitting import run_batches
from hybridizer.evaluate.rows import Row, RowScorer
from support.scored_models import model_and_parts

FAMILIES = ["llama", "gemma2", "mamba2", "qwen3_next", "cohere"]


def plain_score(model, row):
    """-log2 p of the target and whether it is greedy, written down as it is defined."""
    ids = torch.tensor([row.prompt + row.target])
    with torch.no_grad():
        log_p = model(input_ids=ids, use_cache=False).logits[0].double().log_softmax(-1)
    places = [(len(row.prompt) + at - 1, token) for at, token in enumerate(row.target)]
    return -sum(float(log_p[p, t]) for p, t in places) / math.log(2), all(
        int(log_p[p].argmax()) == t for p, t in places
    )


def some_rows(prefix, count=12, seed=0):
    """Rows behind `prefix` shared tokens, of several lengths, some of which share their prompt."""
    generator = torch.Generator().manual_seed(seed)

    def draw(number):
        return tuple(torch.randint(3, 200, (number,), generator=generator).tolist())

    shared = draw(prefix)
    prompts = [shared + draw(3 + number % 3) for number in range(count)]
    return [Row(prompt, draw(1 + number % 4)) for number, prompt in enumerate(prompts)] + [
        Row(prompts[0], (token,)) for token in (5, 6, 7, 8)
    ]


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("prefix", [0, 60], ids=["alone", "shared"])
def test_scores_are_those_of_the_models_own_logits(model_type, prefix):
    model, parts = model_and_parts(model_type)
    rows = some_rows(prefix)
    # what the model itself would say next, so that both outcomes of `is_greedy` occur
    with torch.no_grad():
        top = int(model(input_ids=torch.tensor([rows[0].prompt]), use_cache=False).logits[0, -1].argmax())
    rows.append(Row(rows[0].prompt, (top,)))
    found = RowScorer(model, parts).score(rows, "x")
    expected = [plain_score(model, row) for row in rows]
    assert [score.bits for score in found] == pytest.approx([bits for bits, _ in expected], rel=1e-4)
    assert [score.is_greedy for score in found] == [greedy for _, greedy in expected]
    assert found[-1].is_greedy and not all(score.is_greedy for score in found)


def test_a_shared_prefix_goes_through_once(monkeypatch):
    model, parts = model_and_parts("llama")
    seen = []
    model.register_forward_pre_hook(lambda _m, _a, given: seen.append(given["input_ids"].numel()), with_kwargs=True)
    scorer, rows = RowScorer(model, parts), some_rows(60)
    scorer.score(rows, "x")
    seen.clear()
    scorer.score(rows, "x")  # the cache is known to agree
    pieces = sum(len(inputs) - 60 for inputs in {row.inputs for row in rows})
    assert 60 <= sum(seen) - pieces <= 60 + 40  # what bare heads are asked for their number of words


def test_a_cache_that_changes_the_result_is_not_used(monkeypatch):
    model, parts = model_and_parts("llama")
    notes, rows = [], some_rows(60)
    expected = [score.bits for score in RowScorer(model, parts).score(some_rows(60), "x")]
    scorer = RowScorer(model, parts, notes.append)
    monkeypatch.setattr(scorer._objective, "cache", lambda ids: None)
    found = [score.bits for score in scorer.score(rows, "task 'x'")]
    assert found == pytest.approx(expected, rel=1e-4) and len(notes) == 1 and "cannot share a prefix" in notes[0]
    broken = RowScorer(model, parts, notes.append)
    honest = broken._objective.cache
    monkeypatch.setattr(broken._objective, "cache", lambda ids: honest(ids.flip(1)))
    assert [score.bits for score in broken.score(rows, "x")] == pytest.approx(expected, rel=1e-4) and len(notes) == 2


def test_rows_that_do_not_fit_are_refused():
    model, parts = model_and_parts("llama")
    with pytest.raises(InputError, match=r"an item of 600 tokens, and the model takes 512"):
        RowScorer(model, parts).score([Row((5,) * 600, (6,))], "items 'x'")
    with pytest.raises(InputError, match="less than one token"):
        RowScorer(model, parts).score([Row((5,), ())], "items 'x'")


def test_batches_are_halved_until_they_fit_and_stay_small():
    tried = []

    def run(batch):
        tried.append(len(batch))
        if len(batch) > 3:
            raise torch.OutOfMemoryError("no room")
        return sum(batch)

    batches = [tuple(range(10)), tuple(range(10, 20))]
    found = list(run_batches(batches, run, "x"))
    assert [at for part, _ in found for at in part] == list(range(20))
    assert all(sum(part) == result for part, result in found)
    assert tried == [10, 5, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]
    with pytest.raises(RunError, match="does not hold a single row"):
        list(run_batches([(1,)], lambda batch: run((1, 2, 3, 4)), "x"))


def test_many_positions_go_through_the_head_in_pieces(monkeypatch):
    model, parts = model_and_parts("llama")
    rows = some_rows(5)
    expected = RowScorer(model, parts).score(rows, "x")
    monkeypatch.setattr(rows_module, "loss_chunk_bytes", lambda device: 3 * 4 * 256)  # three tokens of logits
    found = RowScorer(model, parts).score(rows, "x")
    assert [score.bits for score in found] == pytest.approx([score.bits for score in expected], rel=1e-5)
