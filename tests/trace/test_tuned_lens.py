import dataclasses

import pytest
import torch
from safetensors import safe_open

from hybridizer.core.errors import InputError
from hybridizer.models.residual import read_last_rows
from hybridizer.models.ridge import ridge_map
from hybridizer.trace.divergence import kl_divergence
from hybridizer.trace.lens import Lens
from hybridizer.trace.tuned_lens import (
    TunedLensSettings,
    builtin_text,
    fit_tuned_lens,
    obtain_tuned_lens,
    read_training_rows,
)
from support.traced_donors import load_tiny, spread

SMALL = TunedLensSettings(num_tokens=600, num_held_out=100, window_tokens=32, skip_tokens=4, num_steps=10)
TEXT = builtin_text()[:60_000]


@pytest.fixture
def donor(tmp_path):
    model, tokenizer, parts = load_tiny("llama", tmp_path)
    return spread(model), tokenizer, parts


def obtain(donor, folder, text=TEXT, fingerprint="sha256:1", settings=SMALL, **options):
    model, tokenizer, parts = donor
    return obtain_tuned_lens(model, tokenizer, parts, fingerprint, text, folder, settings, **options)


def test_ridge_finds_the_affine_map_that_made_the_data():
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(6, 6, generator=generator), torch.randn(6, generator=generator)
    x = torch.randn(500, 6, generator=generator) + 3
    found_weight, found_bias = ridge_map(x, x + x @ weight + bias, ridge=1e-7)
    torch.testing.assert_close(found_weight, weight, rtol=0, atol=1e-4)
    torch.testing.assert_close(found_bias, bias, rtol=0, atol=1e-3)


def test_a_strong_pull_leaves_the_identity_and_the_shift_of_means():
    x = torch.randn(500, 6, generator=torch.Generator().manual_seed(0))
    weight, bias = ridge_map(x, 2 * x + 1, ridge=1e9)
    torch.testing.assert_close(weight, torch.zeros(6, 6), rtol=0, atol=1e-6)
    torch.testing.assert_close(bias, 1 + x.mean(0), rtol=0, atol=1e-5)


def test_the_tuned_lens_reads_shallow_layers_better_and_the_last_one_exactly(donor):
    model, tokenizer, parts = donor
    rows = read_training_rows(model, tokenizer, parts, TEXT, SMALL)
    assert rows.shape == (5, 600, 64)
    lens = fit_tuned_lens(model, parts, rows, SMALL, "key")
    unseen = torch.tensor([tokenizer("A function is a block of statements")["input_ids"]])
    with torch.no_grad():
        hidden = read_last_rows(model, parts, unseen.repeat(2, 1))
        plain, tuned = Lens(model, parts).layer_log2_probs(hidden), Lens(model, parts, lens).layer_log2_probs(hidden)
        held_out = [row[:100] for row in rows]
        plain_kl, tuned_kl = (
            kl_divergence(p[:, -1], p).mean(0)
            for p in (Lens(model, parts, translator).layer_log2_probs(held_out) for translator in (None, lens))
        )
    assert torch.equal(plain[:, -1], tuned[:, -1])
    assert (tuned_kl[:-1] < 0.9 * plain_kl[:-1]).all()


def test_it_is_fitted_once_and_kept(donor, tmp_path):
    fitted = []
    first = obtain(donor, tmp_path / "cache", advance=fitted.append)
    assert fitted == [1] * 4
    again = obtain(donor, tmp_path / "cache", advance=lambda _: pytest.fail("fitted again"))
    assert torch.equal(first.weights, again.weights) and torch.equal(first.biases, again.biases)
    assert first.key == again.key


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [{"fingerprint": "sha256:2"}, {"text": TEXT[1:]}, {"settings": dataclasses.replace(SMALL, ridge=0.5)}]
)
def test_another_donor_text_or_setting_is_fitted_anew(donor, tmp_path, change):
    first = obtain(donor, tmp_path / "cache")
    assert obtain(donor, tmp_path / "cache", **change).key != first.key
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_the_same_seed_fits_the_same_bits(donor, tmp_path):
    a, b = obtain(donor, tmp_path / "a"), obtain(donor, tmp_path / "b")
    assert torch.equal(a.weights, b.weights)


@pytest.mark.slow
@pytest.mark.parametrize("num_bytes", [0, 5, -10])
def test_a_damaged_file_is_fitted_again(donor, tmp_path, num_bytes):
    first = obtain(donor, tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:num_bytes])
    assert torch.equal(obtain(donor, tmp_path / "cache").weights, first.weights)
    assert path.read_bytes() == whole


def test_a_file_under_a_wrong_name_is_fitted_again(donor, tmp_path):
    obtain(donor, tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    with safe_open(path, "pt") as file:
        assert file.metadata()["key"].startswith("sha256:")
    obtain(donor, tmp_path / "cache", fingerprint="sha256:2")
    (other,) = set((tmp_path / "cache").iterdir()) - {path}
    whole = other.read_bytes()
    other.write_bytes(path.read_bytes())
    obtain(donor, tmp_path / "cache", fingerprint="sha256:2")
    assert other.read_bytes() == whole


def test_a_text_too_short_is_refused_with_both_numbers(donor, tmp_path):
    with pytest.raises(InputError, match="11 tokens of text, and a tuned lens needs 704"):
        obtain(donor, tmp_path / "cache", text="hello world")


def test_several_streams_are_refused(tmp_path):
    donor = load_tiny("gemma3n_text", tmp_path)
    with pytest.raises(InputError, match="no tuned lens: its residual stream has several streams"):
        obtain(donor, tmp_path / "cache")
