import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridizer.data.packing import MIN_PIECE, WINDOW_PIECES, best_fit, cut_documents, pack, padded_rows


def pieces_of(lengths):
    lengths = np.asarray(lengths, np.int64)
    return np.stack([np.cumsum(lengths) - lengths, lengths, np.zeros_like(lengths)], axis=1)


@given(st.lists(st.integers(1, 50), max_size=80), st.integers(2, 20))
def test_cut_documents_cover_every_token_but_useless_rests(lengths, row_tokens):
    lengths = np.asarray(lengths, np.int64)
    begins = np.cumsum(lengths) - lengths
    covered = np.zeros(lengths.sum(), int)
    for begin, length, _ in cut_documents(begins, lengths, row_tokens):
        assert MIN_PIECE <= length <= row_tokens
        covered[begin : begin + length] += 1
    lost = sum(1 for n in lengths if n % row_tokens == 1)
    assert covered.max(initial=1) <= 1 and (covered == 0).sum() == lost


@given(st.lists(st.integers(1, 50), max_size=80), st.integers(4, 20), st.integers(0, 2))
def test_pieces_after_the_first_begin_with_the_prefix_and_cover_the_rest(lengths, row_tokens, num_prefix):
    lengths = np.asarray(lengths, np.int64)
    begins = np.cumsum(lengths) - lengths
    covered = np.zeros(lengths.sum(), int)
    for begin, length, prefix in cut_documents(begins, lengths, row_tokens, num_prefix):
        assert prefix == (0 if begin in begins else num_prefix)
        assert length - prefix >= MIN_PIECE and length <= row_tokens
        covered[begin : begin + length - prefix] += 1
    assert covered.max(initial=1) <= 1
    assert (covered == 0).sum() <= (lengths > 0).sum()  # one token at most is left over of each document


@given(st.lists(st.integers(1, 32), max_size=200))
def test_best_fit_places_every_piece_once_and_opens_rows_only_in_need(lengths):
    rows = best_fit(lengths, 32)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 32 for row in rows)
    # A new row is only opened when no row has room: two half-empty rows would contradict that.
    assert sum(2 * sum(lengths[i] for i in row) <= 32 for row in rows) <= 1


@settings(max_examples=5)
@given(st.integers(0, 2**32))
def test_documents_of_real_lengths_fill_99_percent(seed):
    lengths = np.random.default_rng(seed).lognormal(5.5, 1.2, 3000).astype(np.int64) + MIN_PIECE  # median 245 tokens
    pieces = cut_documents(np.cumsum(lengths) - lengths, lengths, 1024)
    packed = pack(pieces, 1024, np.random.default_rng(0))
    assert packed.fill >= 0.99
    assert padded_rows(pieces, 1024, 8, np.random.default_rng(0)).fill < 0.5


def test_several_windows_lose_nothing_and_are_deterministic():
    lengths = np.random.default_rng(0).integers(MIN_PIECE, 200, 2 * WINDOW_PIECES + 77)
    one, two = (pack(pieces_of(lengths), 256, np.random.default_rng(3)) for _ in range(2))
    assert sorted(one.pieces[:, 0]) == sorted(pieces_of(lengths)[:, 0])
    assert one.starts[-1] == len(lengths)
    np.testing.assert_array_equal(one.pieces, two.pieces)
    np.testing.assert_array_equal(one.starts, two.starts)
    assert one.fill >= 0.99


def test_another_seed_gives_another_order_of_the_same_rows():
    pieces = pieces_of(np.full(100, 16))
    one, two = (pack(pieces, 16, np.random.default_rng(seed)) for seed in (0, 1))
    assert sorted(one.pieces[:, 0]) == sorted(two.pieces[:, 0])
    assert (one.pieces != two.pieces).any()


def test_padded_rows_lose_nothing_and_keep_a_short_step_at_the_end():
    lengths = np.random.default_rng(0).integers(MIN_PIECE, 200, 2 * WINDOW_PIECES + 77)
    rows = padded_rows(pieces_of(lengths), 256, 8, np.random.default_rng(3))
    assert sorted(rows.pieces[:, 0]) == sorted(pieces_of(lengths)[:, 0])
    steps = [rows.pieces[at : at + 8, 1] for at in range(0, rows.num_rows, 8)]
    assert np.mean([step.max() - step.min() for step in steps]) < 5
