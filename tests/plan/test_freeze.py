import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridizer.core.errors import RecipeError
from hybridizer.plan.freeze import choose_frozen
from support.sections import train_section


def choose(layers="deep", num_layers=6, boundary=3, tied=False, **parts):
    return choose_frozen(train_section(freeze=layers, **parts), num_layers, boundary, tied)


def test_deep_freezes_from_the_boundary_on_with_final_norm_and_head():
    choice = choose("deep", boundary=2)
    assert choice.frozen_layers == (2, 3, 4, 5)
    assert choice.trained_layers == (0, 1)
    assert (choice.frozen_embedding, choice.frozen_final_norm, choice.frozen_head) == (False, True, True)


def test_shallow_freezes_up_to_the_boundary_with_the_embedding():
    choice = choose("shallow", boundary=2)
    assert choice.frozen_layers == (0, 1)
    assert (choice.frozen_embedding, choice.frozen_final_norm, choice.frozen_head) == (True, False, False)


@given(st.integers(2, 40), st.data())
def test_deep_and_shallow_split_the_layers_without_overlap(num_layers, data):
    boundary = data.draw(st.integers(1, num_layers - 1))
    deep = set(choose("deep", num_layers, boundary).frozen_layers)
    shallow = set(choose("shallow", num_layers, boundary).frozen_layers)
    assert deep | shallow == set(range(num_layers))
    assert not deep & shallow


def test_layer_one_of_thirty_is_one_layer():
    assert choose((1,), num_layers=30).frozen_layers == (1,)


def test_a_list_of_layers():
    assert choose((0, 4, 2)).frozen_layers == (0, 2, 4)


@pytest.mark.parametrize("layer", [6, 30])
def test_a_layer_that_is_not_there_is_refused_and_named(layer):
    with pytest.raises(RecipeError, match=rf"layers {layer} requested of a model with 6 layers \(0\.\.5\)"):
        choose((0, layer))


@pytest.mark.parametrize("boundary", [0, 6, -1])
def test_a_side_that_is_empty_is_refused(boundary):
    with pytest.raises(RecipeError, match=r"Give a boundary inside 1\.\.5"):
        choose("deep", boundary=boundary)


def test_freezing_everything_is_refused():
    with pytest.raises(RecipeError, match="nothing is left to train"):
        choose(tuple(range(6)))
    assert choose(tuple(range(6)), head="train").trained_layers == ()


def test_a_tied_tensor_between_two_sides_is_frozen_and_the_choice_says_so():
    choice = choose("deep", tied=True)
    assert choice.frozen_embedding and choice.frozen_head
    assert choice.notes == (
        "embedding and head are one tied tensor, frozen as a whole because one of their sides is frozen",
    )


def test_a_tied_tensor_named_once_follows_its_name():
    choice = choose("deep", tied=True, embedding="train")
    assert not choice.frozen_embedding and not choice.frozen_head
    assert choice.notes == ("embedding and head are one tied tensor, trained as a whole",)


def test_a_tied_tensor_cannot_both_train_and_freeze():
    with pytest.raises(RecipeError, match="one tied tensor"):
        choose("deep", tied=True, embedding="train", head="freeze")


def test_untied_parts_can_be_chosen_by_name():
    choice = choose("deep", embedding="freeze", head="train", final_norm="train")
    assert (choice.frozen_embedding, choice.frozen_final_norm, choice.frozen_head) == (True, False, False)
