"""Compositions in memory against splices that the product plans and writes."""

import weakref

import pytest
import torch

from hybridizer.core.errors import PlanError
from hybridizer.models.compose import Composer, compose
from hybridizer.models.parts import find_parts, run_model
from support.marks import slow_except
from support.prove import NUM_TOKENS, build_splice, load, orders
from support.tiny import make_tiny

# Plain; sliding and full attention with rotary tables of their own; hybrids with states; mixtures of experts; rotary
# tables that the model makes of a list in its config (granite_swa).
FAMILIES = slow_except(
    ["llama", "gemma3_text", "qwen2", "qwen3_next", "jamba", "lfm2", "mamba2", "granitemoehybrid", "granite_swa"],
    "llama",
    "gemma3_text",
    "granite_swa",
)
IDS = torch.randint(3, 250, (2, NUM_TOKENS), generator=torch.Generator().manual_seed(7))


def load_two(model_type, folder, **overrides):
    donors = [make_tiny(model_type, folder / name, seed=seed, **overrides) for seed, name in enumerate("ab")]
    models = [load(donor) for donor in donors]
    return donors, {name: (model, find_parts(model)) for name, model in zip("ab", models, strict=True)}


def logits(model):
    with torch.no_grad():
        return run_model(model, IDS)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_composition_computes_what_the_written_splice_computes_bit_for_bit(model_type, tmp_path):
    donors, models = load_two(model_type, tmp_path)
    composer, exact = Composer(models, "a"), 0
    for name, order in orders().items():
        layers = [("ab"[which], layer) for which, layer in order]
        try:
            folder = build_splice(donors, order, tmp_path, name.replace(" ", "-"))
        except PlanError:
            with pytest.raises(PlanError):
                composer.compose(layers)
            continue
        model, parts = composer.compose(layers)
        written = load(folder)
        assert torch.equal(logits(model), logits(written)), name
        found = find_parts(model)
        assert parts.layers == found.layers and parts.tuple_sizes == found.tuple_sizes
        assert parts.final_norm is found.final_norm and parts.head is found.head
        assert getattr(model.config, "layer_types", None) == getattr(written.config, "layer_types", None)
        exact += 1
    assert exact >= 1


@pytest.mark.slow
@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_composition_in_the_modules_of_another_computes_what_one_of_its_own_computes(model_type, tmp_path):
    _, models = load_two(model_type, tmp_path)
    composer, found = Composer(models, "a"), {}
    for name, order in list(orders().items()) * 2:
        layers = [("ab"[which], layer) for which, layer in order]
        try:
            own = logits(composer.compose(layers)[0])
        except PlanError:
            with pytest.raises(PlanError), composer.borrowed(layers):
                pass
            continue
        with composer.borrowed(layers) as (model, parts):
            assert torch.equal(logits(model), own), name
            assert parts.layers == find_parts(model).layers and len(parts.tuple_sizes) == len(layers)
        found[name] = own
    assert len(found) >= 1


def test_modules_serve_again_where_a_run_leaves_them_as_they_were(tmp_path):
    _, models = load_two("llama", tmp_path)
    composer = Composer(models, "a")
    with composer.borrowed([("b", 2), ("b", 3)]) as (first, _):
        logits(first)
    with composer.borrowed([("a", 0), ("a", 1)]) as (again, _), composer.borrowed([("a", 0), ("a", 2)]) as (second, _):
        assert again is first and second is not first, "both are in use"
    with composer.borrowed([("b", 0), ("b", 1)]) as (third, _):
        assert third is first
    with composer.borrowed([("a", 0), ("a", 1), ("a", 2)]) as (deeper, _):
        assert deeper is not first


