"""Distillation through the head in chunks, against the same loss of full logits in plain torch."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from hybridizer.models import distill
from hybridizer.models.distill import Distillation, Divergence
from hybridizer.models.loss import IGNORED, NextToken, chunked_loss

TOKENS, WIDTH, VOCABULARY = 37, 24, 301


class SoftCapped(nn.Module):
    """A head as Gemma and Cohere have them: scaled, biased, capped."""

    def __init__(self, width=WIDTH):
        super().__init__()
        self.linear = nn.Linear(width, VOCABULARY)

    def forward(self, hidden):
        return 5 * torch.tanh(self.linear(hidden) * 0.7 / 5)


HEADS = {"bare": lambda width: nn.Linear(width, VOCABULARY, bias=False), "capped": SoftCapped}
KINDS = [
    Divergence(),
    Divergence("reverse"),
    Divergence("forward", 2.5, 0.6),
    Divergence("reverse", 0.5, 0.3),
    Divergence("forward", 4.0),
    Divergence("reverse", 1.0, 0.0),
]


def case(kind="bare", dtype=torch.float32):
    torch.manual_seed(0)
    head, teacher = HEADS[kind](WIDTH).to(dtype), HEADS[kind](16).to(dtype)
    hidden = torch.randn(TOKENS, WIDTH, dtype=dtype, requires_grad=True)
    theirs = torch.randn(TOKENS, 16, dtype=dtype)
    targets = torch.randint(VOCABULARY, (TOKENS,))
    targets[[0, 5, 36]] = IGNORED
    return head, hidden, teacher, theirs, targets


def plain_terms(ours, theirs, targets, divergence):
    """-ln p(target) and the divergence of every counted token, from full logits, as the definitions say."""
    log_q, log_p = (functional.log_softmax(logits / divergence.temperature, -1) for logits in (ours, theirs))
    pair = (log_q, log_p) if divergence.direction == "forward" else (log_p, log_q)
    kl = functional.kl_div(*pair, log_target=True, reduction="none").sum(-1)
    next_token = functional.cross_entropy(ours, targets, ignore_index=IGNORED, reduction="none")
    return next_token, torch.where(targets == IGNORED, 0, kl)


def plain_loss(ours, theirs, targets, divergence):
    next_token, kl = plain_terms(ours, theirs, targets, divergence)
    weight = divergence.weight
    return ((1 - weight) * next_token + weight * divergence.temperature**2 * kl).sum()


def chunked(head, hidden, teacher, theirs, targets, divergence, chunk_tokens=7):
    criterion = Distillation(targets, divergence, theirs, teacher)
    return chunked_loss(hidden, head, list(head.parameters()), criterion, 4 * VOCABULARY * chunk_tokens)


@pytest.mark.parametrize("chunk_tokens", [1, 7, 64])
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("divergence", KINDS, ids=str)
def test_value_terms_and_gradients_are_those_of_full_logits_in_float64(monkeypatch, divergence, kind, chunk_tokens):
    monkeypatch.setitem(distill.PIECE, "cpu", 3 * VOCABULARY)
    head, hidden, teacher, theirs, targets = case(kind)
    loss, terms = chunked(head, hidden, teacher, theirs, targets, divergence, chunk_tokens)
    ours = torch.autograd.grad(0.3 * loss, [hidden, *head.parameters()])
    exact_head, exact_teacher = head.double(), teacher.double()
    exact = hidden.detach().double().requires_grad_(True)
    logits, given = exact_head(exact), exact_teacher(theirs.double()).detach()
    expected = plain_loss(logits, given, targets, divergence)
    assert loss.item() == pytest.approx(expected.item(), rel=2e-6)
    for found, plain in zip(terms, plain_terms(logits, given, targets, divergence), strict=True):
        torch.testing.assert_close(found.double(), plain, rtol=1e-5, atol=1e-6)
    for our, their in zip(ours, torch.autograd.grad(0.3 * expected, [exact, *exact_head.parameters()]), strict=True):
        torch.testing.assert_close(our.double(), their, rtol=1e-5, atol=2e-6 * float(their.abs().max()) + 1e-7)


@pytest.mark.parametrize("kind", HEADS)
def test_bfloat16_stays_within_its_own_rounding_of_float32(kind, monkeypatch):
    monkeypatch.setattr("hybridizer.models.hardware.has_bfloat16", lambda device: True)
    divergence = Divergence("forward", 2.0, 0.5)
    head, hidden, teacher, theirs, targets = case(kind, torch.bfloat16)
    loss, _ = chunked(head, hidden, teacher, theirs, targets, divergence)
    ours = torch.autograd.grad(loss, [hidden, *head.parameters()])
    exact = plain_loss(head(hidden).float(), teacher(theirs).float(), targets, divergence)
    torch.testing.assert_close(loss, exact, rtol=1e-5, atol=0)
    for our, their in zip(ours, torch.autograd.grad(exact, [hidden, *head.parameters()]), strict=True):
        assert our.dtype == torch.bfloat16
        assert (our - their).float().norm() <= 2**-7 * their.float().norm()


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_a_student_that_is_its_teacher_has_no_divergence_and_no_gradient(direction):
    head, hidden, _, _, targets = case()
    loss, terms = chunked(head, hidden, head, hidden, targets, Divergence(direction, 2.0))
    loss.backward()
    assert abs(loss.item()) < 1e-5 and float(terms[1].abs().max()) < 1e-6
    assert float(hidden.grad.abs().max()) < 1e-6


@pytest.mark.parametrize("kind", HEADS)
def test_neither_models_full_logits_exist(kind):
    head, hidden, teacher, theirs, targets = case(kind)
    seen = []
    for module in (head, teacher):
        module.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape[0]))
    criterion = Distillation(targets, Divergence(), theirs, teacher)
    chunked_loss(hidden, head, list(head.parameters()), criterion, 4 * VOCABULARY * 8)
    assert max(seen, default=0) <= 8 and len(criterion._buffer) <= 4


def test_the_teacher_gets_no_gradient_and_keeps_its_bytes():
    head, hidden, teacher, theirs, targets = case()
    before = teacher.weight.detach().clone()
    theirs.requires_grad_(True)
    chunked(head, hidden, teacher, theirs, targets, Divergence())[0].backward()
    assert teacher.weight.grad is None and theirs.grad is None
    assert torch.equal(teacher.weight, before)


def test_hopeless_tokens_have_a_finite_loss():
    head, hidden, teacher, theirs, targets = case()
    head.weight.data[3] = 1e4
    for direction in ("forward", "reverse"):
        loss, _ = chunked(head, hidden, teacher, theirs, targets, Divergence(direction, 1.0, 0.5))
        assert torch.isfinite(loss) and torch.isfinite(torch.autograd.grad(loss, hidden)[0]).all()


def peak_bytes(run):
    """The most bytes of tensors that are alive at one time while `run` runs, beyond those before it."""
    with torch.profiler.profile(profile_memory=True) as profile:
        run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


@pytest.mark.slow
def test_beyond_the_next_tokens_loss_it_holds_half_a_chunk_of_logits_and_a_few_pieces(monkeypatch):
    piece = 4 * 4 * VOCABULARY
    monkeypatch.setitem(distill.PIECE, "cpu", piece // 4)
    head, teacher = (nn.Linear(WIDTH, VOCABULARY, bias=False) for _ in range(2))
    hidden, theirs = torch.randn(2048, WIDTH, requires_grad=True), torch.randn(2048, WIDTH)
    targets, chunk = torch.randint(VOCABULARY, (2048,)), 4 * VOCABULARY * 128
    peaks = []
    for criterion in (
        NextToken(targets),
        Distillation(targets, Divergence("forward", 2.0, 0.5), theirs, teacher),
        Distillation(targets, Divergence("reverse"), theirs, teacher),
    ):
        peaks.append(peak_bytes(lambda c=criterion: chunked_loss(hidden, head, [head.weight], c, chunk)[0].backward()))
        hidden.grad = head.weight.grad = None
    plain, *others = peaks
    assert plain > chunk  # what is measured
    assert all(chunk / 2 <= other - plain <= chunk / 2 + 8 * piece for other in others), peaks
