import dataclasses
import tracemalloc

import numpy as np
import pytest

from hybridizer.core.errors import InputError
from hybridizer.trace.journal import TraceProgress
from hybridizer.trace.readings import Reading, ReadingsTable

READING = Reading(0, 7, (0.1, 0.2), (0.0, 1 / 3), None, (1.5, 0.0), 5.0, True, 0.25)


def reading(index, **changes):
    return dataclasses.replace(READING, index=index, **changes)


def finished(journal):
    return [reading for batch in journal.read_finished(9) for reading in batch]


def test_what_was_appended_comes_back_exactly(tmp_path):
    journal = TraceProgress(tmp_path / "new" / "j.jsonl", "key")
    assert finished(journal) == []
    journal.append([reading(0), reading(2, hit=None, answer_prob=None)])
    journal.append([reading(1)])
    assert finished(TraceProgress(journal.path, "key")) == [
        reading(0),
        reading(2, hit=None, answer_prob=None),
        reading(1),
    ]


@pytest.mark.parametrize("lost_bytes", [1, 5, 50])
def test_a_line_cut_short_is_dropped_and_written_over(tmp_path, lost_bytes):
    journal = TraceProgress(tmp_path / "j.jsonl", "key")
    journal.append([reading(0)])
    journal.append([reading(1)])
    journal.path.write_bytes(journal.path.read_bytes()[:-lost_bytes])
    again = TraceProgress(journal.path, "key")
    assert finished(again) == [reading(0)]
    again.append([reading(1, target=8)])
    assert finished(TraceProgress(journal.path, "key")) == [reading(0), reading(1, target=8)]


def test_a_journal_killed_while_starting_starts_again(tmp_path):
    path = tmp_path / "j.jsonl"
    path.write_bytes(b'{"ke')
    assert finished(TraceProgress(path, "key")) == []
    assert path.read_bytes() == b'{"key": "key"}\n'


@pytest.mark.parametrize("content", [b'{"key": "other"}\n', b"my thesis, without a newline", b"[1]\n"])
def test_another_file_is_neither_continued_nor_overwritten(tmp_path, content):
    path = tmp_path / "j.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not the journal of this trace"):
        TraceProgress(path, "key")
    assert path.read_bytes() == content


@pytest.mark.parametrize("line", [b"{}", b"3", b"[1]", b"[{}]", b'{"index": 0', b"\xff", b'[{"index": 0}]'])
def test_damage_in_the_middle_is_named_with_its_line(tmp_path, line):
    journal = TraceProgress(tmp_path / "j.jsonl", "key")
    journal.append([reading(0)])
    journal.path.write_bytes(journal.path.read_bytes() + line + b"\n")
    with pytest.raises(InputError, match="j.jsonl:3: damaged journal"):
        finished(TraceProgress(journal.path, "key"))


def test_a_prompt_read_twice_is_damage(tmp_path):
    journal = TraceProgress(tmp_path / "j.jsonl", "key")
    journal.append([reading(0)])
    journal.append([reading(1), reading(0)])
    with pytest.raises(InputError, match=r"j.jsonl:3: damaged journal: a prompt was read twice"):
        finished(journal)


@pytest.mark.parametrize("index", [-1, 9])
def test_readings_of_other_prompts_are_damage(tmp_path, index):
    journal = TraceProgress(tmp_path / "j.jsonl", "key")
    journal.append([reading(index)])
    with pytest.raises(InputError, match="readings of other prompts"):
        finished(journal)


def test_resuming_holds_one_batch_in_memory_however_many_were_finished(tmp_path):
    def peak(num_batches):
        journal = TraceProgress(tmp_path / f"{num_batches}.jsonl", "key")
        for at in range(num_batches):
            journal.append([reading(8 * at + i, js=(0.5,) * 200) for i in range(8)])
        tracemalloc.start()
        for _ in TraceProgress(journal.path, "key").read_finished(8 * num_batches):
            pass
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert peak(60) < 1.5 * peak(6)  # the indices of all


def test_readings_are_stacked_in_the_order_of_the_probes():
    table = ReadingsTable(2)
    table.add([reading(1, hit=None, answer_prob=None)])
    assert table.finished == {1}
    table.add([reading(0)])
    stacked = table.stack()
    assert stacked.num_prompts == 2
    assert stacked.js.tolist() == [[0.0, float(np.float32(1 / 3))]] * 2  # what is measured is float32
    assert stacked.js.dtype == np.float64
    assert stacked.layer_js is None
    assert stacked.hit[0] == 1 and np.isnan(stacked.hit[1])


def test_no_prompt_is_read_twice_or_never():
    table = ReadingsTable(2)
    table.add([reading(1)])
    with pytest.raises(AssertionError, match="prompt 1 was read twice"):
        table.add([reading(1)])
    with pytest.raises(AssertionError, match="never read"):
        table.stack()
