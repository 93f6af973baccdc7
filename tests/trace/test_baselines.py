"""The measures of other papers, against numbers worked out by hand."""

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hybridizer.core.errors import InputError
from hybridizer.models.parts import Parts, find_parts
from hybridizer.trace.baselines import score_activations, score_weights, signal_to_noise
from support.toys import NUM_WORDS, fresh

SINGULAR_VALUES = [8.0, 4.0, 3.0, 2.0]  # quartiles 2.75 and 5: sigma = 2.25 / 1.349 = 1.668


def matrix(rows, columns, values=SINGULAR_VALUES):
    """A matrix with these singular values, turned so that none stands on the diagonal."""
    torch.manual_seed(0)
    left = torch.linalg.qr(torch.randn(rows, rows))[0][:, : len(values)]
    right = torch.linalg.qr(torch.randn(columns, columns))[0][:, : len(values)]
    return left @ torch.diag(torch.tensor(values)) @ right.T


def test_the_ratio_of_a_square_matrix_by_hand():
    """The threshold is 1.668 x 2 = 3.336: signal 8 + 4, noise 3 + 2, divided by the largest, 8."""
    assert signal_to_noise(matrix(4, 4)) == pytest.approx((12 / 5) / 8, rel=1e-5)


@pytest.mark.parametrize("shape", [(4, 16), (16, 4)])
def test_the_ratio_of_a_long_matrix_by_hand(shape):
    """The threshold is 1.668 x (1 + sqrt(4 / 16)) = 2.502: signal 8 + 4 + 3, noise 2."""
    assert signal_to_noise(matrix(*shape)) == pytest.approx((15 / 2) / 8, rel=1e-5)


def test_a_matrix_without_noise_has_no_ratio():
    assert signal_to_noise(torch.eye(4)) is None  # all equal: sigma 0, everything is signal
    assert signal_to_noise(torch.zeros(4, 4)) is None


def test_half_precision_weights_are_taken_in_float32():
    assert signal_to_noise(matrix(4, 4).bfloat16()) == pytest.approx(0.3, rel=0.02)


def parts_of(layers, embedding=None):
    """The parts of a model of these layers, as find_parts would give them."""
    return Parts(
        layers=tuple(layers),
        layers_path="layers",
        embedding=embedding or nn.Embedding(8, 2),
        final_norm=None,
        head=None,
        batch_axis=-3,
        time_axis=-2,
        vocab_size=8,
        tuple_sizes=(0,) * len(layers),
    )


class Weights(nn.Module):
    def __init__(self, *tensors):
        super().__init__()
        for index, tensor in enumerate(tensors):
            setattr(self, f"w{index}", nn.Parameter(tensor, requires_grad=False))


def test_a_layer_is_the_median_over_its_matrices_and_every_expert_is_one():
    square, long = matrix(4, 4), matrix(4, 16)
    layers = (
        Weights(square, torch.ones(4)),
        Weights(square, long, torch.randn(4, 1, 3)),
        Weights(torch.stack([long, long]), square, torch.eye(4)),
        Weights(torch.ones(4)),
        Weights(torch.ones(4, 4, dtype=torch.uint8)),
    )
    reported = []
    scores = score_weights(parts_of(layers), reported.append)
    assert scores.values == (
        pytest.approx(0.3, rel=1e-5), pytest.approx((0.3 + 0.9375) / 2, rel=1e-5), pytest.approx(0.9375, rel=1e-5),
        None, None,
    )  # fmt: skip
    assert scores.intervals == (None,) * 5
    assert (scores.name, scores.source, sum(reported)) == ("snr", "Spectrum, arXiv 2406.06623", 5)


def test_weights_that_are_not_in_memory_are_refused():
    with pytest.raises(InputError, match="left on disk by the device map"):
        score_weights(parts_of((Weights(torch.empty(4, 4, device="meta")),)))


class Turn(nn.Module):
    """Turns the residual stream by an angle in its plane and scales it; with `last_only` at the last position alone."""

    def __init__(self, angle, scale=1.0, last_only=False):
        super().__init__()
        cos, sin = math.cos(angle), math.sin(angle)
        self.turn = scale * torch.tensor([[cos, sin], [-sin, cos]], dtype=torch.float64)
        self.last_only = last_only

    def forward(self, hidden):
        turned = hidden @ self.turn
        return torch.cat([hidden[:, :-1], turned[:, -1:]], dim=1) if self.last_only else turned


