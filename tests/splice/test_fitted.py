"""Mixers that are derived from an attention or fitted to it: written as they were made, from a text that is pinned."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from hybridizer.checkpoint.reader import open_checkpoint
from hybridizer.core.errors import InputError, PlanError, RecipeError
from hybridizer.core.progress import SilentMonitor
from hybridizer.mixers.fit import fit_mixers, new_mixers
from hybridizer.mixers.make import make_mixer_tensors
from hybridizer.models.load import load_causal_lm
from hybridizer.models.parts import find_parts
from hybridizer.models.tensors import read_tensor
from hybridizer.pipeline.build import build
from hybridizer.pipeline.fit import ensure_fitted
from hybridizer.pipeline.plan import plan_recipe
from hybridizer.pipeline.verify import verify_folder
from hybridizer.splice.fitted import fitted_path, mixer_shapes
from hybridizer.splice.native import splice_native
from hybridizer.splice.verify import verify
from support.lines import make_donor, write_recipe

FIT = {"kind": "mamba2", "init": "attention", "fit": "ridge"}
TEXT = [f"document {i} says " + "the cat sat on the mat " * (i % 5 + 1) for i in range(20)]


@pytest.fixture
def recipe(bench):
    """Writes a recipe of a tiny llama, mixers in its layers 1 and 3, and a text beside it."""
    make_donor(bench / "a")
    (bench / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXT))

    def write(first=FIT, second=FIT, slices=None, **layout):
        slices = slices or [
            {"donor": "a", "layers": 0},
            {"donor": "a", "layers": 1, "mixer": first},
            {"donor": "a", "layers": 2},
            {"donor": "a", "layers": 3, "mixer": second},
        ]
        layout = {"calibration": {"path": "text.jsonl", "tokens": 600, "window": 64}, **layout}
        layout = {key: value for key, value in layout.items() if value is not None}
        return write_recipe(bench / "x.yaml", donors={"a": "a"}, layout={"slices": slices, **layout})

    return write


def run(path):
    built = build(path, (), path.parent / "runs", SilentMonitor(), replace=True, deep=False, load=False)
    return built, open_checkpoint(built.folder / "model").tensors


@pytest.mark.slow
def test_fitted_tensors_are_what_the_fit_gives_on_the_beginning_of_the_text(recipe):
    path = recipe(second={**FIT, "init": "fresh"})
    built, written = run(path)
    model, tokenizer = load_causal_lm(path.parent / "a", torch.float32)
    ids = [token for text in TEXT for token in tokenizer(text)["input_ids"]][: 600 // 64 * 64]
    parts, (shape, heads) = find_parts(model), mixer_shapes(built.plan)
    makers = {
        layer: new_mixers(parts, "mamba2", init, shape, heads, 0) for layer, init in ((1, "attention"), (3, "fresh"))
    }
    fitted = fit_mixers(model, parts, torch.tensor(ids).view(-1, 64), [1, 3], lambda layer: makers[layer](layer))
    for mixer in fitted:
        for suffix, tensor in mixer.tensors.items():
            assert torch.equal(read_tensor(written[f"model.layers.{mixer.layer}.{suffix}"]), tensor), suffix
    _, proofs = verify_folder(built.folder, SilentMonitor(), load=False)
    # Two mixers of eight tensors, and the network's joined matrix of each of the four layers.
    assert {proof.check: proof.found for proof in proofs}["made again"].startswith("20 tensors")


@pytest.mark.slow
def test_a_fit_is_made_once_and_again_for_another_text(recipe, monkeypatch):
    planned = plan_recipe(recipe(), (), SilentMonitor())
    ensure_fitted(planned, SilentMonitor())
    first = fitted_path(planned.plan).stat().st_mtime_ns
    monkeypatch.setattr("hybridizer.pipeline.fit.fit_planned", lambda *_: pytest.fail("fitted a second time"))
    ensure_fitted(planned, SilentMonitor())
    assert fitted_path(planned.plan).stat().st_mtime_ns == first
    path = recipe()
    (path.parent / "text.jsonl").write_text(json.dumps({"text": "another text " * 99}) + "\n")
    other = plan_recipe(path, (), SilentMonitor())
    assert other.plan.hash != planned.plan.hash and fitted_path(other.plan) != fitted_path(planned.plan)
    with pytest.raises(InputError, match="its content changed after planning"):
        fitted_path(planned.plan).unlink()
        ensure_fitted(planned, SilentMonitor())


def test_an_executor_without_the_fit_refuses_before_it_writes(recipe, tmp_path):
    planned = plan_recipe(recipe(), (), SilentMonitor())
    (tmp_path / "out").mkdir()
    with pytest.raises(PlanError, match="its mixers were not fitted"):
        splice_native(planned.plan, planned.donors, tmp_path / "out", SilentMonitor())
    assert not list((tmp_path / "out").iterdir())


def test_derived_mixers_are_made_from_the_attention_that_they_replace(recipe):
    derived = {"kind": "mamba2", "init": "attention"}
    built, written = run(recipe(derived, derived, calibration=None))
    shape, heads = mixer_shapes(built.plan)
    donor = open_checkpoint(built.folder.parent.parent / "a").tensors
    attention = {name: read_tensor(entry) for name, entry in donor.items() if ".3.self_attn." in name}
    made = make_mixer_tensors("mamba2", "attention", shape, 3, attention, heads)
    for suffix, tensor in made.items():
        assert torch.equal(read_tensor(written[f"model.layers.3.{suffix}"]), tensor), suffix
    origins = built.manifest.tensors["model.layers.3.mamba.D"].origins
    assert set(origins) == {f"a:{name}" for name in attention} and built.plan.unused == {"a": {}}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gated_delta_net", "short_conv"])
def test_other_kinds_are_derived_and_fitted_too(kind, recipe, tmp_path):
    shutil.rmtree(tmp_path / "a", ignore_errors=True)
    mixer = {"kind": kind, "init": "attention", "fit": "ridge"}
    path = recipe(mixer, mixer)
    make_donor(tmp_path / "a", "qwen3", use_sliding_window=False)
    built, written = run(path)
    kept = load_file(fitted_path(built.plan))
    assert {name.split(".")[2] for name in kept} == {"1", "3"}
    assert all(torch.equal(read_tensor(written[name]), tensor) for name, tensor in kept.items())
    derived = {**mixer, "fit": "none"}
    other, _ = run(recipe(derived, derived, calibration=None))
    for folder in (built.folder / "model", other.folder / "model"):
        assert verify(folder, SilentMonitor(), find_donor=lambda _: None)[1][-2].check == "computes"


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"second": {"kind": "mamba2"}}, PlanError, "a mixer without `fit` in a model in which others are fitted"),
        (
            {"mixer_sizes": {"state": 24, "heads": 8, "head_dim": 8}},
            PlanError,
            "8 heads of 8 cannot be derived from the attention's 4 heads of 16.",
        ),
        ({"calibration": None}, RecipeError, "`fit: ridge` needs a text, and there is neither"),
        ({"calibration": {"path": "no.txt"}}, RecipeError, "no file in"),
        (
            {"slices": [{"donor": "a", "layers": [1, 0]}, {"donor": "a", "layers": 2, "mixer": FIT}]},
            PlanError,
            "layer 0 is not layer 0 of 'a', and a mixer above it is to be fitted.",
        ),
        (
            {
                "slices": [
                    {"donor": "a", "layers": "0..2"},
                    {"donor": "a", "layers": 3, "mixer": {**FIT, "parallel": True}},
                ]
            },
            PlanError,
            "a parallel mamba2 of falcon_h1 can neither be derived from an attention nor fitted to one.",
        ),
        (
            {"slices": [{"donor": "a"}, {"donor": "a", "mixer": FIT, "zero_output": True}]},
            RecipeError,
            "has `zero_output`, and the fit gives the output projection other values.",
        ),
        (
            {"slices": [{"donor": "a", "layers": 0}, {"donor": "a", "layers": 1, "mixer": {"kind": "mamba2"}}]},
            RecipeError,
            "`calibration` is what mixers are fitted on, and no mixer has `fit: ridge`.",
        ),
    ],
)
def test_fits_that_cannot_be_are_refused(recipe, change, error, says):
    with pytest.raises(error) as caught:
        plan_recipe(recipe(**change), (), SilentMonitor())
    assert says in str(caught.value)
