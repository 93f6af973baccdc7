"""The closed-form fit on tiny random models: against plain least squares, and against running everything again."""

import copy

import pytest
import torch

from hybridizer.core.errors import InputError
from hybridizer.families.mixer_shapes import AttentionShape, mamba2_shape
from hybridizer.mixers.control import score_hybrid
from hybridizer.mixers.fit import DEFAULT, Equations, FitSettings, as_mixes, fit_mixers, new_mixers, solve
from hybridizer.mixers.make import make_module
from hybridizer.mixers.stream import find_attention, swapped
from hybridizer.models.parts import find_parts
from hybridizer.models.residual import read_outputs
from support.toys import fresh

IDS = torch.randint(0, 18, (8, 24), generator=torch.Generator().manual_seed(3))
ATTENTION = AttentionShape(hidden_size=48, num_heads=4, num_kv_heads=4, head_dim=12)
SHAPE = mamba2_shape(ATTENTION, chunk_size=8)
PLAIN = FitSettings(target="donor", normalised=False, ridge=1e-3, open_gate=False)


@pytest.fixture(scope="module")
def toy():
    model = fresh()
    for layer in model.model.layers:  # attention that matters as much as the rest
        layer.self_attn.o_proj.weight.mul_(20)
    return model, find_parts(model)


def fit(toy, layers, settings=DEFAULT, init="attention", seed=0, shape=SHAPE, ids=IDS):
    model, parts = toy
    return fit_mixers(model, parts, ids, layers, new_mixers(parts, "mamba2", init, shape, ATTENTION, seed), settings)


def read_attentions(toy, mixes):
    """What goes into and comes out of every attention of the model, mixers in place of some, from a whole run."""
    model, parts = toy
    taken, given, hooks = {}, {}, []
    for number in range(parts.num_layers):

        def read(_module, _args, kwargs, output, number=number):
            taken[number], given[number] = kwargs["hidden_states"], output[0]

        hooks.append(find_attention(parts, number).register_forward_hook(read, with_kwargs=True))
    with torch.no_grad(), swapped(parts, mixes):
        read_outputs(model, parts, IDS, lambda output: None)
    for hook in hooks:
        hook.remove()
    return taken, given


def features(mixer, hidden):
    module, found = make_module(SHAPE, mixer.tensors), []
    module.out_proj.register_forward_pre_hook(lambda _module, args: found.append(args[0]))
    with torch.no_grad():
        module(hidden)
    return found[0].flatten(0, 1).double()


def test_carrying_the_streams_gives_the_least_squares_solution_of_whole_runs(toy):
    fitted = fit(toy, [1, 2], PLAIN)
    targets = read_attentions(toy, {})[1]
    for number, mixer in enumerate(fitted):
        below = as_mixes(fitted[:number])
        x = features(mixer, read_attentions(toy, below)[0][mixer.layer])
        y = targets[mixer.layer].flatten(0, 1).double()
        penalty = (1e-3 * x.square().sum() / x.shape[1]).sqrt() * torch.eye(x.shape[1], dtype=x.dtype)
        stacked = torch.linalg.lstsq(torch.cat([x, penalty]), torch.cat([y, torch.zeros(len(penalty), 48)])).solution
        weight = mixer.tensors["mamba.out_proj.weight"].double()
        torch.testing.assert_close(weight, stacked.T, atol=1e-5, rtol=1e-4)  # float32 streams of another batch size
        explained = 1 - (x @ weight.T - y).square().sum() / y.square().sum()
        assert mixer.explained == pytest.approx(float(explained), abs=1e-5)


@pytest.mark.slow
def test_the_stream_is_the_target_that_makes_up_for_the_layers_beneath(toy):
    model, parts = toy

    def deviation(target):
        settings = FitSettings(target=target, normalised=False, ridge=1e-5)
        fitted = fit(toy, [0, 1, 2], settings)
        donor = read_outputs(model, parts, IDS, lambda output: output)
        with swapped(parts, as_mixes(fitted)):
            own = read_outputs(model, parts, IDS, lambda output: output)
        return float((own[3] - donor[3]).square().sum())

    assert deviation("stream") < deviation("donor")


