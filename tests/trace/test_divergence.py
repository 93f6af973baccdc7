import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hybridizer.trace.divergence import js_divergence, kl_divergence, kl_from_uniform, log2_softmax


def log_probs(*rows):
    return log2_softmax(torch.tensor(rows).log())


def random_log_probs(seed, size=1000, scale=8.0):
    logits = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * scale
    return log2_softmax(logits)


def slow_js(log2_p, log2_q):
    p, q = log2_p.double().exp2(), log2_q.double().exp2()
    m = (p + q) / 2
    kl = [torch.where(x > 0, x * (x / m).log2(), 0.0).sum() for x in (p, q)]
    return float(sum(kl) / 2)


def test_log2_probabilities_are_those_of_the_softmax_and_never_below_the_floor():
    logits = torch.tensor([0.0, 1.0, -5.0, -200.0, -torch.inf])
    expected = torch.softmax(logits.double(), -1).log2().clamp_min(-126).float()
    torch.testing.assert_close(log2_softmax(logits), expected)
    assert log2_softmax(logits.half()).dtype == torch.float32


def test_js_of_the_same_numbers_is_exactly_zero_down_to_the_floor():
    assert js_divergence(random_log_probs(0), random_log_probs(0)) == 0
    tiny = log2_softmax(torch.tensor([0.0, -80.0, -87.0, -90.0, -torch.inf]))
    assert js_divergence(tiny, tiny) == 0


def test_js_of_disjoint_distributions_is_one_bit():
    assert js_divergence(log_probs([1, 0]), log_probs([0, 1])) == 1


def test_js_is_in_bits():
    # half of one distribution is shared: 1 - 3/4 * h(1/3) = 0.311278...
    assert float(js_divergence(log_probs([0.5, 0.5]), log_probs([1, 0]))) == pytest.approx(0.3112781, abs=1e-6)


@given(st.integers(0, 2**31), st.integers(0, 2**31), st.floats(0.01, 30))
def test_js_is_symmetric_bounded_and_the_double_precision_value(a, b, scale):
    p, q = random_log_probs(a, 50, scale), random_log_probs(b, 50, scale)
    js = float(js_divergence(p, q))
    assert 0 <= js <= 1
    assert js == pytest.approx(float(js_divergence(q, p)), abs=1e-6)
    assert js == pytest.approx(slow_js(p, q), abs=1e-6)  # float32 sums


def test_small_js_keeps_its_digits():
    p = random_log_probs(0, scale=1.0)
    q = p + 1e-3 * torch.randn(1000, generator=torch.Generator().manual_seed(1))
    assert float(js_divergence(p, q)) == pytest.approx(slow_js(p, q), rel=0.05)  # 1e-7 bits, at the rounding of float32


def test_js_broadcasts_over_blocks_and_axes(monkeypatch):
    p, q = random_log_probs(0), torch.stack([random_log_probs(seed) for seed in range(6)]).view(2, 3, 1000)
    one_by_one = [[float(js_divergence(p, q[i, j])) for j in range(3)] for i in range(2)]
    assert js_divergence(p, q).tolist() == one_by_one
    assert one_by_one[0][0] == 0 < one_by_one[0][1]
    monkeypatch.setattr("hybridizer.trace.divergence._BLOCK", 2000)
    assert js_divergence(p, q).tolist() == one_by_one


def test_nan_is_not_hidden():
    assert js_divergence(torch.tensor([torch.nan, 0.0]), torch.tensor([-0.7, -0.7])).isnan()


def test_kl_is_in_bits_of_one_from_each():
    p, q = log_probs([1, 0]), log_probs([1, 0], [0.25, 0.75], [0, 1])
    assert kl_divergence(p[0], q).tolist() == pytest.approx([0, 2, 126])  # 126 bits stand for infinity
    assert kl_divergence(p, q[None]).shape == (1, 3)


def test_kl_from_uniform_is_what_the_entropy_lacks():
    assert float(kl_from_uniform(log_probs([0.25] * 4))) == pytest.approx(0, abs=1e-6)
    assert float(kl_from_uniform(log_probs([1.0, 0, 0, 0]))) == pytest.approx(2)