def test_modules_that_a_run_changes_serve_once(tmp_path):
    grows = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}
    _, models = load_two("llama", tmp_path, max_position_embeddings=NUM_TOKENS - 4, rope_parameters=grows)
    composer, layers, some = Composer(models, "a"), [("a", 0), ("b", 1)], IDS[:, : NUM_TOKENS - 4]
    with torch.no_grad():
        expected = run_model(composer.compose(layers)[0], some)
    with composer.borrowed(layers) as (long, _):
        logits(long)  # its rotary table grows
        with torch.no_grad():
            assert not torch.equal(run_model(long, some), expected)
    with composer.borrowed(layers) as (model, _), torch.no_grad():
        assert model is not long and torch.equal(run_model(model, some), expected)


def test_a_donor_that_takes_the_name_of_another_gives_its_own_tensors(tmp_path):
    _, models = load_two("llama", tmp_path)
    composer, layers = Composer(models, "a"), [("a", 0), ("b", 1)]
    with composer.borrowed(layers) as (first, _):
        logits(first)
    composer.add("b", models["a"])
    with composer.borrowed(layers) as (_, parts):
        assert parts.layers[1].mlp.up_proj.weight is models["a"][1].layers[1].mlp.up_proj.weight


def test_a_donor_that_is_removed_is_freed(tmp_path):
    _, models = load_two("llama", tmp_path)
    composer = Composer(models, "a")
    with composer.borrowed([("a", 0), ("b", 1)]) as (model, _):
        logits(model)
    held = weakref.ref(models["b"][1].layers[1].mlp.up_proj.weight)
    composer.remove("b")
    del models["b"], model, _
    assert held() is None


def test_a_composition_shares_every_stored_tensor_with_its_donors_and_changes_none(tmp_path):
    _, models = load_two("gemma3_text", tmp_path)
    before = {name: logits(model) for name, (model, _) in models.items()}
    model, _ = compose(models, "a", [("a", 0), ("b", 1), ("b", 1), ("a", 3)])
    owned = {tensor.data_ptr() for donor, _ in models.values() for tensor in donor.state_dict().values()}
    assert {tensor.data_ptr() for tensor in model.state_dict().values()} <= owned
    logits(model)
    assert all(torch.equal(logits(model), before[name]) for name, (model, _) in models.items())


def test_all_layers_of_the_host_give_the_hosts_logits(tmp_path):
    _, models = load_two("llama", tmp_path)
    composer = Composer(models, "b")
    assert torch.equal(logits(composer.compose(composer.identity())[0]), logits(models["b"][0]))


def test_a_layer_that_is_repeated_is_run_as_often(tmp_path):
    _, models = load_two("llama", tmp_path)
    model, parts = compose(models, "a", [("a", 0), ("a", 1), ("a", 1), ("a", 1)])
    assert parts.num_layers == 4 and len(set(parts.layers)) == 4
    hidden = models["a"][0].model.embed_tokens(IDS)
    with torch.no_grad():
        rope = models["a"][0].model.rotary_emb(hidden, torch.arange(NUM_TOKENS)[None])
        mask = torch.full((NUM_TOKENS, NUM_TOKENS), torch.finfo(torch.float32).min).triu(1)[None, None]
        for layer in (0, 1, 1, 1):
            hidden = models["a"][1].layers[layer](hidden, attention_mask=mask, position_embeddings=rope)
        expected = models["a"][0].lm_head(models["a"][0].model.norm(hidden))
    assert torch.equal(logits(model), expected)


def test_donors_of_other_shapes_dtypes_and_families_are_refused(tmp_path):
    _, models = load_two("llama", tmp_path)
    wide = load(make_tiny("llama", tmp_path / "wide", intermediate_size=64))
    qwen = load(make_tiny("qwen3", tmp_path / "qwen"))
    half = load(tmp_path / "b").to(torch.bfloat16)
    for other, word in ((wide, "intermediate_size"), (qwen, "family"), (half, "bfloat16")):
        known = {**models, "other": (other, find_parts(other))}
        with pytest.raises(PlanError, match=word):
            compose(known, "a", [("a", 0), ("other", 1)])
    with pytest.raises(PlanError, match="no layers"):
        compose(models, "a", [])
    with pytest.raises(PlanError, match=r"layer 4 was requested"):
        compose(models, "a", [("b", 4)])