def test_a_fitted_mixer_is_closer_to_the_donor_than_no_attention_at_all(toy):
    model, parts = toy
    fitted = fit(toy, [0, 2])
    donor = read_outputs(model, parts, IDS, lambda output: output)[-1]
    errors = {}
    for name, mixes in (("fitted", as_mixes(fitted)), ("dropped", {0: torch.zeros_like, 2: torch.zeros_like})):
        with torch.no_grad(), swapped(parts, mixes):
            errors[name] = float((read_outputs(model, parts, IDS, lambda o: o)[-1] - donor).square().mean())
    assert errors["fitted"] < 0.7 * errors["dropped"]
    assert all(0 < mixer.explained_heldout < mixer.explained < 1 for mixer in fitted)


def test_the_fit_is_the_same_again_and_another_with_another_seed(toy):
    first, again, other = fit(toy, [1], PLAIN), fit(toy, [1], PLAIN), fit(toy, [1], PLAIN, seed=9)
    assert all(torch.equal(first[0].tensors[name], again[0].tensors[name]) for name in first[0].tensors)
    assert not torch.equal(first[0].tensors["mamba.out_proj.weight"], other[0].tensors["mamba.out_proj.weight"])


def test_a_model_in_bfloat16_gets_float32_mixers_that_run_in_it(toy):
    model = copy.deepcopy(toy[0]).to(torch.bfloat16)
    low = (model, find_parts(model))
    fitted = fit(low, [0, 2])
    assert {tensor.dtype for mixer in fitted for tensor in mixer.tensors.values()} == {torch.float32}
    score = score_hybrid(*low, IDS, as_mixes(fitted))
    assert 0 < score.kl < score.kl_dropped and score.helps


def test_the_model_is_left_as_it_was(toy):
    model, _ = toy
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fit(toy, [1, 3])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any("forward" in vars(module) for module in model.modules())


def test_an_open_gate_lets_every_channel_see_about_the_same_constant(toy):
    mixer = fit(toy, [1])[0]
    gate = mixer.tensors["mamba.in_proj.weight"][: SHAPE.inner_size]
    assert torch.equal(gate, gate[:1].expand_as(gate)) and gate.any()
    assert not torch.equal(*(fit(toy, [1], PLAIN)[0].tensors["mamba.in_proj.weight"][row] for row in (0, 1)))


def test_an_intercept_is_not_penalised_and_weights_are_repeated_rows():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 3, generator=generator), torch.randn(40, 2, generator=generator) + 100
    counts = torch.arange(40) % 3
    weighted, repeated, empty = Equations(True), Equations(True), Equations(True)
    weighted.add_(x, y, counts.float())
    repeated.add_(x.repeat_interleave(counts, 0), y.repeat_interleave(counts, 0))
    for a, b in zip(weighted.solve(0.1), repeated.solve(0.1), strict=True):
        torch.testing.assert_close(a, b)
    huge = weighted.solve(1e9)
    torch.testing.assert_close(huge[1], (y * counts[:, None]).double().sum(0) / counts.sum(), atol=1e-4, rtol=1e-6)
    assert repeated.explained(repeated.solve(0.0)) >= repeated.explained(huge) > 0.99
    assert empty.plus(weighted).num_rows == counts.sum()


def test_the_ridge_is_the_one_that_explains_most_of_what_is_held_out():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(30, 4, generator=generator)

    def rows(count, noise):
        x = torch.randn(count, 30, generator=generator)
        return x, x @ truth + noise * torch.randn(count, 4, generator=generator)

    chosen = []
    for noise in (0.0, 30.0):
        rest, held = Equations(False), Equations(False)
        rest.add_(*rows(36, noise))
        held.add_(*rows(400, noise))
        chosen.append(solve(rest, held, None)[2][2])
    assert chosen[0] == 1e-5 and chosen[1] == 1.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layers": [1, 4]}, r"there are no layers \[4\]"),
        ({"layers": []}, "no layer is named"),
        ({"layers": [1], "ids": IDS[:1]}, "1 windows, and a fit needs 2"),
    ],
)
def test_what_cannot_be_fitted_is_refused(toy, arguments, words):
    with pytest.raises(InputError, match=words):
        fit(toy, **arguments)


def test_layers_without_attention_are_named(toy):
    class Bare:
        layers = (torch.nn.Sequential(torch.nn.Linear(2, 2)),)

    with pytest.raises(InputError, match="layer 0: no module with q_proj, k_proj, v_proj, o_proj"):
        find_attention(Bare(), 0)
