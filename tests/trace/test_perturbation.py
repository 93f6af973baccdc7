import pytest
import torch

from hybridizer.models.parts import arbitrary_ids, first_floating
from hybridizer.models.residual import last_rows, read_last_rows, read_outputs
from hybridizer.trace.perturbation import can_reuse_prefix, disturb, disturbed_finals, unit_noise
from support.marks import slow_except
from support.traced_donors import FAMILIES, load_tiny

SHARING = {"gemma3n_text"}  # later layers read keys and values of earlier ones


def test_noise_is_of_norm_one_at_every_position_and_a_prompts_own():
    noise = unit_noise((3, 5, 8), -3, [4, 5, 6])
    assert torch.linalg.vector_norm(noise, dim=-1) == pytest.approx(torch.ones(3, 5), abs=1e-6)
    assert torch.equal(unit_noise((1, 5, 8), -3, [5])[0], noise[1])
    assert not torch.equal(noise[0], noise[1])


def test_disturbance_has_the_norm_asked_for():
    hidden = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)) * 7
    changed = disturb(hidden, unit_noise(hidden.shape, -3, [0, 1]), 0.25)
    share = torch.linalg.vector_norm(changed - hidden, dim=-1) / torch.linalg.vector_norm(hidden, dim=-1)
    assert share == pytest.approx(torch.full((2, 5), 0.25), abs=1e-5)
    assert disturb(hidden.bfloat16(), unit_noise(hidden.shape, -3, [0, 1]), 0.25).dtype == torch.bfloat16


@pytest.mark.parametrize("family", slow_except(FAMILIES, "llama", "gemma3n_text"))
def test_starting_after_the_disturbed_layer_gives_what_the_full_run_gives(family, tmp_path):
    model, _, parts = load_tiny(family, tmp_path)
    ids = arbitrary_ids(model, 2, 6)
    assert can_reuse_prefix(model, parts) == (family not in SHARING)
    clean, full = disturbed_finals(model, parts, ids, 0.5, [1, 2], reuse_prefix=False)
    assert len(clean) == len(full) == parts.num_layers + 1
    assert all(torch.equal(a, b) for a, b in zip(clean, read_last_rows(model, parts, ids), strict=True))
    assert all(not torch.equal(final, clean[-1]) for final in full)
    if family not in SHARING:
        _, short = disturbed_finals(model, parts, ids, 0.5, [1, 2], reuse_prefix=True)
        assert all(torch.equal(a, b) for a, b in zip(short, full, strict=True))


def test_layers_that_share_more_than_the_residual_stream_in_silence_are_noticed(tmp_path):
    model, _, parts = load_tiny("llama", tmp_path)
    shared = {}
    model.model.embed_tokens.register_forward_hook(lambda *_: shared.clear())
    parts.layers[0].self_attn.register_forward_hook(lambda _m, _a, output: shared.update(extra=output[0]))
    parts.layers[2].register_forward_hook(lambda _m, _a, hidden: hidden + shared.get("extra", 0))
    assert not can_reuse_prefix(model, parts)


def test_a_disturbed_run_is_the_model_run_by_hand_from_there(tmp_path):
    model, _, parts = load_tiny("gpt2", tmp_path)
    ids = arbitrary_ids(model, 2, 6)
    with torch.no_grad():
        states = read_outputs(model, parts, ids, first_floating)
        hidden = disturb(states[2], unit_noise(states[2].shape, -3, [1, 2]), 0.5)
        for layer in parts.layers[2:]:
            hidden = first_floating(layer(hidden))
    _, finals = disturbed_finals(model, parts, ids, 0.5, [1, 2], reuse_prefix=True)
    torch.testing.assert_close(finals[2], last_rows(parts, hidden), rtol=0, atol=1e-5)


def test_layers_before_the_disturbed_one_do_not_run(tmp_path):
    model, _, parts = load_tiny("llama", tmp_path)
    calls = []
    for number, layer in enumerate(parts.layers):
        layer.self_attn.register_forward_hook(lambda *_, number=number: calls.append(number))
    disturbed_finals(model, parts, arbitrary_ids(model, 2, 6), 0.5, [1, 2], reuse_prefix=True)
    clean, whole = [0, 1, 2, 3], [0, 1, 2, 3]
    assert calls == [*clean, *whole, 1, 2, 3, 2, 3, 3]
