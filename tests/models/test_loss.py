import pytest
import torch
from torch import nn
from torch.nn import functional

from hybridizer.models.loss import IGNORED, PIECE_BYTES, NextToken, chunked_loss, loss_chunk_bytes, token_losses

TOKENS, WIDTH, VOCABULARY = 37, 24, 301


class SoftCapped(nn.Module):
    """A head as Gemma and Cohere have them: scaled, biased, capped."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, hidden):
        return 5 * torch.tanh(self.linear(hidden) * 0.7 / 5)


def case(head, dtype=torch.float32):
    torch.manual_seed(0)
    head = head.to(dtype)
    hidden = torch.randn(TOKENS, WIDTH, dtype=dtype, requires_grad=True)
    targets = torch.randint(VOCABULARY, (TOKENS,))
    targets[[0, 5, 36]] = IGNORED
    return head, hidden, targets


def cross_entropy_sum(hidden, head, parameters, targets, **options):
    return chunked_loss(hidden, head, parameters, NextToken(targets), **options)[0]


def gradients(loss, head, hidden):
    return torch.autograd.grad(loss, [hidden, *head.parameters()])


@pytest.mark.parametrize("chunk_tokens", [1, 7, 64])
@pytest.mark.parametrize("make_head", [lambda: nn.Linear(WIDTH, VOCABULARY, bias=False), SoftCapped])
def test_value_and_gradients_are_those_of_torch_cross_entropy(make_head, chunk_tokens):
    head, hidden, targets = case(make_head())
    loss = cross_entropy_sum(hidden, head, list(head.parameters()), targets, chunk_bytes=4 * VOCABULARY * chunk_tokens)
    expected = functional.cross_entropy(head(hidden), targets, ignore_index=IGNORED, reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    ours, theirs = gradients(0.3 * loss, head, hidden), gradients(0.3 * expected, head, hidden)
    for our, their in zip(ours, theirs, strict=True):
        # Two float32 sums of a few hundred terms of size 1 in another order.
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make_head", [lambda: nn.Linear(WIDTH, VOCABULARY, bias=False), SoftCapped])
def test_bfloat16_stays_within_its_own_rounding_of_float32(make_head, monkeypatch):
    monkeypatch.setattr("hybridizer.models.hardware.has_bfloat16", lambda device: True)
    head, hidden, targets = case(make_head(), torch.bfloat16)
    loss = cross_entropy_sum(hidden, head, list(head.parameters()), targets)
    assert loss.dtype == torch.float32
    ours = gradients(loss, head, hidden)
    exact = functional.cross_entropy(head(hidden).float(), targets, ignore_index=IGNORED, reduction="sum")
    torch.testing.assert_close(loss, exact, rtol=1e-5, atol=0)
    for our, their in zip(ours, gradients(exact, head, hidden), strict=True):
        assert our.dtype == torch.bfloat16
        # bfloat16 keeps 8 bits: one rounding of the slopes (2**-8) and one of the sum.
        assert (our - their).float().norm() <= 2**-7 * their.float().norm()


def test_bfloat16_that_would_be_emulated_computes_in_float32(monkeypatch):
    monkeypatch.setattr("hybridizer.models.hardware.has_bfloat16", lambda device: False)
    head, hidden, targets = case(nn.Linear(WIDTH, VOCABULARY, bias=False), torch.bfloat16)
    loss = cross_entropy_sum(hidden, head, list(head.parameters()), targets)
    logits = functional.linear(hidden.float(), head.weight.float())
    exact = functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
    torch.testing.assert_close(loss, exact, rtol=1e-6, atol=0)
    for our, their in zip(gradients(loss, head, hidden), gradients(exact, head, hidden), strict=True):
        assert our.dtype == torch.bfloat16
        torch.testing.assert_close(our, their, rtol=2**-7, atol=1e-6)  # one rounding of two float32 sums


@pytest.mark.parametrize("make_head", [lambda: nn.Linear(WIDTH, VOCABULARY, bias=False), SoftCapped])
def test_losses_of_single_tokens_are_those_of_torch_a_few_tokens_at_a_time(make_head):
    head, hidden, _ = case(make_head())
    targets = torch.arange(TOKENS)
    seen = []
    hook = head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[0]))
    found = token_losses(hidden, head, targets, chunk_bytes=4 * VOCABULARY * 8)
    hook.remove()
    torch.testing.assert_close(found, functional.cross_entropy(head(hidden), targets, reduction="none"))
    assert max(seen) == 8 and found.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_of_single_tokens_are_those_of_all_logits_at_once_bit_for_bit(dtype):
    vocabulary = 1 + PIECE_BYTES // (4 * 8)  # 7 tokens to a piece
    head, hidden, _ = case(nn.Linear(WIDTH, vocabulary, bias=False).to(dtype), dtype)
    targets = torch.arange(TOKENS) * 997 % vocabulary
    expected = functional.cross_entropy(head(hidden).float(), targets, reduction="none")
    assert torch.equal(token_losses(hidden, head, targets), expected) and len(set(expected.tolist())) == TOKENS


def test_the_size_of_a_linear_head_is_not_found_by_running_it():
    head, hidden, _ = case(nn.Linear(WIDTH, VOCABULARY, bias=False))
    rows = []
    head.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    token_losses(hidden, head, torch.arange(TOKENS))
    assert rows == [TOKENS]


def test_losses_of_single_tokens_take_little_memory_beside_the_logits(monkeypatch):
    sizes = []
    plain = functional.cross_entropy
    monkeypatch.setattr(functional, "cross_entropy", lambda x, *a, **b: (sizes.append(x.nbytes), plain(x, *a, **b))[1])
    monkeypatch.setattr("hybridizer.models.loss.PIECE_BYTES", 4 * VOCABULARY * 3)
    head, hidden, _ = case(nn.Linear(WIDTH, VOCABULARY, bias=False))
    token_losses(hidden, head, torch.arange(TOKENS))
    assert max(sizes) == 4 * VOCABULARY * 3


def test_the_same_input_gives_the_same_bits():
    head, hidden, targets = case(nn.Linear(WIDTH, VOCABULARY, bias=False))
    runs = []
    for _ in range(2):
        loss = cross_entropy_sum(hidden, head, list(head.parameters()), targets, chunk_bytes=4 * VOCABULARY * 8)
        runs.append((loss, *gradients(loss, head, hidden)))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_a_frozen_head_gets_no_gradient_and_none_is_computed():
    head, hidden, targets = case(nn.Linear(WIDTH, VOCABULARY, bias=False))
    head.requires_grad_(False)
    cross_entropy_sum(hidden, head, list(head.parameters()), targets).backward()
    assert head.weight.grad is None
    assert hidden.grad.abs().sum() > 0


def test_a_low_precision_frozen_head_serves_float32_activations():
    head, hidden, targets = case(nn.Linear(WIDTH, VOCABULARY, bias=False))
    low = nn.Linear(WIDTH, VOCABULARY, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    head.weight.data = low.weight.float()
    same = cross_entropy_sum(hidden, low, [low.weight], targets)
    assert torch.equal(same, cross_entropy_sum(hidden, head, [head.weight], targets))


def test_ignored_tokens_have_no_loss_and_no_gradient():
    head, hidden, _ = case(nn.Linear(WIDTH, VOCABULARY, bias=False))
    loss = cross_entropy_sum(hidden, head, [head.weight], torch.full((TOKENS,), IGNORED))
    loss.backward()
    assert loss == 0 and not hidden.grad.any() and not head.weight.grad.any()


def test_hopeless_tokens_have_a_finite_loss():
    head = nn.Linear(WIDTH, VOCABULARY, bias=False)
    head.weight.data.zero_()
    head.weight.data[3] = 1e4
    loss = cross_entropy_sum(torch.ones(1, WIDTH), head, [head.weight], torch.tensor([4]))
    assert loss == WIDTH * 1e4


def test_no_gradient_work_without_gradients():
    head, hidden, targets = case(nn.Linear(WIDTH, VOCABULARY, bias=False))
    with torch.no_grad():
        silent = cross_entropy_sum(hidden, head, [head.weight], targets)
    assert torch.equal(silent, cross_entropy_sum(hidden, head, [head.weight], targets).detach())


def test_all_logits_never_exist_at_once(monkeypatch):
    head, hidden, targets = case(SoftCapped())
    seen = []
    head.linear.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[0]))
    cross_entropy_sum(hidden, head, list(head.parameters()), targets, chunk_bytes=4 * VOCABULARY * 8)
    assert max(seen) == 8 and sum(seen) == TOKENS + 1  # one token asks how wide the vocabulary is


def test_logits_held_at_a_time_fit_the_cache_of_a_cpu_and_fill_a_gpu():
    assert loss_chunk_bytes(torch.device("cpu")) == 64 * 2**20
    assert loss_chunk_bytes(torch.device("cuda", 1)) == 1024 * 2**20
