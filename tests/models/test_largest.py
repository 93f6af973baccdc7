"""The divergence from a teacher's k largest next tokens and the rest, against the same in plain torch by autograd."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from hybridizer.models import distill
from hybridizer.models.distill import Distillation, Divergence
from hybridizer.models.largest import Largest, LargestOnly, keep_largest
from hybridizer.models.loss import IGNORED, chunked_loss

TOKENS, WIDTH, VOCABULARY = 23, 24, 301
KINDS = [Divergence(), Divergence("reverse"), Divergence("forward", 2.5, 0.6), Divergence("reverse", 0.5, 0.3)]


def case(spread=4.0):
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, VOCABULARY, bias=False)
    theirs = spread * torch.randn(TOKENS, VOCABULARY)
    targets = torch.randint(VOCABULARY, (TOKENS,))
    targets[[0, 5]] = IGNORED
    return head, torch.randn(TOKENS, WIDTH, requires_grad=True), theirs, targets


def terms_in_plain_torch(ours, largest, targets, divergence):
    """-ln p(target), and the divergence over k + 1 events, of every counted token."""
    ids, log_p = largest.ids.long(), largest.log_p.double().log_softmax(-1)
    q = (ours / divergence.temperature).softmax(-1)
    kept = q.gather(-1, ids)
    log_q = torch.cat([kept, 1 - kept.sum(-1, keepdim=True)], -1).log()
    first, second = (log_p, log_q) if divergence.direction == "forward" else (log_q, log_p)
    counted = targets != IGNORED
    next_token = -ours.log_softmax(-1).gather(-1, targets.clamp_min(0)[:, None])[:, 0]
    return next_token * counted, (first.exp() * (first - second)).sum(-1) * counted


def through(head, hidden, criterion):
    loss, terms = chunked_loss(hidden, head, [head.weight], criterion, 4 * VOCABULARY * 7)
    return loss.detach(), terms, torch.autograd.grad(0.3 * loss, [hidden, head.weight])


@pytest.mark.parametrize("k", [1, 8, 300])
@pytest.mark.parametrize("divergence", KINDS, ids=str)
def test_value_terms_and_gradients_are_those_of_plain_torch_in_float64(monkeypatch, divergence, k):
    monkeypatch.setitem(distill.PIECE, "cpu", 3 * VOCABULARY)
    head, hidden, theirs, targets = case()
    largest = keep_largest(theirs, k, divergence.temperature)
    loss, terms, gradients = through(head, hidden, LargestOnly(targets, divergence, largest))
    exact, weight = hidden.detach().double().requires_grad_(True), head.weight.detach().double().requires_grad_(True)
    plain = terms_in_plain_torch(exact @ weight.T, largest, targets, divergence)
    mixed = divergence.weight * divergence.temperature**2 * plain[1] + (1 - divergence.weight) * plain[0]
    torch.testing.assert_close(loss.double(), mixed.sum().detach(), rtol=2e-6, atol=0)
    torch.testing.assert_close(terms.double(), torch.stack(plain).detach(), rtol=1e-4, atol=1e-5)
    for our, their in zip(gradients, torch.autograd.grad(0.3 * mixed.sum(), [exact, weight]), strict=True):
        torch.testing.assert_close(our.double(), their, rtol=1e-4, atol=2e-6 * float(their.abs().max()) + 1e-7)


@pytest.mark.parametrize("divergence", KINDS, ids=str)
def test_the_whole_vocabulary_kept_is_distillation_from_full_logits_within_float16(divergence):
    head, hidden, theirs, targets = case()
    largest = keep_largest(theirs, VOCABULARY, divergence.temperature)
    kept = through(head, hidden, LargestOnly(targets, divergence, largest))
    whole = through(head, hidden, Distillation(targets, divergence, theirs, lambda logits: logits))
    torch.testing.assert_close(kept[0], whole[0], rtol=2e-3, atol=0)  # -ln p to 11 bits
    for our, their in zip(kept[2], whole[2], strict=True):
        assert (our - their).norm() <= 4e-3 * their.norm()


@pytest.mark.parametrize("divergence", KINDS[:2], ids=str)
def test_the_divergence_is_a_lower_bound_that_rises_with_k(divergence):
    head, hidden, theirs, targets = case(1.0)
    found = []
    for k in (1, 4, 32, VOCABULARY):
        largest = keep_largest(theirs, k, 1.0)
        largest = Largest(largest.ids, exact_log_p(theirs, largest.ids))
        found.append(through(head, hidden, LargestOnly(targets, divergence, largest))[1][1])
    assert all(bool((less <= more + 1e-5).all()) for less, more in pairwise(found))
    whole = through(head, hidden, Distillation(targets, divergence, theirs, lambda logits: logits))[1][1]
    torch.testing.assert_close(found[-1], whole, rtol=1e-5, atol=1e-6)
    assert float((whole - found[0]).max()) > 0.1


def exact_log_p(logits, ids):
    """What `keep_largest` rounds to float16, in float32."""
    log_p = logits.log_softmax(-1)
    rest = log_p.scatter(-1, ids.long(), -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([log_p.gather(-1, ids.long()), rest], -1).clamp_min(-60_000)


def test_what_is_kept_are_the_most_likely_tokens_at_the_temperature_and_the_mass_of_the_others():
    theirs = case()[2]
    largest = keep_largest(theirs.clone(), 8, 2.0)
    p = (theirs / 2).softmax(-1)
    assert largest.ids.dtype == torch.int32 and largest.log_p.dtype == torch.float16
    torch.testing.assert_close(largest.log_p[:, :-1].float().exp(), p.topk(8).values, rtol=4e-3, atol=0)
    torch.testing.assert_close(largest.log_p.float().exp().sum(-1), torch.ones(TOKENS), rtol=4e-3, atol=0)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_hopeless_tokens_have_a_finite_loss(direction):
    head, hidden, theirs, targets = case()
    head.weight.data[3] = 1e4
    theirs[:, 4] = 1e5  # all of the teacher's mass
    for k in (2, VOCABULARY):
        criterion = LargestOnly(targets, Divergence(direction, 1.0, 0.5), keep_largest(theirs.clone(), k, 1.0))
        loss, _, gradients = through(head, hidden, criterion)
        assert torch.isfinite(loss) and all(torch.isfinite(gradient).all() for gradient in gradients)
