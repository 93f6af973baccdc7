import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridizer.core.errors import InputError
from hybridizer.trace.masking import choose_mask_token, draw_positions, mask, read_positions


@given(
    st.lists(st.integers(0, 9), min_size=2, max_size=40),
    st.floats(0.01, 1),
    st.integers(0, 5),
    st.integers(0, 1000),
)
def test_drawn_positions_are_context_tokens_and_as_many_as_asked(ids, share, seed, index):
    special = frozenset({0, 1})
    positions = draw_positions(ids, special, share, seed, index)
    context = [position for position in range(len(ids) - 1) if ids[position] not in special]
    assert set(positions) <= set(context)
    assert len(positions) == len(set(positions))
    assert abs(len(positions) - share * len(context)) <= 0.5 or len(positions) == min(1, len(context))
    assert positions == draw_positions(ids, special, share, seed, index) == tuple(sorted(positions))


def test_every_context_token_is_drawn_sometimes_and_prompts_differ():
    drawn = [draw_positions(range(10, 20), frozenset(), 0.3, 0, index) for index in range(200)]
    assert {position for positions in drawn for position in positions} == set(range(9))
    assert len(set(drawn)) > 50


def test_a_share_of_nothing_masks_nothing():
    assert draw_positions([5, 6, 7], frozenset(), 0.0, 0, 0) == ()


def test_mask_replaces_what_it_is_told_and_keeps_the_length(tokenizer):
    token = choose_mask_token(tokenizer, "z")
    assert mask([9, 9, 9], [0, 2], token) == [token.id, 9, token.id]


def test_auto_takes_the_mask_then_the_unknown_then_the_padding_token(tokenizer):
    tokenizer.mask_token = "m"
    assert (choose_mask_token(tokenizer).text, choose_mask_token(tokenizer).chosen_as) == ("m", "mask token")
    tokenizer.mask_token = None
    assert (choose_mask_token(tokenizer).text, choose_mask_token(tokenizer).chosen_as) == ("<unk>", "unk token")
    tokenizer.unk_token = None
    assert (choose_mask_token(tokenizer).text, choose_mask_token(tokenizer).chosen_as) == ("<pad>", "pad token")


def test_a_tokenizer_with_none_of_the_three_gets_a_filler(tokenizer):
    tokenizer.unk_token = tokenizer.pad_token = None
    token = choose_mask_token(tokenizer)
    assert (token.text, token.chosen_as) == ("_", "filler")
    assert tokenizer.decode([token.id]) == "_"


def test_a_token_is_named_by_text_or_by_id(tokenizer):
    assert choose_mask_token(tokenizer, "<pad>").id == 0
    assert choose_mask_token(tokenizer, "7").id == 7
    assert choose_mask_token(tokenizer, " ").text == "Ġ"  # as the vocabulary writes it


@pytest.mark.parametrize(
    ("asked", "words"), [("zz", r"'zz' is not one token .*\['z', 'z'\]"), ("256", "no token 256"), ("", "''")]
)
def test_what_is_not_one_token_is_refused(tokenizer, asked, words):
    with pytest.raises(InputError, match=words):
        choose_mask_token(tokenizer, asked)


def test_given_positions_are_read_in_order(tmp_path):
    path = tmp_path / "positions.json"
    path.write_text("[[2, 0, 2], []]")
    assert read_positions(path, [3, 1]) == [(0, 2), ()]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"a": [1]}, "not a JSON list of lists"),
        ([1, 2], "not a JSON list of lists"),
        ([[0]], "1 lists of positions for 2 prompts"),
        ([[3], []], "list 1: position 3 in a prompt of 3 tokens"),
        ([[-1], []], "position -1"),
        ([[0], [0.5]], "list 2: position 0.5"),
        ([[True], []], "position True"),
        ([["0"], []], "position '0'"),
    ],
)
def test_positions_that_do_not_fit_are_refused(tmp_path, content, words):
    path = tmp_path / "positions.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=words):
        read_positions(path, [3, 2])
