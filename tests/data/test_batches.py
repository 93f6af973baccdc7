import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from hybridizer.core.errors import InputError, RecipeError
from hybridizer.data.batches import Source, TrainingData, heldout_documents
from hybridizer.models.loss import IGNORED
from support.sections import train_section
from support.token_texts import BEGIN, END, BeginningEncoder, token_file_of

TEXTS = [f"{i:03d} " + "x" * (i % 23) for i in range(200)]


@pytest.fixture
def token_file(tmp_path):
    return token_file_of(TEXTS, tmp_path)


def data_of(*token_files, tokens=2000, seed=0, **settings):
    sources = [Source(f"s{i}", (token_file,)) for i, token_file in enumerate(token_files)]
    return TrainingData(
        sources, train_section(**{"tokens": tokens, "seq_len": 64, "global_batch_size": 4, **settings}), seed
    )


def documents_of(batch):
    """The documents of a batch as the model sees them: one list of ids wherever positions restart."""
    found = []
    for ids, positions in zip(batch.input_ids, batch.position_ids, strict=True):
        starts = [*(positions == 0).nonzero()[:, 0].tolist(), len(ids)]
        found += [ids[a:b].tolist() for a, b in itertools.pairwise(starts)]
    return found


def test_batches_hold_whole_documents_with_positions_from_zero(token_file):
    data = data_of(token_file)
    known = {text.encode() for text in TEXTS}
    for document in documents_of(data.batches(0)[0]):
        if document != [0] * len(document):
            assert document[-1] == END and bytes(document[:-1]) in known


def test_targets_are_the_next_tokens_within_a_document_only(token_file):
    batch = data_of(token_file).batches(0)[0]
    inside = batch.targets != IGNORED
    following = torch.roll(batch.input_ids, -1, dims=1)
    assert torch.equal(batch.targets[inside], following[inside])
    assert (batch.targets[batch.input_ids == END] == IGNORED).all()
    assert (batch.position_ids.roll(-1, dims=1)[inside] == batch.position_ids[inside] + 1).all()


def test_a_step_knows_how_many_tokens_it_predicts(token_file):
    data = data_of(token_file)
    for step in range(data.num_steps):
        assert data.num_targets(step) == sum(
            (b.targets != IGNORED).sum() for b in data.batches(step, micro_batch_size=1)
        )


def test_batches_are_a_pure_function_of_seed_and_step(token_file):
    one, two, other = data_of(token_file), data_of(token_file), data_of(token_file, seed=1)
    assert one.facts == two.facts != other.facts
    for step in (3, 0, 2):  # asked in any order
        assert torch.equal(one.batches(step)[0].input_ids, two.batches(step)[0].input_ids)
    assert not torch.equal(one.batches(0)[0].input_ids, other.batches(0)[0].input_ids)


def test_ranks_and_micro_batches_share_out_the_same_rows(token_file):
    data = data_of(token_file)
    whole = data.batches(1)[0].input_ids
    parts = [b.input_ids for rank in range(2) for b in data.batches(1, rank, 2, micro_batch_size=1)]
    assert len(parts) == 4
    assert torch.equal(torch.cat(parts), whole)


def test_the_last_step_is_filled_with_rows_that_count_nothing(token_file):
    data = data_of(token_file, global_batch_size=7)
    last = data.batches(data.num_steps - 1)[0]
    assert last.input_ids.shape == (7, 64)
    rows = data.packed.num_rows % 7
    assert rows and (last.targets[rows:] == IGNORED).all()


def test_one_pass_sees_every_training_document_once(token_file):
    train = ~heldout_documents(token_file, 0.1)
    total = int(np.diff(token_file.ends, prepend=0)[train].sum())
    data = data_of(token_file, tokens=total, heldout_ratio=0.1)
    seen = [d for step in range(data.num_steps) for d in documents_of(data.batches(step)[0]) if any(d)]
    assert sorted(bytes(d[:-1]).decode() for d in seen) == sorted(np.array(TEXTS)[train])
    assert data.drawn[0].epochs == 1.0


def test_held_out_documents_are_chosen_by_their_text_and_never_train(tmp_path, token_file):
    held = heldout_documents(token_file, 0.1)
    assert 5 <= held.sum() <= 40  # 20 expected of 200; both limits lie 3.5 standard deviations away
    shuffled = token_file_of(TEXTS[::-1], tmp_path, name="b")
    assert (heldout_documents(shuffled, 0.1) == held[::-1]).all()
    data = data_of(token_file, tokens=20_000, heldout_ratio=0.1)
    seen = {bytes(d[:-1]).decode() for step in range(data.num_steps) for d in documents_of(data.batches(step)[0])}
    assert not seen & set(np.array(TEXTS)[held])


