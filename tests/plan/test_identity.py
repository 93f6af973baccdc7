"""Recipes with identity layers: what is planned, what is refused, and a training of those layers alone."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from hybridizer.core.errors import RecipeError
from hybridizer.core.progress import SilentMonitor
from hybridizer.pipeline.plan import plan_recipe
from hybridizer.plan.origin import Copy, Fresh
from hybridizer.recipe.load import load_recipe
from hybridizer.recipe.sections import plain
from support.lines import bench_in, hybridize, hybridize_json, make_donor, write_recipe

SLICES = [
    {"donor": "a", "layers": "0..1"},
    {"donor": "a", "layers": 1, "as": "identity"},
    {"donor": "a", "layers": 3, "as": "identity"},
]
TRAIN = {"data": [{"path": "t.txt"}], "tokens": 400, "seq_len": 32, "lr": 1e-3, "freeze": "originals"}


@pytest.fixture
def bench(bench):
    """A tiny llama, a text, an own cache, and the working folder."""
    return bench_in(bench)


def recipe_of(folder: Path, slices=SLICES, train=None, **sections) -> Path:
    train = {} if train is None else {"train": {**TRAIN, **train}}
    return write_recipe(folder / "x.yaml", donors={"a": "a"}, layout={"slices": slices}, **train, **sections)


def plan_of(folder, *overrides, **sections):
    return plan_recipe(recipe_of(folder, **sections), overrides, SilentMonitor())


def test_the_output_projections_of_identity_layers_are_zero_and_all_else_is_copied(bench):
    plan = plan_of(bench).plan
    sources = {tensor.name: tensor.source for tensor in plan.tensors}
    fresh = [name for name, source in sources.items() if source == Fresh("zero", 0)]
    assert sorted(fresh) == sorted(
        f"model.layers.{layer}.{suffix}.weight" for layer in (2, 3) for suffix in ("self_attn.o_proj", "mlp.down_proj")
    )
    assert sources["model.layers.2.mlp.up_proj.weight"] == Copy("a", "model.layers.1.mlp.up_proj.weight")
    assert [row.method for row in plan.layers] == ["copy", "copy", "identity", "identity"]


def test_projections_of_layers_that_are_identity_copies_alone_are_listed_as_unused(bench):
    unused = plan_of(bench).plan.unused["a"]
    left = {name for name, reason in unused.items() if "identity copies" in reason}
    assert left == {"model.layers.3.self_attn.o_proj.weight", "model.layers.3.mlp.down_proj.weight"}


def test_a_float16_output_has_zeros_of_float16(bench):
    hybridize("build", recipe_of(bench, output={"dtype": "float16"}))
    tensors = load_file(bench / "runs/x/model/model.safetensors")
    zero = tensors["model.layers.2.mlp.down_proj.weight"]
    assert str(zero.dtype) == "torch.float16" and not zero.any()


def test_originals_freezes_all_but_the_identity_layers_with_all_parts(bench):
    planned = plan_of(bench, train={})
    train = planned.plan.train
    assert (train.frozen_layers, train.frozen_parts) == ((0, 1), ("embedding", "final norm", "head"))
    assert planned.resolved.recipe.train.freeze == (0, 1)


def test_a_part_that_the_recipe_sets_trains_beside_the_identity_layers(bench):
    assert plan_of(bench, train={"head": "train"}).plan.train.frozen_parts == ("embedding", "final norm")


@pytest.mark.parametrize("side", ["embedding", "head"])
def test_either_name_of_a_tied_tensor_makes_it_train(bench, side):
    make_donor(bench / "a", tie_word_embeddings=True)
    assert plan_of(bench, train={side: "train"}).plan.train.frozen_parts == ("final norm",)


@pytest.mark.slow
def test_training_changes_the_identity_layers_alone(bench):
    hybridize("build", recipe_of(bench, train={}))
    before, after = (load_file(bench / f"runs/x/{folder}/model.safetensors") for folder in ("spliced", "model"))
    changed = {name.split(".")[2] for name in before if not before[name].equal(after[name])}
    assert changed == {"2", "3"}
    assert after["model.layers.2.mlp.down_proj.weight"].any()
    training = hybridize_json("inspect", "runs/x/model")["training"]
    # No gradient passes through a projection of zeros: the norms before it start to train in the second step.
    assert training["unreached"] == [
        f"model.layers.{layer}.{norm}.weight"
        for layer in (2, 3)
        for norm in ("input_layernorm", "post_attention_layernorm")
    ]
    assert "identity layers" not in hybridize("verify", "runs/x/model").output  # they have learned


def test_identity_layers_come_back_from_the_resolved_recipe(bench):
    recipe = load_recipe(recipe_of(bench))
    assert plain(recipe.layout.slices[1]) == {"donor": "a", "layers": "1", "as": "identity"}


@pytest.mark.parametrize(
    ("slices", "message"),
    [
        ([{"donor": "a", "as": "copy"}], "`as` cannot be 'copy'"),
        ([{"donor": "a", "as_": "identity"}], "has no key `as_`"),
        (
            [{"blend": {"method": "linear", "sources": [{"donor": "a"}, {"donor": "a"}]}, "as": "identity"}],
            "`as` beside `blend`, and only a donor's own layers",
        ),
    ],
)
def test_other_uses_of_as_are_refused(bench, slices, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe_of(bench, slices))


def test_originals_without_an_identity_layer_is_refused(bench):
    with pytest.raises(RecipeError, match="trains layers with something new alone, and the layout has none"):
        load_recipe(recipe_of(bench, SLICES[:1], train={}))


def test_originals_holds_for_the_stages_that_give_it(bench):
    stages = [{"tokens": 200, "freeze": "originals"}, {"tokens": 200, "freeze": "none"}]
    train = {key: value for key, value in TRAIN.items() if key not in ("tokens", "freeze")} | {"stages": stages}
    path = write_recipe(bench / "x.yaml", donors={"a": "a"}, layout={"slices": SLICES}, train=train)
    first, second = plan_recipe(path, (), SilentMonitor()).plan.train.stages
    assert (first.frozen_layers, first.frozen_parts) == ((0, 1), ("embedding", "final norm", "head"))
    assert (second.frozen_layers, second.frozen_parts) == ((), ())


def test_originals_of_the_whole_training_holds_for_the_stages_without_a_freeze(bench):
    stages = [{"tokens": 200}, {"tokens": 200, "freeze": [0]}]
    train = {key: value for key, value in TRAIN.items() if key != "tokens"} | {"stages": stages}
    path = write_recipe(bench / "x.yaml", donors={"a": "a"}, layout={"slices": SLICES}, train=train)
    first, second = plan_recipe(path, (), SilentMonitor()).plan.train.stages
    assert (first.frozen_layers, first.frozen_parts) == ((0, 1), ("embedding", "final norm", "head"))
    assert (second.frozen_layers, second.frozen_parts) == ((0,), ("embedding",))
