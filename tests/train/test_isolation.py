import contextlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hybridizer.models.loss import IGNORED
from hybridizer.models.objective import CausalLMLoss
from hybridizer.models.parts import find_parts
from hybridizer.models.wrapping import recomputing
from hybridizer.train.isolation import Documents, documents_leak, isolate_documents
from support.marks import slow_except
from support.train_models import plain_model, tiny_model
from support.train_runs import bytes_of

ATTENTION = ["llama", "qwen3", "gemma2", "gemma3_text", "mistral", "gpt2"]
EXPERTS = ["mixtral", "qwen2_moe", "deepseek_v3"]
OVERRIDES = {
    "granitemoehybrid": {"num_local_experts": 0, "intermediate_size": 64, "shared_intermediate_size": 64},
    "falcon_h1": {"lm_head_multiplier": 0.5},  # its logits come from its own code, in the midst of a step
}
CARRYING = {  # and how many modules of each need help
    "mamba": 4, "mamba2": 4, "rwkv": 8, "jamba": 2, "qwen3_next": 2, "lfm2": 2, "falcon_h1": 4, "nemotron_h": 1,
    "zamba2": 4, "kimi_linear": 2, "minimax": 2, "recurrent_gemma": 2, "granitemoehybrid": 4, "gpt_oss": 4,
}  # fmt: skip


def objective_of(model_type):
    model = tiny_model(model_type, **OVERRIDES.get(model_type, {})).eval()
    return CausalLMLoss(model, find_parts(model))


@contextlib.contextmanager
def apart(objective):
    with isolate_documents(objective.model, objective._parts.layers, 256) as documents:
        yield documents


def documents_of(*lengths, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 200, (length,), generator=generator) for length in lengths]


def packed(rows):
    """Ids, positions and targets of rows of documents."""
    ids = torch.stack([torch.cat(row) for row in rows])
    positions = torch.stack([torch.cat([torch.arange(len(d)) for d in row]) for row in rows])
    targets = [torch.cat([torch.cat([d[1:], torch.tensor([IGNORED])]) for d in row]) for row in rows]
    return ids, positions, torch.stack(targets)


def losses_of_documents(objective, rows):
    """The loss of each document when all are packed into `rows`."""
    ids, positions, targets = packed(rows)
    losses, begins = [], (positions == 0).flatten().cumsum(0).view_as(positions) - 1
    for chosen in range(int(begins.max()) + 1):
        losses.append(objective(ids, positions, targets.where(begins == chosen, IGNORED)))
    return torch.stack(losses)


@pytest.mark.parametrize("model_type", ATTENTION)
def test_attention_keeps_documents_apart_by_itself(model_type):
    objective = objective_of(model_type)
    assert not documents_leak(objective.train(), 256) and objective.training
    with apart(objective) as documents:
        assert documents.num_modules == 0
    objective.eval()
    documents = documents_of(11, 5, 13)
    before = losses_of_documents(objective, [documents])
    documents[1] = documents[1].flip(0)
    after = losses_of_documents(objective, [documents])
    assert torch.equal(before[::2], after[::2])
    assert not torch.equal(before[1], after[1])


@pytest.mark.parametrize("model_type", EXPERTS)
def test_experts_keep_documents_apart_but_for_rounding(model_type):
    objective = objective_of(model_type)
    assert not documents_leak(objective, 256)
    with apart(objective) as documents:
        assert documents.num_modules == 0
    documents = documents_of(11, 5, 13)
    before = losses_of_documents(objective, [documents])
    documents[1] = documents[1].flip(0)
    after = losses_of_documents(objective, [documents])
    torch.testing.assert_close(after[::2], before[::2], rtol=1e-6, atol=0)
    assert not torch.equal(before[1], after[1])


@pytest.mark.parametrize("model_type", slow_except(CARRYING, "mamba2"))
def test_layers_that_carry_state_are_found_and_a_change_in_one_document_changes_no_others_loss(model_type):
    objective = objective_of(model_type)
    before_forwards = [vars(module).get("forward") for module in objective.modules()]
    assert documents_leak(objective, 256)
    with apart(objective) as documents:
        assert documents.num_modules == CARRYING[model_type]
        assert not documents_leak(objective.train(), 256) and objective.training
        objective.eval()
        rows = [documents_of(11, 5, 13), documents_of(6, 23, seed=4)]
        before = losses_of_documents(objective, rows)
        rows[0][1] = rows[0][1].flip(0)
        after = losses_of_documents(objective, rows)
    others = torch.tensor([True, False, True, True, True])
    torch.testing.assert_close(after[others], before[others], rtol=1e-6, atol=0)  # experts round by their tokens
    assert abs(after[1] - before[1]) > 1e-3
    assert [vars(module).get("forward") for module in objective.modules()] == before_forwards
    assert documents_leak(objective, 256)


def test_a_fresh_mixer_whose_output_begins_at_zero_is_found():
    objective = objective_of("bamba")
    silent = [p for name, p in objective.named_parameters() if "mamba.out_proj" in name]
    for parameter in silent:
        parameter.data.copy_(torch.tensor(-0.0))
    before = bytes_of(objective)
    assert documents_leak(objective, 256)
    with apart(objective) as documents:
        assert documents.num_modules == len(silent) == 2
        assert not documents_leak(objective, 256)
    assert bytes_of(objective) == before