def test_a_mixture_takes_its_weights_in_tokens_and_repeats_a_small_source(tmp_path, token_file):
    small = token_file_of(["SMALL " + "y" * 20] * 3, tmp_path, name="small")
    sources = [Source("large", (token_file,), 3.0), Source("small", (small,), 1.0)]
    data = TrainingData(sources, train_section(tokens=2000, seq_len=64, heldout_ratio=0))
    assert [d.name for d in data.drawn] == ["large", "small"]
    assert data.drawn[0].tokens_taken == pytest.approx(1500, abs=64)
    assert data.drawn[1].tokens_taken == pytest.approx(500, abs=64)
    assert data.drawn[1].epochs == pytest.approx(500 / 81, rel=0.1)


def test_every_token_is_numbered_by_its_source_and_counted_there(tmp_path):
    names = ("a", "b", "c")
    files = [token_file_of([name * (5 + i) for i in range(30)], tmp_path, name=name) for name in names]
    sources = [Source("ac", (files[0], files[2])), Source("b", (files[1],))]
    data = TrainingData(sources, train_section(tokens=2000, seq_len=64, global_batch_size=4, heldout_ratio=0))
    for step in range(data.num_steps):
        counts = torch.zeros(2, dtype=torch.int64)
        for batch in data.batches(step, micro_batch_size=1):
            text = (batch.input_ids != END) & (batch.input_ids != 0)
            assert torch.equal(batch.sources[text], (batch.input_ids == ord("b"))[text].long())
            counts += torch.bincount(batch.sources[batch.targets != IGNORED], minlength=2)
        assert data.num_source_targets(step) == counts.tolist()
        assert sum(data.num_source_targets(step)) == data.num_targets(step)


def test_long_documents_are_cut_at_the_row_length(tmp_path):
    data = data_of(token_file_of(["z" * 150], tmp_path), tokens=151, heldout_ratio=0)
    lengths = sorted(len(d) for d in documents_of(data.batches(0)[0]) if any(d))
    assert lengths == [23, 64, 64]


def test_every_piece_of_a_long_document_begins_as_texts_do(tmp_path):
    text = "".join(chr(33 + i % 90) for i in range(150))
    data = data_of(token_file_of([text], tmp_path, encoder=BeginningEncoder()), tokens=152, heldout_ratio=0)
    batch = data.batches(0)[0]
    pieces = [d for d in documents_of(batch) if any(d)]
    assert all(piece[0] == BEGIN for piece in pieces)
    assert sorted(t for piece in pieces for t in piece[1:]) == sorted([*text.encode(), END])
    predicted = batch.targets[batch.targets != IGNORED].tolist()
    unpredicted = sorted(piece[1] for piece in pieces if piece[1] != ord(text[0]))
    assert sorted(predicted + unpredicted) == sorted([*text.encode(), END])  # nothing is asked of a cut
    assert data.num_targets(0) == len(predicted)


def test_rows_without_room_beside_the_prefix_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="no room beside the 1 prefix tokens of each"):
        data_of(token_file_of(TEXTS, tmp_path, encoder=BeginningEncoder()), seq_len=2)


def test_padded_rows_hold_one_document_each_and_are_cut_to_the_longest(token_file):
    data = data_of(token_file, packed=False)
    assert (data.packed.starts[1:] - data.packed.starts[:-1] == 1).all()
    used = positions = 0
    for step in range(data.num_steps):
        (batch,) = data.batches(step)
        longest = int((batch.targets != IGNORED).sum(1).max()) + 1
        assert batch.input_ids.shape[1] == longest
        used += data.num_tokens(step)
        positions += batch.input_ids.numel()
    assert used / positions > 0.9 and data.packed.fill < 0.5


def test_nothing_left_to_train_on_is_an_error(tmp_path):
    with pytest.raises(InputError, match="nothing to train on"):
        data_of(token_file_of(["ab"], tmp_path), heldout_ratio=0.9999999)


def pieces_in(data):
    return [tuple(int(part) for part in piece[:2]) for piece in data.packed.pieces]


def test_a_later_stage_goes_on_where_the_earlier_ones_ended(tmp_path, token_file):
    small = token_file_of([f"text {i} of few" for i in range(30)], tmp_path, "small")
    sources = [Source("a", (token_file,)), Source("b", (small,), 0.5)]
    stages = [train_section(seq_len=64, global_batch_size=2, tokens=tokens) for tokens in (300, 500, 2000)]
    runs = [TrainingData(sources, stage, 3, before=stages[:number]) for number, stage in enumerate(stages)]
    taken = [piece for run in runs[:2] for piece in pieces_in(run)]
    assert len(set(taken)) == len(taken)  # nothing is used again before the epoch ends
    counts = Counter(piece for run in runs for piece in pieces_in(run))
    for number in (0, 1):  # and then everything as often as everything else, in each source
        own = [count for (begin, _), count in counts.items() if runs[0]._owners[runs[0]._file_numbers(begin)] == number]
        assert max(own) - min(own) <= 1
    assert pieces_in(runs[0]) == pieces_in(TrainingData(sources, stages[0], 3))
    assert runs[1].facts != TrainingData(sources, stages[1], 3).facts
