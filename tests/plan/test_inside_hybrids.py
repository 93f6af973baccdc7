"""Splices inside hybrid families that exist: copies of layers are exact, and new mixers refused or taken clearly."""

import pytest
import torch

from hybridizer.core.errors import PlanError
from hybridizer.core.progress import SilentMonitor
from hybridizer.pipeline.plan import check
from support.lines import write_recipe
from support.marks import slow_except
from support.native import logits_of
from support.prove import build_splice, find_layers, load
from support.tiny import make_tiny

# What layer 0 of each tiny model has; layer 1 has attention, save in falcon_h1, where all layers are alike.
FAMILIES = {
    "bamba": "linear_attention", "falcon_h1": "hybrid", "granitemoehybrid": "linear_attention", "jamba": "mamba",
    "lfm2": "conv", "nemotron_h": "linear_attention", "olmo_hybrid": "linear_attention",
    "qwen3_5_text": "linear_attention", "qwen3_next": "linear_attention", "recurrent_gemma": "linear_attention",
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HYBRIDIZER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def plan(bench):
    """Plans a splice of two tiny donors of one hybrid family, a below and b above, with `more` slices on top."""

    def make(family, *more, below=({"donor": "a", "layers": "0..1"}, {"donor": "b", "layers": "2..3"})):
        for name in "ab":
            make_tiny(family, bench / name)
        donors = {name: {"source": str(bench / name), "allow": ["no_tokenizer"]} for name in "ab"}
        layout = {"host": "a", "slices": [*below, *more]}
        return check(write_recipe(bench / "x.yaml", donors=donors, layout=layout), (), SilentMonitor(), deep=False).plan

    return make


@pytest.mark.parametrize("family", slow_except(FAMILIES, "jamba", "nemotron_h"))
def test_a_splice_gives_the_logits_of_its_donors_layers_put_together_by_hand(family, tmp_path):
    donors = [make_tiny(family, tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    written = load(build_splice(donors, [(1, 0), (0, 1), (1, 2), (0, 3)], tmp_path, "x"))
    host, other = (load(donor) for donor in donors)
    alone = logits_of(host)
    for place in (0, 2):
        find_layers(host)[place] = find_layers(other)[place]
    assert torch.equal(logits_of(written), logits_of(host)) and not torch.equal(logits_of(written), alone)


def test_layers_that_share_an_attention_are_refused_with_the_reason(tmp_path):
    donors = [make_tiny("zamba2", tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    with pytest.raises(PlanError) as caught:
        build_splice(donors, [(0, 0), (1, 1)], tmp_path, "x")
    (problem,) = caught.value.problems
    assert problem.what == "layers of 'zamba2' cannot be moved: its hybrid layers share one attention block."
    assert problem.fix == "Take donors of another family, or all layers of one model as they are."


@pytest.mark.parametrize("family", slow_except(FAMILIES, "bamba", "falcon_h1"))
def test_a_swap_is_refused_with_the_reason_and_what_to_do(plan, family):
    assert {row.method for row in plan(family).layers} == {"copy"}
    with pytest.raises(PlanError) as caught:
        plan(family, {"donor": "a", "layers": 0, "mixer": {"kind": "mamba2"}})
    (problem,) = caught.value.problems
    has = "layer 0 of donor 'a' has no attention of its own that a mamba2 could take the place of: it has "
    assert problem.what.startswith(f"{has}{FAMILIES[family]} ('{family}'). Layers without attention of its own: 0")
    assert problem.fix == "Keep the layers as they are, or take a donor with attention in every layer."
    if family == "falcon_h1":  # none of its layers has attention alone
        return
    with pytest.raises(PlanError) as caught:
        plan(family, {"donor": "a", "layers": 1, "mixer": {"kind": "mamba2"}})
    (problem,) = caught.value.problems
    asked = f"no family of transformers that is known here holds layers of '{family}' beside mamba2."
    assert problem.what == asked and problem.fix.startswith("Nearest: donors of llama, mistral, qwen2, granite")


def test_new_layers_are_taken_where_the_family_has_them_and_refused_elsewhere(plan):
    assert plan("granitemoehybrid", {"fresh": "mamba2"}).layers[4].method == "fresh mamba2"
    with pytest.raises(PlanError, match="holds layers of 'nemotron_h'.* beside mamba2"):
        plan("nemotron_h", {"fresh": "mamba2"})