class Faint(torch.nn.Module):
    """Passes on what it is given, and very little of what came before."""

    def forward(self, hidden):
        return hidden + 0.02 * hidden.cumsum(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_faint_trace_of_another_document_is_a_leak_in_any_precision(dtype):
    model, parts = plain_model(dropout=0.0)
    model.layers[1].norm = torch.nn.Sequential(model.layers[1].norm, Faint())
    objective = CausalLMLoss(model.to(dtype), parts)
    assert documents_leak(objective, 257)
    with isolate_documents(model, parts.layers, 257) as documents:
        assert documents.num_modules == 1 and not documents_leak(objective, 257)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    "model_type", slow_except(["mamba2", "jamba", "falcon_h1", "qwen3_next", "gpt_oss", "rwkv"], "mamba2", "gpt_oss")
)
def test_losses_and_gradients_are_those_of_every_document_in_a_row_of_its_own(model_type, recompute):
    objective = objective_of(model_type)
    parameters = [p for p in objective.model.requires_grad_(True).parameters()]
    rows = [documents_of(17, 9, 3), documents_of(29, seed=5), documents_of(2, 2, 25, seed=6)]
    alone = [objective(*packed([[document]])) for row in rows for document in row]
    expected = torch.autograd.grad(sum(alone), parameters, allow_unused=True)
    with recomputing(objective._parts.layers) if recompute else contextlib.nullcontext(), apart(objective):
        loss = objective(*packed(rows))
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
    torch.testing.assert_close(loss, sum(alone), rtol=1e-5, atol=0)
    for ours, theirs in zip(found, expected, strict=True):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()) + 1e-6)


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=4))
def test_every_document_runs_alone_in_its_order_and_comes_back_to_its_place(lengths):
    width = max(map(sum, lengths))
    rows = [[*row, width - sum(row)] if sum(row) < width else row for row in lengths]
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in rows])
    numbers = torch.arange(float(positions.numel())).view_as(positions)
    seen = []

    def forward(hidden, pair):
        seen.append(hidden)
        return hidden.cumsum(1), pair[0]  # a recurrence that never forgets

    documents = Documents(1)
    documents.enter(positions)
    found, same = documents.run(forward, numbers, pair=(numbers[..., None], None))
    expected = [
        torch.cat([part.cumsum(0) for part in row.split(sizes)]) for row, sizes in zip(numbers, rows, strict=True)
    ]
    assert torch.equal(found, torch.stack(expected)) and torch.equal(same[..., 0], numbers)
    assert sum(group.numel() for group in seen) < 2 * numbers.numel() + 1, "more padding than tokens"


def test_a_mask_of_pairs_is_cut_to_each_document_and_hides_padding():
    documents = Documents(1)
    documents.enter(torch.tensor([[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]]))
    mask = torch.arange(2.0 * 25).view(2, 1, 5, 5)
    taken = []
    documents.run(lambda hidden, mask: taken.append(mask) or hidden, torch.zeros(2, 5, 1), mask=mask)
    longest, second, *_ = taken[0]  # of four tokens, at 1..4 in row 1; of three, at 0..2 in row 0, and one of padding
    assert torch.equal(longest, mask[1, :, 1:, 1:])
    assert torch.equal(second[:, :3, :3], mask[0, :, :3, :3])
    assert torch.equal(second[..., 3], torch.full((1, 4), torch.finfo(torch.float32).min))
    assert torch.equal(taken[-1][-1], mask[1, :, :1, :1])


@pytest.mark.parametrize("model_type", ["afmoe", "xglm", *sorted(set(CARRYING) - {"granitemoehybrid"})])
def test_every_token_of_a_packed_document_gets_what_it_gets_alone(model_type):
    objective = objective_of(model_type)
    rows = [documents_of(17, 9, 3), documents_of(29, seed=5), documents_of(2, 2, 25, seed=6)]
    ids, positions, _ = packed(rows)
    with apart(objective), torch.no_grad():
        found = objective.hidden(ids, positions)
    with torch.no_grad():
        for row, hidden in zip(rows, found, strict=True):
            for document, part in zip(row, hidden.split([len(d) for d in row]), strict=True):
                expected = objective.hidden(document[None], torch.arange(len(document))[None])[0]
                torch.testing.assert_close(part, expected, rtol=1e-4, atol=1e-4)


def test_another_batch_without_positions_is_not_cut_at_the_documents_of_the_last():
    objective = objective_of("mamba2")
    with apart(objective):
        objective(*packed([documents_of(11, 5)]))
        with pytest.raises(AssertionError, match="of the batch that was entered"):
            objective.token_losses(torch.randint(3, 200, (1, 20)))
    assert not objective.model._forward_pre_hooks


def test_a_trial_that_fails_leaves_the_weights_as_they_were(monkeypatch):
    objective = objective_of("bamba")
    silent = [p for name, p in objective.named_parameters() if "mamba.out_proj" in name]
    for parameter in silent:
        parameter.data.zero_()
    before = bytes_of(objective)
    monkeypatch.setattr(objective, "hidden", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        documents_leak(objective, 256)
    assert bytes_of(objective) == before
