"""A model is verified in a hidden folder and published afterwards: what fails is not there, what was there stays."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from hybridizer.models import check
from hybridizer.models.check import compute_logits
from hybridizer.models.limits import call_within
from hybridizer.pipeline import output
from hybridizer.plan import finite
from hybridizer.splice.finite import check_finite
from support.lines import hybridize, hybridize_json, make_donor, write_recipe


@pytest.fixture
def bench(bench, monkeypatch):
    monkeypatch.setattr(finite, "SMALL_TENSOR_BYTES", 1024)  # matrices are large, as in a real model
    make_donor(bench / "a", seed=1)
    return bench


def recipe_of(bench, donor="a"):
    layout = {"host": donor, "deep": donor, "shallow": donor}
    return write_recipe(bench / "x.yaml", donors={donor: donor}, layout=layout)


def break_template(bench, text):
    (bench / "a/chat_template.jinja").write_text(text)


def leave_nan(bench):
    """A NaN where the plan does not look for it: in a large matrix."""
    tensors = load_file(bench / "a/model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.nan
    save_file(tensors, bench / "a/model.safetensors", metadata={"format": "pt"})


def names_in(run):
    return sorted(path.name for path in run.iterdir())


def test_a_model_that_does_not_compute_is_not_published(bench):
    leave_nan(bench)
    stderr = hybridize("build", recipe_of(bench), code=1).stderr
    assert "runs/x/model: its logits are not all finite. Nothing was published." in stderr
    assert ".partial" not in stderr
    assert names_in(bench / "runs/x") == ["donors.json", "plan.json", "recipe.resolved.yaml"]
    hybridize("verify", "runs/x", "--no-load", code=1)


def test_a_failed_replacement_leaves_the_good_model_in_place(bench):
    recipe = recipe_of(bench)
    hybridize("build", recipe)
    before = {path.name: path.read_bytes() for path in (bench / "runs/x/model").iterdir()}
    leave_nan(bench)
    stderr = hybridize("build", recipe, "--replace", code=1).stderr
    assert "still holds the model that was there." in stderr
    assert {path.name: path.read_bytes() for path in (bench / "runs/x/model").iterdir()} == before
    hybridize("verify", "runs/x/model")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('no user turns') }}", "it cannot generate: RuntimeError: TemplateError: no user turns"),
        ("{% if %}", "it cannot generate: RuntimeError: TemplateSyntaxError:"),
        ("{% for i in range(900) %}long {% endfor %}", "the chat template makes"),
        ("{% for i in range(99999) %}very long {% endfor %}", "the chat template makes 999990 characters"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "not finished after 0.5"),
    ],
    ids=["raises", "syntax", "tokens", "characters", "forever"],
)
def test_a_chat_template_that_does_not_work_is_an_error_in_bounded_time(bench, monkeypatch, template, says):
    monkeypatch.setattr(check, "PROMPT_SECONDS", 0.5 if "0.5" in says else 20.0)
    break_template(bench, template)
    assert says in hybridize("build", recipe_of(bench), code=1).stderr
    assert not (bench / "runs/x/model").exists()


def test_a_call_within_a_limit_gives_its_result_or_its_own_error():
    assert call_within(20, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        call_within(20, lambda: 1 // 0)


@pytest.mark.parametrize("stuffing", ["", "x" * 8, "x" * 24])
def test_both_sides_of_an_identity_splice_are_compared_from_aligned_memory(bench, monkeypatch, stuffing):
    # Headers of other lengths put equal tensors at other alignments in the two mapped files.
    tensors = load_file(bench / "a/model.safetensors")
    save_file(tensors, bench / "a/model.safetensors", metadata={"format": "pt", "stuffing": stuffing})
    computed = []

    def compute_aligned(model, ids, folder):
        computed.append([parameter.data_ptr() % 64 for parameter in model.parameters()])
        return compute_logits(model, ids, folder)

    monkeypatch.setattr(check, "compute_logits", compute_aligned)
    proofs = hybridize_json("build", recipe_of(bench))["proofs"]
    assert "logits equal those of 'a' bit for bit" in {proof["found"] for proof in proofs}
    assert [set(places) for places in computed] == [{0}, {0}]


@pytest.mark.parametrize(("trained", "says"), [(False, "after 'linear'"), (True, "after the last step of training")])
def test_values_that_are_not_finite_are_named_with_what_made_them(bench, monkeypatch, trained, says):
    tensors = load_file(bench / "a/model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"][3, 0] = torch.inf
    save_file(tensors, bench / "a/model.safetensors", metadata={"format": "pt"})
    sides = [{"donor": "a", "layers": layers, "parameters": {"weight": 0.5}} for layers in ("1", "2")]
    slices = [{"donor": "a", "layers": 0}, {"blend": {"method": "linear", "sources": sides}}]
    recipe = write_recipe(bench / "x.yaml", donors={"a": "a"}, layout={"host": "a", "slices": slices})
    name = "model.layers.1.mlp.up_proj.weight"
    if trained:
        monkeypatch.setattr(output, "check_finite", lambda plan, folder, _: check_finite(plan, folder, {name}))
    stderr = hybridize("build", recipe, "--no-load", code=1).stderr
    assert f"1 values of '{name}' (F32) are NaN or infinite {says}. Nothing was published." in stderr
    assert ("The training diverged" in stderr) == trained
    assert not (bench / "runs/x/model").exists()


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.3.input_layernorm.weight", "lm_head.weight"])
def test_norms_and_what_is_outside_the_layers_are_scanned_when_a_recipe_is_planned(bench, name):
    tensors = load_file(bench / "a/model.safetensors")
    tensors[name].view(-1)[-1] = torch.nan
    save_file(tensors, bench / "a/model.safetensors", metadata={"format": "pt"})
    hybridize("check", recipe_of(bench))  # reads no weight
    stderr = hybridize("plan", recipe_of(bench), code=2).stderr
    assert f"donor 'a': tensor '{name}' holds 1 values that are NaN or infinite." in stderr