class Turner(nn.Module):
    """A language model of two-dimensional states that its layers turn."""

    def __init__(self, *layers):
        super().__init__()
        self.embedding = nn.Embedding(8, 2, dtype=torch.float64)
        self.layers = nn.ModuleList(layers)

    def forward(self, input_ids, attention_mask, use_cache):
        hidden = self.embedding(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return SimpleNamespace(logits=hidden)


def scored(*layers, prompts=((1, 2, 3, 4), (5, 6)), **options):
    model = Turner(*layers)
    return score_activations(model, parts_of(model.layers, model.embedding), prompts, **options)


def test_turned_states_by_hand():
    right, half = math.pi / 2, math.pi
    influence, distance = scored(Turn(0.0, scale=3.0), Turn(right), Turn(half), Turn(math.pi / 3, scale=0.1))
    assert influence.values == pytest.approx((0, 1, 2, 0.5), abs=1e-12)
    assert distance.values == pytest.approx((0, 0.5, 1, 1 / 3), abs=1e-12)


def test_one_looks_at_all_positions_and_the_other_at_the_last():
    """Two of six positions are turned by a right angle, and they are the last of their prompts."""
    influence, distance = scored(Turn(math.pi / 2, last_only=True))
    assert influence.values == pytest.approx((2 / 6,), abs=1e-12)
    assert distance.values == pytest.approx((0.5,), abs=1e-12)


def test_small_angles_are_measured_not_rounded():
    assert scored(Turn(1e-6))[1].values[0] == pytest.approx(1e-6 / math.pi, rel=1e-6)


def test_a_vector_of_zeros_is_at_a_right_angle():
    assert scored(Turn(0.0, scale=0.0))[0].values == pytest.approx((1,))


def test_the_interval_is_over_prompts():
    """Prompts whose one position is turned or not, half of each: 0.25 give or take 2 x 0.25 / sqrt(64)."""

    class Sometimes(nn.Module):
        def forward(self, hidden):
            turned = hidden @ Turn(math.pi / 2).turn
            return torch.where(torch.arange(len(hidden))[:, None, None] % 2 == 0, hidden, turned)

    reported = []
    influence, distance = scored(Sometimes(), prompts=[(1,)] * 64, advance=reported.append)
    assert sum(reported) == 64
    assert distance.values[0] == 0.25
    assert distance.intervals[0] == pytest.approx((0.25 - 0.061, 0.25 + 0.061), abs=0.012)
    assert influence.intervals[0] == pytest.approx((0.5 - 0.122, 0.5 + 0.122), abs=0.024)


def test_one_prompt_has_no_interval():
    assert scored(Turn(1.0), prompts=[(1, 2)])[0].intervals == (None,)


def test_batches_do_not_change_the_numbers():
    prompts = [(1, 2, 3), (4, 5), (6, 7, 1), (2, 2, 2), (3, 4)]
    layers = (Turn(0.3, last_only=True), Turn(1.0))
    torch.manual_seed(0)
    one = scored(*layers, prompts=prompts, batch_size=1)
    torch.manual_seed(0)
    assert scored(*layers, prompts=prompts, batch_size=64) == one


def test_a_real_model_agrees_with_its_own_hidden_states():
    """Against the states that transformers returns, of which the last is normed and so is left out."""
    model = fresh()
    prompts = [[1, 2, 3, 4, 5], [6, 7, 8], [NUM_WORDS - 1, 3, 9, 2, 11]]
    influence, distance = score_activations(model, find_parts(model), prompts)
    cosines = []
    for ids in prompts:
        states = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[:-1]
        cosines.append(torch.stack([torch.cosine_similarity(a[0], b[0], dim=-1) for a, b in pairwise(states)]))
    expected = 1 - torch.cat(cosines, dim=1).mean(dim=1)
    assert influence.values[:-1] == pytest.approx(expected.tolist(), abs=1e-6)
    last = torch.stack([cosine[:, -1] for cosine in cosines]).arccos().mean(dim=0) / math.pi
    assert distance.values[:-1] == pytest.approx(last.tolist(), abs=1e-5)
