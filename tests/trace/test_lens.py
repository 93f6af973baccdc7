"""The identity the whole tracer stands on: the last lens row is the model's own next-token distribution."""

import pytest
import torch

from hybridizer.core.errors import DonorError
from hybridizer.models.parts import arbitrary_ids, run_model
from hybridizer.models.residual import bare_outputs, read_last_rows, read_outputs, replaced
from hybridizer.trace.divergence import log2_softmax
from hybridizer.trace.lens import Lens, check_lens
from support.traced_donors import FAMILIES, load_tiny


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_lens_row_is_the_models_own_next_token_distribution(family, tmp_path):
    model, _, parts = load_tiny(family, tmp_path)
    check_lens(model, parts)
    ids = arbitrary_ids(model, 3, 11)
    with torch.no_grad():
        own = log2_softmax(run_model(model, ids)[:, -1])
        hidden = read_last_rows(model, parts, ids)
        lens = Lens(model, parts).layer_log2_probs(hidden)
    assert lens.shape == (3, parts.num_layers + 1, parts.vocab_size)
    # Not always bit for bit: 15 rows through the head are summed in another order than 3 x 11.
    torch.testing.assert_close(lens[:, -1], own, rtol=0, atol=2e-6)
    assert not torch.allclose(lens[:, 0], own, atol=1e-3)


def test_given_its_own_last_states_the_model_computes_its_own_logits_bit_for_bit(tmp_path):
    model, _, parts = load_tiny("gemma2", tmp_path)
    ids = arbitrary_ids(model, 3, 11)
    with torch.no_grad():
        own = run_model(model, ids)
        final = read_outputs(model, parts, ids, lambda output: output)[-1]
        with replaced(parts, bare_outputs(parts, final)):
            assert torch.equal(run_model(model, ids.flip(0, 1)), own)
        assert torch.equal(run_model(model, ids), own)  # and nothing is left of the surgery


def test_states_are_those_that_transformers_reports(tmp_path):
    model, _, parts = load_tiny("llama", tmp_path)
    ids = arbitrary_ids(model, 2, 9)
    with torch.no_grad():
        reported = model(input_ids=ids, output_hidden_states=True).hidden_states
        read = read_last_rows(model, parts, ids)
        assert torch.equal(model.model.norm(read[-1]), reported[-1][:, -1])  # its last entry is normed already
    for ours, theirs in zip(read[:-1], reported[:-1], strict=True):
        assert torch.equal(ours, theirs[:, -1])


def test_reading_leaves_no_hook_behind_and_ends_before_the_tail(tmp_path):
    model, _, parts = load_tiny("llama", tmp_path)
    model.lm_head.register_forward_hook(lambda *_: pytest.fail("the head ran"))
    with torch.no_grad():
        read_last_rows(model, parts, arbitrary_ids(model, 2, 9))
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in parts.layers)


def test_a_layer_with_a_forward_of_its_own_gets_it_back(tmp_path):
    """accelerate's device maps put a `forward` on each instance."""
    _, _, parts = load_tiny("llama", tmp_path)
    layer = parts.layers[1]
    layer.forward = own = layer.forward
    with replaced(parts, [None] * 4):
        assert layer.forward is not own
    assert vars(layer)["forward"] is own
    assert "forward" not in vars(parts.layers[0])


def test_layers_get_their_forward_back_after_an_error(tmp_path):
    _, _, parts = load_tiny("llama", tmp_path)
    with pytest.raises(KeyError), replaced(parts, [None] * 4):
        raise KeyError
    assert not any("forward" in vars(layer) for layer in parts.layers)


def test_a_model_whose_tail_reads_more_than_the_last_layer_is_refused(tmp_path):
    model, _, parts = load_tiny("llama", tmp_path)
    norm = model.model.norm
    embedded = []
    model.model.embed_tokens.register_forward_hook(lambda _m, _a, output: embedded.append(output))
    norm.register_forward_hook(lambda _m, _a, output: output + embedded[-1])
    with pytest.raises(DonorError, match="depend on more than the output of the last layer"):
        check_lens(model, parts)


def test_a_model_whose_tail_mixes_positions_is_refused(tmp_path):
    model, _, parts = load_tiny("llama", tmp_path)
    model.model.norm.register_forward_hook(lambda _m, _a, output: output + output.mean(1, keepdim=True))
    with pytest.raises(DonorError, match="depend on other positions after the last layer"):
        check_lens(model, parts)


def test_a_model_that_computes_nan_is_refused(tmp_path):
    model, _, parts = load_tiny("llama", tmp_path)
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(DonorError, match="its logits are not numbers in torch.float32"):
        check_lens(model, parts)
