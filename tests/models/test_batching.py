import torch
from hypothesis import given
from hypothesis import strategies as st

from hybridizer.models.batching import MAX_BATCH_TOKENS, make_batches, to_device


@given(st.lists(st.integers(1, 4000), max_size=60), st.integers(1, 16))
def test_every_prompt_is_in_one_batch_of_its_own_length(lengths, batch_size):
    batches = make_batches(lengths, batch_size)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len({lengths[index] for index in batch}) == 1
        assert len(batch) <= batch_size
        assert len(batch) == 1 or len(batch) * lengths[batch[0]] <= MAX_BATCH_TOKENS


def test_batches_are_as_full_as_they_may_be_and_longest_first():
    assert make_batches([3, 9, 3, 3, 9], 2) == [(1, 4), (0, 2), (3,)]


class _OnGpu:
    device = torch.device("cuda", 0)

    def to(self, device, non_blocking):
        return self


def test_what_is_on_the_gpu_already_is_not_pinned():
    tensor = _OnGpu()  # without pin_memory, which torch refuses there
    assert to_device(tensor, torch.device("cuda")) is tensor
